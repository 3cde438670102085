"""What is exported is tested against something independent, and classes are abstract or final.

Each family's test modules hold a table `REFERENCES`, from a class or function of the library to
what its results are compared with. A new variant without an entry fails here.
"""

import abc
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import typing

import equinox as eqx
import pytest

import factorflow
from factorflow._factorization import AbstractFactorization
from factorflow._initializer import AbstractInitializer
from factorflow._problem import AbstractProblem, catalogue
from factorflow._product import AbstractProduct

TESTS = pathlib.Path(__file__).parent


def import_everything() -> None:
    for module in pkgutil.walk_packages(factorflow.__path__, "factorflow."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def subclasses(cls: type) -> set[type]:
    direct = {sub for sub in cls.__subclasses__() if sub.__module__.startswith("factorflow.")}
    return direct.union(*(subclasses(sub) for sub in direct))


def is_abstract(cls: type) -> bool:
    """Abstract methods, or fields that a subclass must give (`eqx.AbstractVar`)."""
    undone = [*getattr(cls, "__abstractvars__", ()), *getattr(cls, "__abstractclassvars__", ())]
    return inspect.isabstract(cls) or bool(undone)


def concrete(cls: type) -> set[type]:
    """All but those that a private module keeps for itself."""
    import_everything()
    private = re.compile(r"factorflow\.[^.]+(\.[^.]+)*\._")
    return {
        sub for sub in subclasses(cls) if not is_abstract(sub) and not private.match(sub.__module__)
    }


def exported(package: str) -> set[type]:
    module = importlib.import_module(f"factorflow.{package}")
    return {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, eqx.Module) and not is_abstract(value)
    }


def references(folder: str) -> dict:
    """The union of the tables of a folder's test modules."""
    union = {}
    for path in sorted((TESTS / folder).glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"_registry_{folder}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        table = getattr(module, "REFERENCES", {})
        assert all(callable(reference) for reference in table.values())
        for tested, reference in table.items():
            assert inspect.getmodule(reference) is not inspect.getmodule(tested)
            source, name = path.read_text(), re.escape(tested.__name__)
            uses = re.search(rf"REFERENCES\[(ff\.)?{name}\]", source)
            assert uses or "REFERENCES[type(" in source, f"{tested} is never compared"
        union |= table
    return union


# folder of tests -> (everything that needs a reference)
FAMILIES = {
    "_product": lambda: concrete(AbstractProduct) | exported("_product"),
    "_problem": lambda: (
        concrete(AbstractProblem)
        | exported("_problem")
        | {getattr(catalogue, name) for name in catalogue.__all__}
    ),
    "_factorization": lambda: concrete(AbstractFactorization) | exported("_factorization"),
    "_initializer": lambda: concrete(AbstractInitializer) | exported("_initializer"),
}


@pytest.mark.parametrize("folder", FAMILIES)
def test_everything_has_a_reference(folder):
    expected = FAMILIES[folder]()
    assert expected, "the search found nothing: it is broken"
    missing = {item.__name__ for item in expected - references(folder).keys()}
    assert not missing, f"give {sorted(missing)} an entry in REFERENCES of tests/{folder}"


@pytest.mark.parametrize("folder", FAMILIES)
def test_variants_are_exported(folder):
    """A variant that is not exported by its package cannot be used, and would not be found."""
    package = vars(importlib.import_module(f"factorflow.{folder}"))
    assert {item.__name__ for item in FAMILIES[folder]()} <= package.keys()


# --- Abstract or final

BASICS = {eqx.Module, abc.ABC, typing.Generic, typing.Protocol, object}


def modules() -> list[type]:
    import_everything()
    return sorted(subclasses(eqx.Module), key=lambda cls: f"{cls.__module__}.{cls.__name__}")


def broken_rules(classes) -> list[str]:
    problems = []
    for cls in classes:
        named_abstract = cls.__name__.lstrip("_").startswith("Abstract")
        if named_abstract != is_abstract(cls):
            problems.append(f"{cls.__name__}: its name and its abstract methods disagree")
        for base in set(cls.__mro__[1:]) - BASICS:
            if not is_abstract(base):
                problems.append(f"{cls.__name__} inherits from the concrete {base.__name__}")
    return problems


def test_every_module_is_abstract_or_final():
    classes = modules()
    assert {"AbstractProblem", "Completion", "DeepMatrix"} <= {cls.__name__ for cls in classes}
    assert not broken_rules(classes)


def test_the_rule_can_be_broken():
    class AbstractThing(eqx.Module):
        @abc.abstractmethod
        def do(self): ...

    class Thing(AbstractThing):
        def do(self):
            return 1

    class Other(Thing):
        pass

    class AbstractButNot(eqx.Module):
        pass

    assert not broken_rules([AbstractThing, Thing])
    assert broken_rules([Other]) == ["Other inherits from the concrete Thing"]
    assert len(broken_rules([AbstractButNot])) == 1

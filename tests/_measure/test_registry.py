"""Every registered measure is documented, can be written down, and has a reference."""

import re

import jax.numpy as jnp
import pytest

import factorflow as ff
from _measure.references import REFERENCES, rows
from factorflow._measure import MEASURES, as_measure
from factorflow._measure.base import Family


def faults_of(family: Family) -> list[str]:
    """What is missing before a measure can be listed, tested and stored."""
    faults = []
    if family.name not in REFERENCES:
        faults.append("no entry in tests/_measure/references.py: REFERENCES")
    if not re.search(r"\w{3}", family.summary) or len(family.summary) > 100:
        faults.append("no summary of one line in its docstring")
    if family.citation is not None and not re.match(r"@\w+\{\w+,", family.citation):
        faults.append("a citation that is no BibTeX")
    written = ",".join(map(str, family.example))
    name = f"{family.name}[{written}]" if written else family.name
    try:
        measure = as_measure(name)
    except ValueError as error:
        return [*faults, f"an example that does not parse: {error}"]
    if as_measure(measure.name) is not measure:
        faults.append(f"a name that does not parse back: {measure.name}")
    if measure is not family.make(*family.example):
        faults.append("an example that is another measure when it is written down")
    return faults


@pytest.mark.parametrize("family", MEASURES.values(), ids=MEASURES)
def test_is_complete(family):
    assert faults_of(family) == []


def test_references_name_registered_measures():
    assert set(REFERENCES) == set(MEASURES)


def test_every_family_is_compared_with_its_reference():
    modules = ("norms", "ranks", "spectrum", "fit", "conserved", "tensors")
    compared = {row.values[2] for module in modules for row in rows(module)}
    assert compared == set(REFERENCES)


@pytest.mark.parametrize("family", MEASURES.values(), ids=MEASURES)
def test_dims_name_the_dimensions(family):
    measure = family.make(*family.example)
    # A trajectory puts its own dimension in front, and xarray wants every name once.
    assert len({"row", *measure.dims}) == 1 + len(measure.dims)
    assert measure.summary == family.summary and measure.citation == family.citation
    assert family.usage.startswith(family.name)


def _nothing_more():
    def lonely(snapshot: ff.Snapshot):
        """A measure that forgot its reference."""
        return snapshot.loss

    return ff.measure()(lonely)


def _no_example():
    def powered(snapshot: ff.Snapshot, power):
        """Loss to a power."""
        return snapshot.loss**power

    return ff.measure()(powered)


def _no_words():
    def wordless(snapshot: ff.Snapshot):
        """$x$"""
        return snapshot.loss

    return ff.measure(citation="Anonymous (2020)")(wordless)


@pytest.mark.parametrize(
    ("name", "register", "faults"),
    [
        ("lonely", _nothing_more, ["REFERENCES"]),
        ("powered", _no_example, ["REFERENCES", r"parse: .*write 'powered\[power\]'"]),
        ("wordless", _no_words, ["REFERENCES", "summary", "BibTeX"]),
    ],
)
def test_finds_faults(name, register, faults):
    try:
        register()
        found = faults_of(MEASURES[name])
    finally:
        MEASURES.pop(name, None)
    assert len(found) == len(faults)
    for fault, pattern in zip(found, faults, strict=True):
        assert re.search(pattern, fault)


def test_a_docstring_is_required():
    with pytest.raises(ValueError, match="'silent' needs a docstring"):

        @ff.measure()
        def silent(snapshot: ff.Snapshot):
            return jnp.zeros(())

    assert "silent" not in MEASURES

"""Following runs together with what they are compared with."""

import contextlib
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._companions import Companion, afterwards, at_once, once_more, starts_alike
from factorflow._compare import Comparison, Lane, compare, settle
from factorflow._evidence import Agreement, agreement, judge
from factorflow._follow import follow
from factorflow._measure import as_measure
from factorflow._names import named
from factorflow._spec import RunSpec, structure
from factorflow._trajectory import Trajectory

__all__ = ["CERTIFY", "Certify", "follow_certified"]

Certify = Literal["cheap", "full"]
CERTIFY = ("cheap", "full")


def follow_certified(
    specs: Sequence[RunSpec], width: int = 2, certify: str = "cheap"
) -> Trajectory:
    """Runs of one structure with their certificates, stacked on a leading axis.

    Companions of the same structure are further lanes of the same batch; others are batches of
    their own. Runs that their first companions do not confirm are compared once more.
    """
    named("certify", certify, CERTIFY)
    early = [at_once(spec) for spec in specs]
    lanes = _followed([*specs, *(c.spec for several in early for c in several)], width, len(specs))
    runs, rest = lanes[: len(specs)], iter(lanes[len(specs) :])
    compared = [
        [_compared(spec, run, companion, next(rest)) for companion in several]
        for spec, run, several in zip(specs, runs, early, strict=True)
    ]
    late = [afterwards(spec, run, certify) for spec, run in zip(specs, runs, strict=True)]
    for own, found in zip(compared, _compare_all(specs, runs, late, width), strict=True):
        own.extend(found)
    compared, kept = _second_look(specs, runs, compared, width, certify)
    certificates = [judge(*parts) for parts in zip(specs, runs, compared, kept, strict=True)]
    stayed = [
        (rows | _untried(spec, own)) & run.trajectory.reached
        for rows, spec, own, run in zip(kept, specs, compared, runs, strict=True)
    ]
    certificates = [
        eqx.tree_at(lambda c: c.on_invariant_set, one, rows)
        for one, rows in zip(certificates, stayed, strict=True)
    ]
    trajectory = jax.tree.map(lambda *leaves: np.stack(leaves), *[run.trajectory for run in runs])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *certificates)
    return eqx.tree_at(lambda t: t.certificate, trajectory, stacked)


def _second_look(
    specs: Sequence[RunSpec],
    runs: Sequence[Lane],
    compared: list[list[Comparison]],
    width: int,
    certify: str,
) -> tuple[list[list[Comparison]], list[np.ndarray]]:
    """What is known after those that were not confirmed have been compared once more.

    Also, per run, the rows that only companions on its own invariant set confirm.
    """
    none = [np.zeros(np.shape(run.trajectory.reached), bool) for run in runs]
    doubtful = [
        i
        for i, (spec, run, own) in enumerate(zip(specs, runs, compared, strict=True))
        if not _confirmed(spec, run, own)
    ]
    if not doubtful:
        return compared, none
    some, lanes = [specs[i] for i in doubtful], [runs[i] for i in doubtful]
    looks = [once_more(spec, run, certify) for spec, run in zip(some, lanes, strict=True)]
    plans = [[*look.finer, *look.unmoved] for look in looks]
    found = _compare_all(some, lanes, plans, width)
    settled, kept = list(compared), list(none)
    for i, spec, look, further in zip(doubtful, some, looks, found, strict=True):
        first, finer = compared[i], len(look.finer)
        nearer = further[:finer] or [None] * len(first)
        counted = zip(further[finer:], look.counts, strict=True)
        unmoved = [one for one, count in counted for _ in range(count)]
        pairs = [
            settle(a, b, c, *near)
            for a, b, c, near in zip(first, nearer, unmoved, _needed(spec, first), strict=True)
        ]
        settled[i] = [comparison for comparison, _ in pairs]
        kept[i] = np.any([rows for _, rows in pairs], axis=0)
    return settled, kept


def _untried(spec: RunSpec, comparisons: list[Comparison]) -> Any:
    """Rows on an invariant set of which nothing says whether rounding would lead off it."""
    beside = [found.on_a_set for found in comparisons if found.kind != "flow_error"]
    return np.all(beside, axis=0) if beside and starts_alike(spec) else False


def _confirmed(spec: RunSpec, run: Lane, comparisons: list[Comparison]) -> bool:
    """Whether every companion confirms every row that was reached."""
    near = _needed(spec, comparisons)
    rows = [found.within(*limit) for found, limit in zip(comparisons, near, strict=True)]
    return bool(np.all([confirmed | ~run.trajectory.reached for confirmed in rows]))


def _needed(spec: RunSpec, comparisons: list[Comparison]) -> list[Agreement]:
    kinds = [comparison.kind for comparison in comparisons]
    return [agreement(spec, kind, kinds) for kind in kinds]


def _compare_all(
    specs: Sequence[RunSpec], runs: Sequence[Lane], plans: list[list[Companion]], width: int
) -> list[list[Comparison]]:
    lanes = _followed([c.spec for several in plans for c in several], width, len(specs))
    rest = iter(lanes)
    return [
        [_compared(spec, run, companion, next(rest)) for companion in several]
        for spec, run, several in zip(specs, runs, plans, strict=True)
    ]


def _compared(spec: RunSpec, run: Lane, companion: Companion, lane: Lane) -> Comparison:
    measures = spec.measures
    if not companion.spec.dynamics.continuous and spec.observed_at == "loss":
        # Descent passes a level by up to a step, which is no error of a row that says where it is.
        measures = tuple(measure for measure in measures if measure is not as_measure("loss"))
    return compare(companion.kind, run, lane, measures, spec.problem.shape)


def _followed(wanted: Sequence[RunSpec], width: int, runs: int) -> list[Lane]:
    """Every run, those of one structure in one batch."""
    groups: dict[Hashable, list[int]] = {}
    for index, spec in enumerate(wanted):
        groups.setdefault(structure(spec), []).append(index)
    lanes: list[Any] = [None] * len(wanted)
    for members in groups.values():
        specs = [wanted[index] for index in members]
        # Widths of batches are few, so that batches of a structure share their compilation.
        padded = max(2, width * -(-len(members) // runs))
        with _precision(specs[0]):
            batch = Lane(*follow(specs, padded))
        for place, index in enumerate(members):
            lanes[index] = jax.tree.map(lambda leaf, i=place: np.asarray(leaf[i]), batch)
    return lanes


def _precision(spec: RunSpec) -> Any:
    double = jax.tree.leaves(spec.factors)[0].dtype == jnp.float64
    return jax.enable_x64(True) if double else contextlib.nullcontext()

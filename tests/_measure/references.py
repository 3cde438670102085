"""Every measure computed a second time: numpy and scipy on the dense matrix, in double precision.

A new measure gets a row in `REFERENCES`, and one in `PARAMETERS` if it takes any; the tests of its
module and the registry test then pick it up.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import factorflow as ff
from factorflow._measure import MEASURES, Measure, as_measures
from tolerances import assert_close

# Read after conftest has chosen the precision of this job.
DTYPE = np.dtype(jnp.result_type(float))
# What a reference answers where rounding decides, not the measure: anything but NaN is right.
ANY = np.nan


class Case:
    """A product given by its entries, by deep factors or by the components of a CP factorization.

    On a completion problem with a target. Arrays are rounded to the job's dtype once; references
    see exactly these numbers in float64. `matrix` is the product, also where it is a tensor.
    """

    def __init__(self, name: str, factors, rank: int, kind: str):
        self.name = name
        self.rank = rank
        self.kind = kind
        self.factors = tuple(np.asarray(factor, DTYPE) for factor in factors)
        if kind == "cp":
            self.matrix = np.sum(self.components, axis=0)
        else:
            self.matrix = functools.reduce(
                lambda product, factor: factor @ product, self.precise_factors
            )
        self.shape = self.matrix.shape
        rng = np.random.default_rng(7)
        self.target = rng.normal(size=self.shape).astype(DTYPE)
        places = list(itertools.product(*map(range, self.shape)))
        self.observed = places[::2]
        self.hidden = places[1::2]
        self.values = rng.normal(size=len(self.observed)).astype(DTYPE)

    @property
    def square(self) -> bool:
        return self.order == 2 and self.shape[0] == self.shape[1]

    @property
    def order(self) -> int:
        return len(self.shape)

    @property
    def precise_factors(self) -> list[np.ndarray]:
        return [factor.astype(np.float64) for factor in self.factors]

    @property
    def components(self) -> list[np.ndarray]:
        """Of a CP factorization, the outer product of every component's vectors."""
        return [
            functools.reduce(np.multiply.outer, columns)
            for columns in zip(*(factor.T for factor in self.precise_factors), strict=True)
        ]

    @property
    def factorization(self) -> ff.DeepMatrix | ff.CP | None:
        if self.kind == "cp":
            return ff.CP(self.shape, rank=self.factors[0].shape[1])
        if self.kind == "deep":
            hidden = tuple(factor.shape[0] for factor in self.factors[:-1])
            return ff.DeepMatrix(self.shape, depth=len(self.factors), hidden=hidden)
        return None

    @functools.cached_property
    def gradient(self) -> np.ndarray:
        gradient = np.zeros(self.shape)
        for place, value in zip(self.observed, self.values, strict=True):
            gradient[place] = self.matrix[place] - float(value)
        return gradient

    def problem(self) -> ff.Completion:
        return ff.Completion(self.shape, self.observed, self.values, target=self.target)

    def snapshot(self, factors, problem=None) -> ff.Snapshot:
        problem = self.problem() if problem is None else problem
        factorization = self.factorization
        if factorization is None:
            return ff.Snapshot(problem, ff.Dense(factors[0]))
        product = ff.Factored(factorization, factors)
        return ff.Snapshot(problem, product, factorization=factorization, factors=factors)


def _cases() -> list[Case]:
    shapes = {
        "2x2": ((2, 2), 2),
        "3x3": ((3, 3), 3),
        "4x2": ((4, 2), 2),
        "1x1": ((1, 1), 1),
        "5x5-of-rank-3": ((5, 5), 3),
        "zero": ((3, 3), 0),
    }
    cases = []
    for seed, (name, ((rows, columns), rank)) in enumerate(shapes.items()):
        rng = np.random.default_rng(seed)
        # Wide hidden layers keep the condition number of the product below 100.
        first = rank if 0 < rank < min(rows, columns) else 8
        widths = (columns, first, 8, rows)
        factors = [
            rng.normal(size=(after, before)) / np.sqrt(before)
            for before, after in itertools.pairwise(widths)
        ]
        if rank == 0:
            factors[-1] *= 0
        matrix = functools.reduce(lambda product, factor: factor @ product, factors)
        cases.append(Case(f"{name}-dense", (matrix,), rank, "dense"))
        cases.append(Case(f"{name}-deep", factors, rank, "deep"))
    return cases


def _cp_cases() -> list[Case]:
    """Components of different sizes; `rank` is that of the matrix where the product is one."""
    cases = []
    shapes = [((3, 3), 4, 3), ((2, 3, 4), 3, 3), ((3, 2, 2, 3), 2, 2)]
    for seed, (shape, components, rank) in enumerate(shapes):
        rng = np.random.default_rng(100 + seed)
        factors = [rng.normal(size=(size, components)) for size in shape]
        cases.append(Case("x".join(map(str, shape)) + "-cp", factors, rank, "cp"))
    rng = np.random.default_rng(200)
    factors = [rng.normal(size=(size, 3)) for size in (2, 4, 2)]
    factors[1][:, 1] = 0
    cases.append(Case("zero-component-cp", factors, 2, "cp"))
    cases.append(Case("zero-cp", [*factors[:2], 0 * factors[2]], 0, "cp"))
    # Unfoldings of ranks 2, 2 and 1.
    core = rng.normal(size=(2, 2, 1))
    bases = [np.linalg.qr(rng.normal(size=(4, rank)))[0] for rank in core.shape]
    tensor = np.einsum("abc,ia,jb,kc->ijk", core, *bases)
    cases.append(Case("unequal-ranks-dense", (tensor,), 2, "dense"))
    return cases


CASES = {case.name: case for case in [*_cases(), *_cp_cases()]}


def _sigma(case: Case) -> np.ndarray:
    return scipy.linalg.svdvals(case.matrix)


def _log(values) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.abs(values))


def _truncated(case: Case, k: int) -> np.ndarray:
    """The best approximation of rank k, by Eckart and Young."""
    left, values, right = np.linalg.svd(case.matrix, full_matrices=False)
    return (left[:, :k] * values[:k]) @ right[:k]


def _schatten(case: Case, p: float):
    if p < 1 and 0 < case.rank < min(case.shape):
        return ANY  # eps^p / p is not small; diagonal matrices test this in test_norms.py
    return np.linalg.norm(_sigma(case), p)


def _effective_rank(case: Case) -> float:
    return float(np.exp(scipy.stats.entropy(_sigma(case)))) if case.rank else 0.0


def _log_singular_values(case: Case) -> np.ndarray:
    logs = _log(_sigma(case))
    if case.rank:
        logs[case.rank :] = ANY
    return logs


def _gradient_alignment(case: Case) -> np.ndarray:
    left, _, right = np.linalg.svd(case.matrix, full_matrices=False)
    along = np.array([u @ case.gradient @ v for u, v in zip(left.T, right, strict=True)])
    along[case.rank :] = ANY  # the null space has no preferred vectors
    return along / np.linalg.norm(case.gradient)


def _held_out(case: Case) -> float:
    errors = [case.matrix[place] - float(case.target[place]) for place in case.hidden]
    return sum(error**2 for error in errors) / 2


def _balancedness_gap(case: Case) -> float:
    factors = case.precise_factors
    if case.kind == "cp":
        return np.max(np.abs(_norm_differences(case)))
    return max(
        np.linalg.norm(outer.T @ outer - inner @ inner.T, 2)
        for inner, outer in itertools.pairwise(factors)
    )


def _norm_differences(case: Case) -> np.ndarray:
    squares = [
        [vector @ vector for vector in np.transpose(factor)] for factor in case.precise_factors
    ]
    return np.array([np.subtract(b, a) for a, b in itertools.pairwise(squares)])


def _component_norms(case: Case) -> np.ndarray:
    return np.array([np.linalg.norm(component.ravel()) for component in case.components])


def _component_alignment(case: Case) -> np.ndarray:
    cosines = []
    for component in case.components:
        size = np.linalg.norm(component.ravel()) * np.linalg.norm(case.gradient.ravel())
        cosines.append(-np.sum(case.gradient * component) / size if size else 0.0)
    return np.array(cosines)


def _unfolded(case: Case) -> list[np.ndarray]:
    """Singular values of every unfolding."""
    return [
        scipy.linalg.svdvals(np.moveaxis(case.matrix, mode, 0).reshape(size, -1))
        for mode, size in enumerate(case.shape)
    ]


def _multilinear_rank(case: Case, tolerance: float = 1e-6) -> list[int]:
    return [int(np.sum(values > tolerance * values[0])) for values in _unfolded(case)]


def _unfolding_effective_rank(case: Case) -> list[float]:
    return [
        float(np.exp(scipy.stats.entropy(values))) if case.rank else 0.0
        for values in _unfolded(case)
    ]


def _singular(case: Case) -> bool:
    return 0 < case.rank < case.shape[0]


REFERENCES: dict[str, Callable] = {
    # norms
    "frobenius_norm": lambda case: np.linalg.norm(case.matrix.ravel()),
    "nuclear_norm": lambda case: np.linalg.norm(case.matrix, "nuc"),
    "spectral_norm": lambda case: np.linalg.norm(case.matrix, 2),
    "schatten_norm": _schatten,
    "entrywise_norm": lambda case, p: np.linalg.norm(case.matrix.ravel(), p),
    "ky_fan_norm": lambda case, k: np.linalg.norm(_truncated(case, k), "nuc"),
    "max_norm": lambda case: np.max(np.abs(case.matrix)),
    # ranks
    "rank": lambda case, t=1e-6: np.linalg.matrix_rank(case.matrix, tol=t * _sigma(case)[0]),
    "effective_rank": _effective_rank,
    "effective_rank_excess": lambda case: _effective_rank(case) - 1,
    "stable_rank": lambda case: (
        np.sum(case.matrix**2) / np.linalg.norm(case.matrix, 2) ** 2 if case.rank else 0.0
    ),
    "distance_to_rank": lambda case, k: np.linalg.norm(case.matrix - _truncated(case, k)),
    # spectrum
    "singular_values": _sigma,
    "log_singular_values": _log_singular_values,
    "gradient_alignment": _gradient_alignment,
    "determinant": lambda case: np.linalg.det(case.matrix),
    "log_abs_determinant": lambda case: (
        ANY if _singular(case) else _log(np.linalg.det(case.matrix))
    ),
    "determinant_sign": lambda case: (
        ANY if _singular(case) else np.sign(np.linalg.det(case.matrix))
    ),
    # fit
    "loss": lambda case: np.sum(case.gradient**2) / 2,
    "entry": lambda case, *index: case.matrix[index],
    "reconstruction_error": lambda case: (
        np.linalg.norm((case.matrix - case.target.astype(np.float64)).ravel())
        / np.linalg.norm(case.target.astype(np.float64).ravel())
    ),
    "held_out_loss": _held_out,
    "gradient_norm": lambda case: np.linalg.norm(case.gradient.ravel()),
    "product": lambda case: case.matrix,
    # conserved
    "balancedness_gap": _balancedness_gap,
    # tensors
    "component_norms": _component_norms,
    "largest_component_norms": lambda case, k: np.sort(_component_norms(case))[::-1][:k],
    "component_alignment": _component_alignment,
    "norm_differences": _norm_differences,
    "multilinear_rank": _multilinear_rank,
    "unfolding_effective_rank": _unfolding_effective_rank,
}

_POWERS = [(0.1,), (0.5,), (1,), (2,), (3.7,), (float("inf"),)]

# The parameters to test a family with, for a case; other families take their example, or none.
PARAMETERS: dict[str, Callable[[Case], list[tuple]]] = {
    "schatten_norm": lambda case: _POWERS,
    "entrywise_norm": lambda case: [(0.5,), (1,), (3.7,), (float("inf"),)],
    "ky_fan_norm": lambda case: [(k + 1,) for k in range(min(case.shape))],
    "distance_to_rank": lambda case: [(k,) for k in range(min(case.shape))],
    "rank": lambda case: [(), (0.7,)],
    "entry": lambda case: list(
        {
            (0,) * case.order,
            (0, case.shape[1] - 1) + (0,) * (case.order - 2),
            (case.shape[0] - 1,) + (0,) * (case.order - 1),
        }
    ),
    "largest_component_norms": lambda case: [
        (k + 1,) for k in range(case.factors[0].shape[1] if case.kind == "cp" else 1)
    ],
    "multilinear_rank": lambda case: [(), (0.3,)],
}

APPLIES: dict[str, Callable[[Case], bool]] = {
    "determinant": lambda case: case.square,
    "log_abs_determinant": lambda case: case.square,
    "determinant_sign": lambda case: case.square,
    "balancedness_gap": lambda case: case.kind != "dense",
    "component_norms": lambda case: case.kind == "cp",
    "largest_component_norms": lambda case: case.kind == "cp",
    "component_alignment": lambda case: case.kind == "cp",
    "norm_differences": lambda case: case.kind == "cp",
}

# All others are about matrices; `product` names the dimensions of a matrix.
_OF_TENSORS = {
    "frobenius_norm",
    "entrywise_norm",
    "max_norm",
    "loss",
    "entry",
    "reconstruction_error",
    "held_out_loss",
    "gradient_norm",
    "balancedness_gap",
    "component_norms",
    "largest_component_norms",
    "component_alignment",
    "norm_differences",
    "multilinear_rank",
    "unfolding_effective_rank",
}


def measures_of(family: str, case: Case) -> list[tuple[Measure, tuple]]:
    """The measures of a family that apply to a case, with their parameters."""
    if not APPLIES.get(family, lambda case: True)(case):
        return []
    if case.order > 2 and family not in _OF_TENSORS:
        return []
    parameters = PARAMETERS.get(family, lambda case: [MEASURES[family].example])(case)
    return [(MEASURES[family].make(*values), values) for values in sorted(parameters)]


def rows(module: str) -> list:
    """A `pytest.param` (case, measure, family, parameters) for every row of `_measure/module`."""
    return [
        pytest.param(case, measure, family, values, id=f"{measure.name}-{case.name}")
        for family in REFERENCES
        if MEASURES[family].make.__module__ == f"factorflow._measure.{module}"
        for case in CASES.values()
        for measure, values in measures_of(family, case)
    ]


@functools.cache
def evaluated(case: Case) -> dict[str, np.ndarray]:
    """Every measure of a case, compiled together as a run compiles them."""
    measures = [measure for family in REFERENCES for measure, _ in measures_of(family, case)]

    def observe(factors):
        snapshot = case.snapshot(factors)
        return {measure.name: measure(snapshot) for measure in measures}

    factors = tuple(jnp.asarray(factor) for factor in case.factors)
    return {name: np.asarray(value) for name, value in jax.jit(observe)(factors).items()}


def assert_agrees(case: Case, measure: Measure, family: str, parameters: tuple) -> None:
    """The compiled measure against its reference, wherever the reference has an answer."""
    actual = evaluated(case)[measure.name]
    expected = np.asarray(REFERENCES[family](case, *parameters), np.float64)
    assert actual.dtype == DTYPE
    assert actual.shape == expected.shape
    assert actual.ndim == len(measure.dims)
    assert not np.isnan(actual).any()
    determined = ~np.isnan(expected)
    # Both sides round differently, and singular values amplify by at most the condition number.
    assert_close(actual[determined], expected[determined], "linear_algebra")


@functools.partial(jax.jit, static_argnums=0)
def _observe(measures: tuple[Measure, ...], matrix) -> dict:
    problem = ff.Completion(matrix.shape, [[0, 0]], np.ones(1, DTYPE))
    snapshot = ff.Snapshot(problem, ff.Dense(matrix))
    return {measure.name: measure(snapshot) for measure in measures}


def observe(names, matrix) -> dict[str, jax.Array]:
    """Measures of a dense matrix; equal names and shapes share a compilation."""
    observed = _observe(as_measures(names), jnp.asarray(matrix, DTYPE))
    return {name: observed[name] for name in names}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe_deep(measures: tuple[Measure, ...], fz: ff.DeepMatrix, problem, factors) -> dict:
    snapshot = ff.Snapshot(problem, ff.Factored(fz, factors), factorization=fz, factors=factors)
    return {measure.name: measure(snapshot) for measure in measures}


def observe_deep(names, factors, problem=None) -> dict[str, np.ndarray]:
    """Measures of the product of deep factors."""
    factors = tuple(jnp.asarray(factor, DTYPE) for factor in factors)
    shape = (factors[-1].shape[0], factors[0].shape[1])
    hidden = tuple(factor.shape[0] for factor in factors[:-1])
    fz = ff.DeepMatrix(shape, depth=len(factors), hidden=hidden)
    problem = ff.Completion(shape, [[0, 0]], np.ones(1, DTYPE)) if problem is None else problem
    observed = _observe_deep(as_measures(names), fz, problem, factors)
    return {name: np.asarray(observed[name]) for name in names}


def together(observed: dict[str, np.ndarray], names=None) -> np.ndarray:
    """Numbers in the order of `names`, as one array."""
    return np.stack([observed[name] for name in names or observed])


# Sizes whose squares underflow or overflow in the job's dtype, while the sizes themselves do not.
EXTREMES = (1e-200, 1e200) if DTYPE.itemsize == 8 else (1e-25, 1e25)

MATRICES = {
    shape: np.random.default_rng(sum(shape)).normal(size=shape)
    for shape in [(2, 2), (3, 3), (4, 2), (2, 4)]
}
every_matrix = pytest.mark.parametrize("matrix", MATRICES.values(), ids=map(str, MATRICES))


def orthogonal(rng: np.random.Generator, dim: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]

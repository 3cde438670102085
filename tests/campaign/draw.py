"""Random runs: structures, which compile once, and many runs of each."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import factorflow as ff
from factorflow._spec import RunSpec, prepare

__all__ = ["Structure", "draw_run", "draw_structure"]

ROWS = 4
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the runs of one structure share."""

    number: int
    shape: tuple[int, int]
    depth: int
    hidden: tuple[int, ...]
    sensing: int
    penalty: str
    normalization: str
    starts: str
    dynamics: str
    observed: str
    certify: str
    dtype: str
    vanishing: bool

    @property
    def square(self) -> bool:
        return self.shape[0] == self.shape[1]

    @property
    def numbers(self) -> int:
        """In all factors."""
        sizes = (self.shape[1], *self.hidden, self.shape[0])
        return sum(a * b for a, b in itertools.pairwise(sizes))

    @property
    def descends(self) -> bool:
        return self.dynamics == "descent"

    def __str__(self) -> str:
        width = "x".join(map(str, self.hidden)) or "-"
        kind = f"sensing {self.sensing}" if self.sensing else "completion"
        return (
            f"{self.shape[0]}x{self.shape[1]} depth {self.depth} hidden {width} {kind} "
            f"{self.penalty} {self.normalization} {self.starts} {self.dynamics} at "
            f"{self.observed} {self.certify} {self.dtype}"
        )


def draw_structure(seed: int, number: int) -> Structure:
    rng = np.random.default_rng([seed, number])
    depth = int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.04, 0.4, 0.3, 0.12, 0.07, 0.07]))
    largest = 10 if depth < 4 else 5
    rows = _size(rng, largest)
    columns = rows if rng.random() < 0.7 else _size(rng, largest)
    shape = (rows, columns)
    starts = str(rng.choice(["balanced", "unbalanced", "deficient"], p=[0.55, 0.38, 0.07]))
    if depth == 1:
        starts = "unbalanced"
    narrow = min(shape)
    if rng.random() < 0.65:
        hidden = (narrow,) * (depth - 1)
    else:
        least = narrow if rng.random() < 0.7 else 1
        hidden = tuple(int(h) for h in rng.integers(least, narrow + 3, depth - 1))
    penalty = str(rng.choice(["squared", "huber", "absolute"], p=[0.8, 0.13, 0.07]))
    sensing = 0
    if penalty == "squared" and rng.random() < 0.15:
        sensing = int(rng.integers(1, min(rows * columns, 20) + 1))
    dtype = "float32" if rng.random() < 0.15 else "float64"
    dynamics = _dynamics(rng, shape, depth, hidden, starts, penalty)
    descends = dynamics == "descent"
    observed = str(rng.choice(["loss", "time", "step"], p=[0.65, 0.2, 0.15]))
    charted = dynamics in ("split", "spectral", "radau", "chosen")
    full = descends or rng.random() < (0.3 if charted else 0.9)
    return Structure(
        number,
        shape,
        depth,
        hidden,
        sensing,
        penalty,
        str(rng.choice(["half_sum", "mean"], p=[0.8, 0.2])),
        starts,
        dynamics,
        observed,
        "full" if full else "cheap",
        dtype,
        vanishing=dtype == "float32" and rng.random() < 0.1,
    )


def _size(rng, largest: int) -> int:
    if rng.random() < 0.8:
        return int(rng.choice([1, 2, 3, 4], p=[0.04, 0.46, 0.32, 0.18]))
    return int(rng.integers(5, max(largest, 5) + 1))


def _dynamics(rng, shape, depth, hidden, starts, penalty) -> str:
    smooth = penalty != "absolute"
    square = shape[0] == shape[1] and shape[0] >= 2
    chart = square and depth > 1 and starts == "balanced" and smooth
    chart = chart and min(hidden) >= shape[0]
    sizes = [shape[1], *hidden, shape[0]]
    numbers = sum(a * b for a, b in zip(sizes[1:], sizes[:-1], strict=True))
    options = {"chosen": 3.0, "Stabilized": 1.0, "Tsit5": 0.7, "Dopri8": 0.7, "descent": 1.0}
    if chart:
        options["split"] = 1.0
        if shape == (2, 2):
            options["spectral"] = 0.5
    if smooth and numbers <= 32:
        options["radau"] = 1.2
    names, weights = list(options), np.array(list(options.values()))
    return str(rng.choice(names, p=weights / weights.sum()))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, by its seed, with a word on how it was made."""

    name: str
    about: str
    spec: RunSpec
    fz: Any = None


def measures_of(structure: Structure) -> tuple[str, ...]:
    names = ["product", "loss", "log_singular_values", "singular_values", "nuclear_norm"]
    names += ["schatten_norm[0.5]", "effective_rank_excess"]
    if min(structure.shape) > 1:
        names.append("distance_to_rank[1]")
    if min(structure.shape) > 2:
        names.append(f"distance_to_rank[{min(structure.shape) - 1}]")
    if structure.square:
        names.append("log_abs_determinant")
    if structure.depth > 1:
        names.append("balancedness_gap")
    return tuple(names)


def draw_run(seed: int, structure: Structure, index: int) -> Run:
    """Run `index` of a structure. **Raises:** `ValueError` where factorflow refuses it."""
    rng = np.random.default_rng([seed, structure.number, index])
    single = structure.dtype == "float32"
    size = 1.0
    if rng.random() < 0.4:
        size = 10 ** (rng.uniform(-4, 4) if single else rng.uniform(-8, 8))
    if structure.descends:
        size = 10 ** rng.uniform(-1, 1)
    family = str(rng.choice(_families(structure)))
    target = size * _target(rng, structure, family)
    scale = _scale(rng, structure) * (size if rng.random() < 0.7 else 1.0)
    problem, about = _problem(rng, structure, family, target)
    fz = ff.DeepMatrix(structure.shape, structure.depth, structure.hidden or None)
    factors = _start(rng, structure, family, fz, scale, target)
    factors = jax.tree.map(lambda w: jnp.asarray(np.asarray(w), structure.dtype), factors)
    loss = float(problem.loss(ff.Dense(jnp.asarray(fz.compose(factors), problem.values.dtype))))
    dynamics, unit = _flow_or_descent(rng, structure, size, scale, problem)
    observe, stop = _observe(rng, structure, loss, unit, size, single)
    spec = prepare(
        problem,
        fz,
        dynamics,
        factors,
        observe=observe,
        stop=stop,
        measures=measures_of(structure),
    )
    name = f"{structure.number}.{index}"
    return Run(name, f"{family} start {scale:.0e}, target {size:.0e} {about}", spec, fz)


def _families(structure: Structure) -> list[str]:
    if structure.depth == 1:
        return ["gaussian"]
    same = structure.square and len({structure.shape[0], *structure.hidden}) == 1
    if structure.starts == "balanced":
        found = ["balanced", "balanced", "identity", "equal"]
        if structure.square:
            found += ["symmetric", "crossing", "commuting", "identity"]
        return found
    if structure.starts == "deficient":
        return ["deficient"]
    found = ["gaussian", "gaussian", "imbalanced", "imbalanced"]
    if same:
        found += ["repeated", "mirrored", "orthogonal"]
    elif structure.square and structure.hidden == structure.hidden[::-1]:
        found += ["mirrored"]
    return found


def _scale(rng, structure: Structure) -> float:
    if structure.vanishing:
        return 10 ** rng.uniform(-30, -15)
    if structure.descends:
        return 10 ** rng.uniform(-3, -0.3)
    if structure.dtype == "float32":
        return 10 ** rng.uniform(-8, 0.5)
    kind = rng.random()
    if kind < 0.5:
        return 10 ** rng.uniform(-4, 1)
    return 10 ** (rng.uniform(-20, -4) if kind < 0.8 else rng.uniform(-40, -20))


def _rotation(rng, n: int) -> Array:
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def _target(rng, structure: Structure, family: str) -> Array:
    rows, columns = structure.shape
    if family in ("symmetric", "crossing", "commuting"):
        values = rng.normal(size=rows)
        if family == "crossing":
            values = np.abs(values)
            values[1:] *= np.where(rng.random(rows - 1) < 0.7, -1, 1)
        if rng.random() < 0.3:
            values = np.sign(values) * np.round(1 + np.abs(values))
        if family == "commuting" and rng.random() < 0.5:
            return np.diag(values)
        basis = _rotation(rng, rows)
        made = basis @ np.diag(values) @ basis.T
        return (made + made.T) / 2
    kind = rng.random()
    if family == "equal" and rng.random() < 0.5:
        return _rotation(rng, max(rows, columns))[:rows, :columns]
    if kind < 0.45:
        rank = int(rng.integers(1, min(rows, columns) + 1))
        left, right = rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns))
        return left @ right / np.sqrt(rank)
    if kind < 0.6:
        return np.round(2 * rng.normal(size=structure.shape)) / 2 + np.eye(rows, columns) / 4
    return rng.normal(size=structure.shape)


def _problem(rng, structure: Structure, family: str, target: Array):
    if structure.sensing:
        shape = (structure.sensing, *structure.shape)
        measurements = rng.normal(size=shape)
        if family in ("symmetric", "crossing", "commuting"):
            measurements = (measurements + np.swapaxes(measurements, 1, 2)) / 2
        values = np.tensordot(measurements, target, 2)
        problem = ff.Sensing(measurements, values, normalization=structure.normalization)
        return problem, "measured"
    rows, columns = structure.shape
    kind = str(rng.choice(["full", "random", "but one", "blocks", "unbounded"]))
    mask = np.ones(structure.shape, bool)
    if kind == "random":
        mask = rng.random(structure.shape) < rng.uniform(0.3, 0.95)
    elif kind == "but one":
        mask[int(rng.integers(rows)), int(rng.integers(columns))] = False
    elif kind == "blocks":
        row, column = int(rng.integers(0, rows + 1)), int(rng.integers(0, columns + 1))
        mask[:row, column:], mask[row:, :column] = False, False
    elif kind == "unbounded":
        mask[0, 0] = False
        if structure.square and rows > 1 and rng.random() < 0.7:
            size = np.max(np.abs(target))
            target = size * np.eye(rows)
            target[1, 1], target[0, 1], target[1, 0] = 0, size, size
    if family in ("symmetric", "crossing", "commuting"):
        mask = mask & mask.T
    if not mask.any():
        mask[-1, -1] = True
    problem = ff.Completion(
        structure.shape,
        np.argwhere(mask),
        target[mask],
        normalization=structure.normalization,
        loss=structure.penalty,
        room=rows * columns,
    )
    return problem, f"{kind} ({int(mask.sum())} seen)"


def _start(rng, structure: Structure, family: str, fz, scale: float, target: Array):
    key = jax.random.key(int(rng.integers(2**31)))
    rows, columns = structure.shape
    if family == "balanced":
        return ff.Balanced(product_scale=scale)(fz, key)
    if family == "identity":
        return ff.Identity(product_scale=scale)(fz)
    if family == "equal":
        return ff.balanced_factors(
            fz, jnp.asarray(scale * _rotation(rng, max(rows, columns))[:rows, :columns])
        )
    if family in ("symmetric", "crossing"):
        basis = _rotation(rng, rows) * np.sqrt(rng.uniform(0.1, 1, rows))
        made = scale * basis @ basis.T
        return ff.balanced_factors(fz, jnp.asarray((made + made.T) / 2))
    if family == "commuting":
        basis = np.linalg.eigh((target + target.T) / 2)[1]
        made = scale * basis @ np.diag(rng.uniform(0.1, 1, rows)) @ basis.T
        return ff.balanced_factors(fz, jnp.asarray((made + made.T) / 2))
    if family == "deficient":
        rank = int(rng.integers(1, max(min(rows, columns), 2)))
        left, right = rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns))
        return ff.balanced_factors(fz, jnp.asarray(scale * left @ right))
    if family == "imbalanced":
        size = scale ** (2 / structure.depth) * 10 ** rng.uniform(-6, 0)
        size = size if rng.random() < 0.7 else 10 ** rng.uniform(-17, 0)
        return ff.Imbalanced(product_scale=scale, imbalance=size)(fz, key)
    if family == "orthogonal":
        return ff.Orthogonal(product_scale=scale)(fz, key)
    if family == "gaussian":
        return ff.Gaussian(product_scale=scale)(fz, key)
    root = scale ** (1 / structure.depth)
    if family == "repeated":
        return (root * rng.normal(size=(rows, rows)),) * structure.depth
    sizes = fz.widths
    half = [
        root * rng.normal(size=(sizes[j + 1], sizes[j])) for j in range((structure.depth + 1) // 2)
    ]
    if structure.depth % 2:
        half[-1] = (half[-1] + half[-1].T) / 2
    return (*half, *[w.T for w in half[: structure.depth // 2][::-1]])


def _flow_or_descent(rng, structure: Structure, size: float, scale: float, problem):
    """The dynamics, and a time in which such a run makes its way."""
    depth = structure.depth
    count = float(problem.count) if hasattr(problem, "count") else problem.values.shape[0]
    weight = 2 / count if structure.normalization == "mean" else 1.0
    weight = (
        weight
        * {"squared": 1.0, "huber": 0.5 * min(1, 1 / size), "absolute": 0.5 / size}[
            structure.penalty
        ]
    )
    ratio = min(scale / size, 0.5)
    rate = weight * size ** (2 - 2 / depth)
    if depth == 1:
        unit = 1 / rate
    elif depth == 2:
        unit = -np.log(ratio) / rate
    else:
        unit = ratio ** (2 / depth - 1) / rate
    if structure.descends:
        return ff.GradientDescent(float(10 ** rng.uniform(-3, -1.3) / rate / depth)), unit
    if structure.dynamics == "chosen":
        return ff.GradientFlow(), unit
    return ff.GradientFlow(structure.dynamics), unit


def _observe(rng, structure: Structure, loss: float, unit: float, size: float, single: bool):
    # Charted steps are few and dear; a run that comes to rest takes all it is given.
    charted = structure.dynamics in ("split", "spectral", "radau", "chosen")
    steps = 10_000 if structure.descends else 250 if charted else 2_000
    if structure.observed == "time":
        times = np.sort(unit * 10 ** rng.uniform(-1, 0.7, ROWS))
        # What a run does after its rows, at rest most often, is not judged; nor is it worth while
        # to come to rows at rest by hundreds of stages a step.
        steps = min(steps, 500) if structure.dynamics == "Stabilized" else steps
        return ff.AtTimes(times), ff.Stop(max_time=float(times[-1]), max_steps=steps)
    if structure.observed == "step":
        most = 2_000 if structure.descends else 60
        chosen = np.sort(rng.choice(most, ROWS - 1, replace=False) + 1)
        return ff.AtSteps([0, *chosen]), ff.Stop(max_steps=int(chosen[-1]))
    lowest = -3.0 if single or structure.descends else -9.0
    shares = np.sort(10 ** rng.uniform(lowest, -0.01, ROWS))[::-1]
    levels = np.asarray(loss * shares, structure.dtype)
    eps = 1.2e-7 if single else 2.3e-16
    floor = (eps * max(size, 1e-300) * 4) ** 2
    levels = np.maximum(levels, floor * np.arange(ROWS, 0, -1))
    return ff.AtLosses(levels), ff.Stop(loss=float(levels[-1]), max_steps=steps)

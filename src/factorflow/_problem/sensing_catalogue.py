"""The named sensing problems of the field."""

import math

import jax
import jax.numpy as jnp

from factorflow._memory import refuse_too_large
from factorflow._names import named
from factorflow._problem.ground_truth import check_at_least_one, low_rank, rescaled
from factorflow._problem.sensing import Sensing
from factorflow._random import check_key, gaussian
from factorflow._settings import own_settings
from factorflow._types import FloatArray, RandomKey

__all__ = ["commuting_sensing_problem", "random_sensing_problem"]


@own_settings()
def random_sensing_problem(
    key: RandomKey,
    shape: tuple[int, ...] = (10, 10),
    rank: int = 2,
    n_measurements: int = 60,
    *,
    semidefinite: bool = False,
    frobenius_norm: float | None = None,
    normalization: str = "half_sum",
) -> Sensing:
    r"""Gaussian measurements of a random low-rank matrix, or low-CP-rank tensor.

    The ground truth is that of `random_low_rank_problem`. The entries of every $A_i$ are standard
    Gaussian. With `semidefinite` the ground truth is $U U^\top$ with a Gaussian $U$ of `rank`
    columns, and every $A_i$ the symmetric part of a Gaussian matrix, which measures the same of
    symmetric matrices. The measurements do not commute.

    **Arguments:**

    - `key`: a JAX random key.
    - `shape`, `rank`, `frobenius_norm`: of the ground truth, as for `random_low_rank_problem`.
    - `n_measurements`: how many there are, 1 or more.
    - `semidefinite`: see above; square matrices only.
    - `normalization`: as for `Sensing`.

    **Returns:** a `Sensing`, which holds all measurements: `n_measurements` times the size of the
    ground truth in numbers.

    **Raises:** `ValueError` for numbers below 1, and `semidefinite` where the shape is not square.

    !!! example

        ```python
        >>> import jax
        >>> import factorflow as ff
        >>> problem = ff.random_sensing_problem(
        ...     jax.random.key(0), (4, 4), rank=1, n_measurements=7, semidefinite=True)
        >>> problem.measurements.shape, bool((problem.target == problem.target.T).all())
        ((7, 4, 4), True)

        ```
    """
    check_key(key)
    check_at_least_one(rank=rank, n_measurements=n_measurements)
    if semidefinite and (len(shape) != 2 or shape[0] != shape[1]):
        raise ValueError(
            f"semidefinite=True needs a square matrix, got shape {shape}: leave it out."
        )
    _refuse_too_many(n_measurements, tuple(shape))
    factor_key, measurement_key = jax.random.split(key)
    measurements = gaussian(measurement_key, (n_measurements, *shape))
    if semidefinite:
        factor = gaussian(factor_key, (shape[0], rank))
        target = rescaled(_symmetric(factor @ factor.T), frobenius_norm)
        measurements = _symmetric(measurements)
    else:
        target = rescaled(low_rank(factor_key, tuple(shape), rank), frobenius_norm)
    values = jnp.tensordot(measurements, target, axes=len(shape))
    return Sensing(measurements, values, target, normalization=normalization)


@own_settings()
def commuting_sensing_problem(
    key: RandomKey,
    dim: int = 10,
    rank: int = 2,
    n_measurements: int = 5,
    *,
    basis: str = "identity",
    frobenius_norm: float | None = None,
    normalization: str = "half_sum",
) -> Sensing:
    r"""Commuting symmetric measurements of a positive semidefinite matrix.

    $$A_i = Q \operatorname{diag}(b_i) Q^\top, \qquad W^* = Q \operatorname{diag}(x) Q^\top$$

    with standard Gaussian $b_i$, and $x$ with `rank` positive entries, absolute values of Gaussian
    numbers. Gradient flow from a multiple of the identity then stays in the basis $Q$: it moves
    `dim` numbers.

    With `basis="identity"` this is exact in floating point too: what lies off the diagonal is zero
    and stays zero. With `basis="random"` measurements commute up to rounding only, and rounding is
    a seed that grows: flow stays in the basis for as long as the start is well above it.

    **Arguments:**

    - `key`: a JAX random key.
    - `dim`: rows and columns.
    - `rank`: of the ground truth, at most `dim`.
    - `n_measurements`: how many there are, 1 or more.
    - `basis`: `"identity"` or `"random"`, a random rotation.
    - `frobenius_norm`: Frobenius norm of the ground truth, by default `dim` (unit mean square
        entry).
    - `normalization`: as for `Sensing`.

    **Returns:** a `Sensing`.

    **Raises:** `ValueError` for numbers below 1, a rank above `dim`, and an unknown basis.

    !!! example

        ```python
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import factorflow as ff
        >>> problem = ff.commuting_sensing_problem(jax.random.key(0), 4, rank=1, n_measurements=2)
        >>> first, second = problem.measurements
        >>> bool(jnp.all(first @ second == second @ first))
        True

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{gunasekar2017implicit,
            author = {Gunasekar, Suriya and Woodworth, Blake and Bhojanapalli, Srinadh and
                      Neyshabur, Behnam and Srebro, Nathan},
            title = {Implicit Regularization in Matrix Factorization},
            booktitle = {Advances in Neural Information Processing Systems},
            year = {2017},
        }
        ```
    """
    check_key(key)
    check_at_least_one(dim=dim, rank=rank, n_measurements=n_measurements)
    if rank > dim:
        raise ValueError(f"rank must be at most dim={dim}, got {rank}.")
    named("basis", basis, ("identity", "random"))
    _refuse_too_many(n_measurements, (dim, dim))
    value_key, measurement_key, basis_key = jax.random.split(key, 3)
    # Which entries are positive makes no difference: the measurements are exchangeable.
    size = jnp.abs(jax.random.normal(value_key, (dim,))).at[rank:].set(0)
    spectra = jax.random.normal(measurement_key, (n_measurements, dim))
    target, measurements = jnp.diag(size), jax.vmap(jnp.diag)(spectra)
    if basis == "random":
        rotation = jnp.linalg.qr(jax.random.normal(basis_key, (dim, dim)))[0]
        target = _symmetric(rotation @ target @ rotation.T)
        measurements = _symmetric(rotation @ measurements @ rotation.T)
    target = rescaled(target, frobenius_norm)
    values = jnp.tensordot(measurements, target, axes=2)
    return Sensing(measurements, values, target, normalization=normalization)


def _refuse_too_many(count: int, shape: tuple[int, ...]) -> None:
    refuse_too_large(
        count * math.prod(shape),
        f"{count} measurements of shape {shape}",
        "Give a smaller shape or fewer measurements.",
    )


def _symmetric(matrices: FloatArray) -> FloatArray:
    """Equal to the transpose to the last digit, which products are not."""
    return (matrices + jnp.swapaxes(matrices, -1, -2)) / 2

"""What completion and sensing share: penalties, normalizations, minibatches, input checks."""

from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from factorflow._types import FloatArray, FloatScalar, RandomKey

__all__ = ["NORMALIZATIONS", "PENALTIES", "normalize", "require_finite", "sample"]


def _huber(residual):
    size = jnp.abs(residual)
    return jnp.where(size <= 1, residual**2 / 2, size - 0.5)


PENALTIES: dict[str, Callable] = {"squared": jnp.square, "absolute": jnp.abs, "huber": _huber}
NORMALIZATIONS = ("half_sum", "mean")


def normalize(normalization: str, total: FloatScalar, count: int | FloatScalar) -> FloatScalar:
    """`half_sum`: half of the total; `mean`: the total over the number of observations."""
    return total / 2 if normalization == "half_sum" else total / count


def require_finite(name: str, array) -> None:
    """Refuse NaN and infinity, naming the first offender, when the array is concrete."""
    if isinstance(array, jax.core.Tracer):
        return
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{name} holds {np.asarray(array)[where]} at {where}. Observations must be finite: "
            "leave missing entries out instead of marking them."
        )


def sample(
    key: RandomKey,
    values: FloatArray,
    weights: FloatArray,
    batch_size: int | None,
    label_noise: FloatScalar | None,
) -> tuple[FloatArray, FloatArray]:
    """Noisy values, and weights that keep `batch_size` observations and stay unbiased."""
    batch_key, noise_key = jax.random.split(key)
    if label_noise is not None:
        noise = jax.random.normal(noise_key, values.shape, values.dtype)
        values = values + label_noise * noise
    if batch_size is not None:
        count = values.shape[0]
        if not 1 <= batch_size <= count:
            raise ValueError(
                f"batch_size must be between 1 and the {count} observations, got {batch_size}."
            )
        chosen = jax.random.permutation(batch_key, count) < batch_size
        weights = jnp.where(chosen, weights * (count / batch_size), 0)
    return values, weights

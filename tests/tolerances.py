"""How close two numbers must be, by the reason they differ and by dtype.

Machine epsilon is 2.2e-16 in float64 and 1.2e-7 in float32. The absolute part is for quantities
of order one: pass `scale` when they are larger or smaller.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike


class Tolerance(NamedTuple):
    rtol: float
    atol: float


TOLERANCES: dict[str, dict[str, Tolerance]] = {
    # The same formula evaluated in another order: some hundred roundings.
    "rounding": {
        "float64": Tolerance(rtol=1e-13, atol=1e-14),
        "float32": Tolerance(rtol=5e-5, atol=5e-6),
    },
    # Decompositions and solves of well-conditioned matrices, backward stable: dimension times
    # condition number (about 1e4 together) times epsilon.
    "linear_algebra": {
        "float64": Tolerance(rtol=2e-12, atol=2e-12),
        "float32": Tolerance(rtol=1e-3, atol=1e-3),
    },
    # A derivative against central differences: epsilon^(2/3) at the best step, times 10.
    "finite_difference": {
        "float64": Tolerance(rtol=4e-10, atol=4e-10),
        "float32": Tolerance(rtol=3e-4, atol=3e-4),
    },
    # An integrated flow against a closed form or another solver: the global error is some ten
    # times the local tolerance asked for, 1e-8 and 1e-5.
    "integration": {
        "float64": Tolerance(rtol=1e-7, atol=1e-7),
        "float32": Tolerance(rtol=2e-4, atol=2e-4),
    },
}


def tolerance(reason: str, dtype: jax.typing.DTypeLike) -> Tolerance:
    return TOLERANCES[reason][np.dtype(dtype).name]


def assert_close(
    actual: ArrayLike, expected: ArrayLike, reason: str = "rounding", *, scale: float = 1.0
) -> None:
    """Compare within the tolerance of `actual`'s dtype: references are often Python floats."""
    actual = np.asarray(actual)
    rtol, atol = tolerance(reason, actual.dtype)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol * scale)

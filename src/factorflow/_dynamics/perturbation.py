"""Starts that differ from a given one by what rounding may do to it."""

import jax
import jax.numpy as jnp
import numpy as np

from factorflow._types import Factors

__all__ = ["moved_by_rounding"]

# In units of the last place. The integrators here round by a few of them per step and in a random
# direction; a start this far away has met more than a long run does.
_ULPS = 64.0
# Where frames are carried along they have been seen to round by 150; what is moved this far keeps
# its small singular values, and in single precision there is less room below the tolerance.
_BALANCED_ULPS = {"float64": 1024.0, "float32": 256.0}


def moved_by_rounding(
    factors: Factors, balanced: bool, seed: int, mirrored: bool = False
) -> Factors:
    r"""Factors moved at random by 64 units in the last place or so, the same for a seed.

    What a run does off an invariant set of the flow (symmetric or semidefinite products, a rank, a
    zero pattern, equal factors) is decided by rounding, which moves it off. A second run from
    here, which is off that set in a direction and by an amount of its own, leaves at another time.

    In general every entry moves by a share of the largest entry of its factor, as rounding moves
    it. Balanced factors that are followed through their product must stay balanced: their outer
    bases are turned and stretched, $W \to (I + A) W (I + B)$, which leaves the rank and the size of
    every singular value what they are.

    `mirrored` moves the other way, half as far: what grows from a zero then has the other sign, and
    leaves it at another time.
    """
    leaves, structure = jax.tree.flatten(factors)
    draw = np.random.default_rng([seed, len(leaves)])
    arrays = [np.asarray(leaf) for leaf in leaves]
    ulps = _BALANCED_ULPS[arrays[0].dtype.name] if balanced else _ULPS
    share = (-ulps / 2 if mirrored else ulps) * float(np.finfo(arrays[0].dtype).eps)

    def noise(*shape: int) -> np.ndarray:
        return share * draw.standard_normal(shape)

    if balanced:
        first, last = arrays[0], arrays[-1]
        arrays[0] = first + first @ noise(first.shape[1], first.shape[1]).astype(first.dtype)
        last = arrays[-1]
        arrays[-1] = last + noise(last.shape[0], last.shape[0]).astype(last.dtype) @ last
    else:
        arrays = [
            a + (np.max(np.abs(a), initial=0.0) * noise(*a.shape)).astype(a.dtype) for a in arrays
        ]
    return jax.tree.unflatten(structure, [jnp.asarray(array) for array in arrays])

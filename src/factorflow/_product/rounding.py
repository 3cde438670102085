"""What a product would be had it been rounded once more."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

__all__ = ["Rounding"]


class Rounding(eqx.Module):
    """Changes that are as good as random and no table to compile in.

    **Arguments:**

    - `size`: relative; a few units in the last place.
    - `draw`: which of many.
    - `separate`: whether the loss moves every entry of the product by that entry alone.
    - `beside`: the same as `size` where entries are known each to its own digits, but relative to
        the largest: such an entry that should be zero has been seen to be rounding all the same.
    """

    size: jax.Array
    draw: Any
    separate: bool = eqx.field(static=True, default=False)
    beside: Any = 0.0

    def of(self, array: jax.Array, place: int, entrywise: bool = False) -> jax.Array:
        """The array with its entries changed by this share of the largest, or each of its own."""
        largest = jnp.max(jnp.abs(array))
        sizes = self.size * array + self.beside * largest if entrywise else self.size * largest
        places = jnp.arange(place, place + array.size, dtype=array.dtype)
        # Digits far behind the point: the sines alone would make a matrix of rank two.
        large = 43758.5453 * jnp.sin((12.9898 + self.draw) * places)
        noise = (2 * (large - jnp.floor(large)) - 1).reshape(array.shape)
        return array + sizes * noise

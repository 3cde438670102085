"""Type aliases used across the library: written once, so that shapes read the same everywhere."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key, PyTree

__all__ = [
    "BoolArray",
    "BoolScalar",
    "Factors",
    "FloatArray",
    "FloatScalar",
    "IntScalar",
    "Matrix",
    "Penalty",
    "RandomKey",
    "Vector",
]

FloatArray: TypeAlias = Float[Array, "..."]
FloatScalar: TypeAlias = Float[Array, ""]
IntScalar: TypeAlias = Int[Array, ""]
BoolArray: TypeAlias = Bool[Array, "..."]
BoolScalar: TypeAlias = Bool[Array, ""]
Vector: TypeAlias = Float[Array, " n"]
Matrix: TypeAlias = Float[Array, "rows columns"]
RandomKey: TypeAlias = Key[Array, ""]
# Factors are any pytree of real arrays; a factorization says which.
Factors: TypeAlias = PyTree[Float[Array, "..."]]
# Elementwise penalty of residuals, e.g. the square.
Penalty: TypeAlias = Callable[[Any], Any]

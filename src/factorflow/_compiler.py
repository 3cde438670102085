"""Options of the compiler for runs."""

import functools
from typing import Any

import jax

__all__ = ["compiler_options"]

_OPTIONS = {
    # Small loops in `core` become hundreds of kernels; this emitter takes twice as long to compile
    # them as its predecessor, for code that is no faster (measured, jaxlib 0.10).
    "xla_cpu_use_fusion_emitters": False,
    # The library for matrix products, on its own: it would take sums too where a batch is large
    # enough, in another order, and a run would have other bits in a wide batch than in a narrow.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


@functools.cache
def compiler_options() -> dict[str, Any]:
    """The compiler's options, as far as this jaxlib knows them."""
    known = {}
    for name, value in _OPTIONS.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known

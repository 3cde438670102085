"""Double-double numbers: an unevaluated sum of two doubles, 106 bits (Dekker 1971, Knuth 1969)."""

from numba import njit, types
from numba.extending import intrinsic

__all__ = ["add", "div", "fma", "mul", "root", "scale", "two_product", "two_sum"]


@intrinsic
def fma(typingctx, a, b, c):
    """`a * b + c`, rounded once."""
    signature = types.float64(types.float64, types.float64, types.float64)

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return signature, generate


@njit(inline="always")
def two_sum(a, b):
    s = a + b
    z = s - a
    return s, (a - (s - z)) + (b - z)


@njit(inline="always")
def two_product(a, b):
    p = a * b
    return p, fma(a, b, -p)


@njit(inline="always")
def add(ah, al, bh, bl):
    s, e = two_sum(ah, bh)
    f, g = two_sum(al, bl)
    s, e = two_sum(s, e + f)
    return two_sum(s, e + g)


@njit(inline="always")
def mul(ah, al, bh, bl):
    p, e = two_product(ah, bh)
    return two_sum(p, e + (ah * bl + al * bh))


@njit(inline="always")
def scale(ah, al, b):
    """Times a double."""
    p, e = two_product(ah, b)
    return two_sum(p, e + al * b)


@njit(cache=True)
def div(ah, al, bh, bl):
    q = ah / bh
    ph, pl = scale(bh, bl, q)
    rh, rl = add(ah, al, -ph, -pl)
    q2 = rh / bh
    ph, pl = scale(bh, bl, q2)
    rh, _ = add(rh, rl, -ph, -pl)
    s, e = two_sum(q, q2)
    return two_sum(s, e + rh / bh)


@njit(cache=True)
def root(ah, al):
    """Square root, by one Newton step from the double one."""
    if ah <= 0:
        return 0.0, 0.0
    x = ah**0.5
    p, e = two_product(x, x)
    rh, _ = add(ah, al, -p, -e)
    return two_sum(x, rh / (2 * x))

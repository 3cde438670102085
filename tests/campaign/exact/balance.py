"""Singular values and balanced factors in double-double, by one-sided Jacobi rotations."""

import itertools
from fractions import Fraction

import numpy as np
from numba import njit

from campaign.exact.arithmetic import add, div, mul, root, scale, two_sum

__all__ = ["balanced", "exact_rank", "exactly_balanced", "log_singular_values", "multiply"]


@njit(cache=True)
def multiply(A, B):
    """`A B` of arrays `(2, rows, columns)`, high and low parts."""
    out = np.zeros((2, A.shape[1], B.shape[2]))
    for a in range(A.shape[1]):
        for c in range(B.shape[2]):
            high, low = 0.0, 0.0
            for b in range(A.shape[2]):
                ph, pl = mul(A[0, a, b], A[1, a, b], B[0, b, c], B[1, b, c])
                high, low = add(high, low, ph, pl)
            out[0, a, c], out[1, a, c] = high, low
    return out


@njit(cache=True)
def _dot(A, p, q):
    high, low = 0.0, 0.0
    for a in range(A.shape[1]):
        ph, pl = mul(A[0, a, p], A[1, a, p], A[0, a, q], A[1, a, q])
        high, low = add(high, low, ph, pl)
    return high, low


@njit(cache=True)
def _rotate(A, p, q, ch, cl, sh, sl):
    for a in range(A.shape[1]):
        xh, xl, yh, yl = A[0, a, p], A[1, a, p], A[0, a, q], A[1, a, q]
        uh, ul = mul(ch, cl, xh, xl)
        vh, vl = mul(sh, sl, yh, yl)
        A[0, a, p], A[1, a, p] = add(uh, ul, -vh, -vl)
        uh, ul = mul(sh, sl, xh, xl)
        vh, vl = mul(ch, cl, yh, yl)
        A[0, a, q], A[1, a, q] = add(uh, ul, vh, vl)


@njit(cache=True)
def _swap(A, p, q):
    for part in range(2):
        for a in range(A.shape[1]):
            A[part, a, p], A[part, a, q] = A[part, a, q], A[part, a, p]


@njit(cache=True)
def _jacobi(A, V):
    """Make the columns of A orthogonal, largest first; V gathers the rotations."""
    columns = A.shape[2]
    for _ in range(80):
        moved = False
        for p in range(columns - 1):
            largest = p
            for q in range(p + 1, columns):
                if _dot(A, q, q)[0] > _dot(A, largest, largest)[0]:
                    largest = q
            if largest != p:
                _swap(A, p, largest)
                _swap(V, p, largest)
            for q in range(p + 1, columns):
                ah, al = _dot(A, p, p)
                bh, bl = _dot(A, q, q)
                gh, gl = _dot(A, p, q)
                if abs(gh) <= 1e-31 * (ah**0.5) * (bh**0.5):
                    continue
                moved = True
                nh, nl = add(bh, bl, -ah, -al)
                zh, zl = div(nh, nl, 2 * gh, 2 * gl)
                if abs(zh) > 1e100:
                    th, tl = div(0.5, 0.0, zh, zl)
                else:
                    wh, wl = mul(zh, zl, zh, zl)
                    wh, wl = add(wh, wl, 1.0, 0.0)
                    wh, wl = root(wh, wl)
                    if zh >= 0:
                        wh, wl = add(wh, wl, zh, zl)
                        th, tl = div(1.0, 0.0, wh, wl)
                    else:
                        wh, wl = add(wh, wl, -zh, -zl)
                        th, tl = div(-1.0, 0.0, wh, wl)
                wh, wl = mul(th, tl, th, tl)
                wh, wl = add(wh, wl, 1.0, 0.0)
                wh, wl = root(wh, wl)
                ch, cl = div(1.0, 0.0, wh, wl)
                sh, sl = mul(ch, cl, th, tl)
                _rotate(A, p, q, ch, cl, sh, sl)
                _rotate(V, p, q, ch, cl, sh, sl)
        if not moved:
            return


def _scaled(A: np.ndarray) -> tuple[np.ndarray, float]:
    """With a largest entry near 1, so that no square is lost."""
    size = float(np.max(np.abs(A[0])))
    unit = 2.0 ** np.round(np.log2(size)) if size > 0 else 1.0
    return A / unit, unit


def decompose(A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Columns `A V`, `V`, norms of the columns (largest first), all double-double, and a unit."""
    work, unit = _scaled(A)
    V = np.zeros((2, A.shape[2], A.shape[2]))
    V[0] = np.eye(A.shape[2])
    _jacobi(work, V)
    norms = np.zeros((2, A.shape[2]))
    for c in range(A.shape[2]):
        norms[:, c] = root(*_dot(work, c, c))
    order = np.argsort(-norms[0], kind="stable")
    return work[:, :, order], V[:, :, order], norms[:, order], unit


def log_singular_values(A: np.ndarray) -> np.ndarray:
    """Natural logarithms, largest first."""
    tall = A if A.shape[1] >= A.shape[2] else np.swapaxes(A, 1, 2).copy()
    _, _, norms, unit = decompose(tall)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(norms[0]) + np.where(norms[0] > 0, norms[1] / norms[0], 0)
    return logs + np.log(unit)


@njit(cache=True)
def _power_root(sh, sl, depth):
    """The positive root of order `depth`, by one Newton step from the double one."""
    if sh <= 0:
        return 0.0, 0.0
    x = sh ** (1.0 / depth)
    ph, pl = x, 0.0
    for _ in range(depth - 1):
        ph, pl = scale(ph, pl, x)
    rh, _ = add(sh, sl, -ph, -pl)
    return two_sum(x, x * (rh / (depth * sh)))


def _fractions(factor) -> np.ndarray:
    return np.vectorize(Fraction, otypes=[object])(np.asarray(factor, float))


def exactly_balanced(factors) -> bool:
    """Whether these doubles are balanced to the last digit, as factors that mirror each other are.

    Such factors are followed as they are: anew from their product they would be balanced to 32
    digits, and in time cross a zero that they only approach.
    """
    exact = [_fractions(factor) for factor in factors]
    return all(bool(np.all(b.T @ b == a @ a.T)) for a, b in itertools.pairwise(exact))


def exact_rank(factors) -> int:
    """The rank of the product of these doubles in exact arithmetic."""
    product = None
    for factor in factors:
        exact = _fractions(factor)
        product = exact if product is None else exact @ product
    left, rank = product, 0
    while left.size and np.any(left != 0):
        row, column = np.argwhere(left != 0)[0]
        pivot = left[row] / left[row, column]
        left = np.delete(left - np.outer(left[:, column], pivot), row, axis=0)
        rank += 1
    return rank


def balanced(
    product: np.ndarray, widths: tuple[int, ...], most: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Balanced factors of `product` `(2, m, n)`: roots of its singular values in every factor.

    `most` is its rank: what is left beyond are the last of 32 digits, where there is nothing.
    """
    depth = len(widths) - 1
    tall = product.shape[1] >= product.shape[2]
    work = product if tall else np.swapaxes(product, 1, 2).copy()
    columns, V, norms, unit = decompose(work)
    rank = min(*widths, most)
    U = np.zeros((2, work.shape[1], rank))
    roots = np.zeros((2, rank))
    exponent = np.log2(unit)
    # The unit is a power of two; its root, too, only where the exponent divides.
    spare = int(exponent) % depth
    power = 2.0 ** ((int(exponent) - spare) // depth)
    for c in range(rank):
        high, low = norms[:, c]
        if high <= 0:
            continue
        for a in range(work.shape[1]):
            U[:, a, c] = div(columns[0, a, c], columns[1, a, c], high, low)
        roots[:, c] = _power_root(high * 2.0**spare, low * 2.0**spare, depth)
    roots *= power
    right = V[:, :, :rank]
    if not tall:
        U, right = right, U
    factors = []
    for j in range(depth):
        factor = np.zeros((2, widths[j + 1], widths[j]))
        for c in range(rank):
            if j == 0 and depth == 1:
                raise ValueError("one factor is always balanced")
            if j == 0:
                for b in range(widths[0]):
                    factor[:, c, b] = mul(*roots[:, c], *right[:, b, c])
            elif j == depth - 1:
                for a in range(widths[-1]):
                    factor[:, a, c] = mul(*U[:, a, c], *roots[:, c])
            else:
                factor[:, c, c] = roots[:, c]
        factors.append((factor[0], factor[1]))
    return factors

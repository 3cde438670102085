"""Taylor coefficients of the factors along gradient flow, for several runs side by side.

Arrays end in an axis of lanes, one run each, over which every inner loop is vectorized. A lane has
a unit of time of its own, so that coefficients neither overflow nor vanish.
"""

from numba import njit

from campaign.exact.arithmetic import fma, mul, scale, two_sum

__all__ = [
    "ABSOLUTE",
    "HUBER",
    "LANES",
    "SQUARED",
    "compose",
    "evaluate",
    "expand",
    "loss_of",
    "residuals_of",
]

LANES = 8
# Penalties: phi(e) = e^2; e^2 / 2 up to 1, then |e| - 1/2; |e|.
SQUARED, HUBER, ABSOLUTE = 0, 1, 2


@njit(inline="always")
def _gather(sh, sl, ah, al, bh, bl):
    """Add the products of two rows of lanes to compensated sums."""
    for lane in range(LANES):
        p = ah[lane] * bh[lane]
        e = fma(ah[lane], bh[lane], -p)
        s = sh[lane] + p
        z = s - sh[lane]
        e += (sh[lane] - (s - z)) + (p - z)
        sl[lane] += e + (ah[lane] * bl[lane] + al[lane] * bh[lane])
        sh[lane] = s


@njit(inline="always")
def _store(outh, outl, sh, sl):
    for lane in range(LANES):
        outh[lane], outl[lane] = two_sum(sh[lane], sl[lane])
        sh[lane] = 0.0
        sl[lane] = 0.0


@njit(cache=True)
def _product(A, B, k, rows, inner, columns, out, s):
    """Coefficient k of A B."""
    for a in range(rows):
        for c in range(columns):
            for i in range(k + 1):
                for b in range(inner):
                    _gather(
                        s[0], s[1], A[0, i, a, b], A[1, i, a, b], B[0, k - i, b, c],
                        B[1, k - i, b, c],
                    )  # fmt: skip
            _store(out[0, k, a, c], out[1, k, a, c], s[0], s[1])


@njit(cache=True)
def _product_of_transposed(A, B, k, rows, inner, columns, out, s):
    """Coefficient k of A' B."""
    for a in range(rows):
        for c in range(columns):
            for i in range(k + 1):
                for b in range(inner):
                    _gather(
                        s[0], s[1], A[0, i, b, a], A[1, i, b, a], B[0, k - i, b, c],
                        B[1, k - i, b, c],
                    )  # fmt: skip
            _store(out[0, k, a, c], out[1, k, a, c], s[0], s[1])


@njit(cache=True)
def _product_with_transposed(A, B, k, rows, inner, columns, out, s):
    """Coefficient k of A B', into coefficient 0 of `out`."""
    for a in range(rows):
        for c in range(columns):
            for i in range(k + 1):
                for b in range(inner):
                    _gather(
                        s[0], s[1], A[0, i, a, b], A[1, i, a, b], B[0, k - i, c, b],
                        B[1, k - i, c, b],
                    )  # fmt: skip
            _store(out[0, 0, a, c], out[1, 0, a, c], s[0], s[1])


@njit(cache=True)
def residual(k, measurements, values, P, i, rows, columns, sensed, places, s, out):
    """Coefficient k of residual i: `<A_i, W> - b_i`, in all lanes."""
    if sensed:
        for a in range(rows):
            for c in range(columns):
                _gather(s[0], s[1], P[0, k, a, c], P[1, k, a, c], measurements[i, a, c], s[2])
        _store(out[0], out[1], s[0], s[1])
    else:
        for lane in range(LANES):
            a, c = places[i, 0, lane], places[i, 1, lane]
            out[0, lane] = P[0, k, a, c, lane]
            out[1, lane] = P[1, k, a, c, lane]
    if k == 0:
        for lane in range(LANES):
            high, error = two_sum(out[0, lane], -values[i, lane])
            out[0, lane], out[1, lane] = two_sum(high, error + out[1, lane])


@njit(cache=True)
def _descent(k, problem, P, B, rows, columns, penalty, s, r):
    """Coefficient k of minus the loss's gradient with respect to the product."""
    measurements, values, weights, places, states, sensed = problem
    for a in range(rows):
        for c in range(columns):
            B[0, k, a, c] = 0.0
            B[1, k, a, c] = 0.0
    for i in range(values.shape[0]):
        residual(k, measurements, values, P, i, rows, columns, sensed, places, s, r)
        for lane in range(LANES):
            state = states[i, lane]
            if state == 0:
                factor = -2.0 if penalty == SQUARED else -1.0
                r[0, lane], r[1, lane] = mul(
                    r[0, lane], r[1, lane], factor * weights[0, i, lane],
                    factor * weights[1, i, lane],
                )  # fmt: skip
            else:
                sign = -float(state) if k == 0 else 0.0
                r[0, lane] = sign * weights[0, i, lane]
                r[1, lane] = sign * weights[1, i, lane]
        if sensed:
            for a in range(rows):
                for c in range(columns):
                    for lane in range(LANES):
                        ph, pl = scale(r[0, lane], r[1, lane], measurements[i, a, c, lane])
                        high, error = two_sum(B[0, k, a, c, lane], ph)
                        B[0, k, a, c, lane], B[1, k, a, c, lane] = two_sum(
                            high, error + (pl + B[1, k, a, c, lane])
                        )
        else:
            for lane in range(LANES):
                a, c = places[i, 0, lane], places[i, 1, lane]
                high, error = two_sum(B[0, k, a, c, lane], r[0, lane])
                B[0, k, a, c, lane], B[1, k, a, c, lane] = two_sum(
                    high, error + (r[1, lane] + B[1, k, a, c, lane])
                )


@njit(cache=True)
def expand(W, P, B, widths, order, problem, penalty, unit, work, s, r):
    """Fill coefficients 1 to `order` of the factors `W`, of time over `unit`, from coefficient 0.

    `P[j]` is the product of the first j + 1 factors, `B[j]` what comes back to factor j.
    """
    depth = len(widths) - 1
    rows, columns = widths[depth], widths[0]
    for k in range(order):
        for a in range(widths[1]):
            for c in range(columns):
                P[0, 0, k, a, c] = W[0, 0, k, a, c]
                P[0, 1, k, a, c] = W[0, 1, k, a, c]
        for j in range(1, depth):
            _product(W[j], P[j - 1], k, widths[j + 1], widths[j], columns, P[j], s)
        _descent(k, problem, P[depth - 1], B[depth - 1], rows, columns, penalty, s, r)
        for j in range(depth - 2, -1, -1):
            _product_of_transposed(
                W[j + 1], B[j + 1], k, widths[j + 1], widths[j + 2], columns, B[j], s
            )
        for j in range(depth):
            if j == 0:
                for a in range(widths[1]):
                    for c in range(columns):
                        work[0, 0, a, c] = B[0, 0, k, a, c]
                        work[1, 0, a, c] = B[0, 1, k, a, c]
            else:
                _product_with_transposed(
                    B[j], P[j - 1], k, widths[j + 1], columns, widths[j], work, s
                )
            for a in range(widths[j + 1]):
                for c in range(widths[j]):
                    for lane in range(LANES):
                        # `unit` is a power of two; 1 / (k + 1) to 32 digits.
                        inverse = 1.0 / (k + 1)
                        rest = -fma(inverse, float(k + 1), -1.0) / (k + 1)
                        W[j, 0, k + 1, a, c, lane], W[j, 1, k + 1, a, c, lane] = mul(
                            work[0, 0, a, c, lane] * unit[lane],
                            work[1, 0, a, c, lane] * unit[lane], inverse, rest,
                        )  # fmt: skip


@njit(cache=True)
def evaluate(W, widths, order, lane, x, out):
    """The factors of a lane at `x` units of time, by Horner's rule."""
    for j in range(len(widths) - 1):
        for a in range(widths[j + 1]):
            for c in range(widths[j]):
                high, low = W[j, 0, order, a, c, lane], W[j, 1, order, a, c, lane]
                for k in range(order - 1, -1, -1):
                    high, low = scale(high, low, x)
                    head, error = two_sum(W[j, 0, k, a, c, lane], high)
                    high, low = two_sum(head, error + (low + W[j, 1, k, a, c, lane]))
                out[j, 0, a, c], out[j, 1, a, c] = high, low


@njit(cache=True)
def compose(factors, widths, product, spare):
    """`W_L ... W_1` of one run's factors, into `product`."""
    columns = widths[0]
    for a in range(widths[1]):
        for c in range(columns):
            product[0, a, c] = factors[0, 0, a, c]
            product[1, a, c] = factors[0, 1, a, c]
    for j in range(1, len(widths) - 1):
        for a in range(widths[j]):
            for c in range(columns):
                spare[0, a, c] = product[0, a, c]
                spare[1, a, c] = product[1, a, c]
        for a in range(widths[j + 1]):
            for c in range(columns):
                high, low = 0.0, 0.0
                for b in range(widths[j]):
                    ph, pl = mul(
                        factors[j, 0, a, b], factors[j, 1, a, b], spare[0, b, c], spare[1, b, c]
                    )
                    head, error = two_sum(high, ph)
                    high, low = two_sum(head, error + (low + pl))
                product[0, a, c], product[1, a, c] = high, low


@njit(cache=True)
def residuals_of(product, widths, problem, lane, out):
    """All residuals of one lane's product."""
    measurements, values, _, places, _, sensed = problem
    for i in range(values.shape[0]):
        if sensed:
            high, low = 0.0, 0.0
            for a in range(widths[-1]):
                for c in range(widths[0]):
                    ph, pl = scale(product[0, a, c], product[1, a, c], measurements[i, a, c, lane])
                    head, error = two_sum(high, ph)
                    high, low = two_sum(head, error + (low + pl))
        else:
            high = product[0, places[i, 0, lane], places[i, 1, lane]]
            low = product[1, places[i, 0, lane], places[i, 1, lane]]
        head, error = two_sum(high, -values[i, lane])
        out[0, i], out[1, i] = two_sum(head, error + low)


@njit(cache=True)
def loss_of(residuals, problem, lane, penalty):
    """The loss of one lane."""
    weights = problem[2]
    total, rest = 0.0, 0.0
    for i in range(residuals.shape[1]):
        high, low = residuals[0, i], residuals[1, i]
        if high < 0:
            high, low = -high, -low
        if penalty == SQUARED:
            high, low = mul(high, low, high, low)
        elif penalty == HUBER:
            if high <= 1:
                high, low = mul(high, low, high, low)
                high, low = high / 2, low / 2
            else:
                head, error = two_sum(high, -0.5)
                high, low = two_sum(head, error + low)
        high, low = mul(high, low, weights[0, i, lane], weights[1, i, lane])
        head, error = two_sum(total, high)
        total, rest = two_sum(head, error + (rest + low))
    return total, rest

"""Can a curve be believed? What a run recorded about itself, and the verdict it supports."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._types import BoolArray, FloatArray, FloatScalar, IntScalar

__all__ = ["VERDICTS", "Certificate", "certify_from_invariants"]

VERDICTS = ("unverified", "step_limited", "rounding_limited", "flow_faithful")

# Rounding alone moves a conserved quantity by about eps times its scale per step, in a random walk.
# A drift this many times larger comes from the step size.
_ROUNDING_MARGIN = 30.0


class Certificate(eqx.Module):
    """Evidence about a trajectory.

    **Attributes:**

    - `verdict`: `"flow_faithful"`, `"step_limited"`, `"rounding_limited"` or `"unverified"`.
    - `trusted`: a flag per row: whether the evidence supports this row as gradient flow.
    - `contradicted`: a flag per row: whether an invariant of gradient flow is already violated
        there, so that the row cannot be gradient flow.
    - `evidence`: the numbers behind it: `balancedness_gap` at the start, `balancedness_drift` at
        the end, `determinant_sign_changed`.
    - `explanation`: one sentence.

    Descent, and flows that follow the factors without a companion run, are `"unverified"` unless an
    invariant already shows that they have left the flow. It is a-posteriori evidence, not a proof.
    """

    code: IntScalar
    trusted: BoolArray
    contradicted: BoolArray
    evidence: dict[str, jax.Array]

    @property
    def verdict(self) -> str:
        """The verdict of one (not batched) certificate."""
        return VERDICTS[int(np.asarray(self.code))]

    @property
    def explanation(self) -> str:
        """One sentence with the numbers that decided."""
        drift = float(np.asarray(self.evidence["balancedness_drift"]))
        if self.verdict in ("step_limited", "rounding_limited"):
            cause = "its step size" if self.verdict == "step_limited" else "rounding"
            return (
                "From balanced factors the determinant must keep its sign under gradient flow, but "
                f"here it changed: {cause} moved the conserved balance by {drift:.2g}, and rows "
                "from there on are not gradient flow."
            )
        return (
            f"No invariant is violated (balance drifted by {drift:.2g}), but nothing independent "
            "confirms the curve either."
        )


def certify_from_invariants(
    *,
    gap: FloatScalar,
    drift: FloatScalar,
    initial_scale: FloatScalar,
    scale: FloatScalar,
    steps: IntScalar,
    initial_sign: FloatScalar,
    signs: FloatArray,
    reached: BoolArray,
) -> Certificate:
    """The certificate of a run that was not compared with another.

    **Arguments:**

    - `gap`, `drift`: spectral size of the imbalance at the start, and of its change by the end.
    - `initial_scale`, `scale`: squared norm of the largest factor at the start and at the end,
        which set the rounding of the two.
    - `steps`: number of steps taken.
    - `initial_sign`, `signs`: sign of the determinant at the start and at each row (0 where the
        product is not square).
    - `reached`: which rows were reached.
    """
    eps = jnp.finfo(drift.dtype).eps
    balanced = gap <= 1e3 * eps * initial_scale
    flipped = reached & (signs * initial_sign < 0)
    # Once lost, always lost: a sign that returns does not restore the flow.
    contradicted = balanced & (jnp.cumsum(flipped) > 0) & reached
    rounding = _ROUNDING_MARGIN * eps * scale * jnp.sqrt(1.0 + steps.astype(drift.dtype))
    by_rounding = drift <= rounding
    code = jnp.where(
        jnp.any(contradicted),
        jnp.where(by_rounding, VERDICTS.index("rounding_limited"), VERDICTS.index("step_limited")),
        VERDICTS.index("unverified"),
    )
    return Certificate(
        code=code.astype(jnp.int32),
        trusted=jnp.zeros_like(reached),
        contradicted=contradicted,
        evidence={
            "balancedness_gap": gap,
            "balancedness_drift": drift,
            "determinant_sign_changed": jnp.any(flipped),
        },
    )

"""The object that holds one theorem: what it bounds, why it is true, and its formula."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from factorflow.reference._inputs import as_float, cast_like, require_nonnegative

PAPER = "razin2020implicit"
DERIVED = "derived for factorflow"

BIBTEX: Mapping[str, str] = MappingProxyType(
    {
        PAPER: """@inproceedings{razin2020implicit,
    title={Implicit Regularization in Deep Learning May Not Be Explainable by Norms},
    author={Razin, Noam and Cohen, Nadav},
    booktitle={Advances in Neural Information Processing Systems},
    volume={33},
    pages={21174--21187},
    year={2020},
}""",
    }
)


class Bound(eqx.Module):
    r"""A bound on a measured quantity that needs nothing but the loss.

    Calling it with a loss $\ell \ge 0$ (half the sum of squared residuals) of any shape returns
    the bound in the same shape and floating dtype; it works under `jit`, `vmap` and `grad`. Build
    instances with the functions of this package rather than by hand.

    **Attributes:**

    - `name`: unique name of the row.
    - `quantity`: the measure it applies to, e.g. `"entry[0,0]"` (then in absolute value).
    - `kind`: `"lower"` or `"upper"`.
    - `statement`: the claim and its hypotheses.
    - `proof_idea`: why it holds.
    - `source`: a BibTeX key of `BIBTEX`, or "derived for factorflow".
    - `formula`: the function of the loss and of the parameters, without input checks.
    - `parameters`: its numbers, in the order in which they follow the loss. They are leaves: they
        can be batched and traced.

    A lower bound that says nothing is 0; an upper bound that says nothing is infinite.

    **Example:**

    >>> from factorflow.reference import entry_bound
    >>> bound = entry_bound()
    >>> print(bound.kind, bound.quantity, f"{float(bound(0.02)):.2f}")
    lower entry[0,0] 4.80
    >>> bool(bound.holds(0.02, -5.0)), bool(bound.holds(0.02, 4.7))
    (True, False)
    """

    name: str = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    kind: Literal["lower", "upper"] = eqx.field(static=True)
    statement: str = eqx.field(static=True)
    proof_idea: str = eqx.field(static=True)
    source: str = eqx.field(static=True)
    formula: Callable[..., Array] = eqx.field(static=True)
    parameters: tuple[ArrayLike, ...] = ()

    def __call__(self, loss: ArrayLike) -> Float[Array, "..."]:
        """The bound at a loss.

        **Arguments:**

        - `loss`: half the sum of squared residuals, any shape.

        **Returns:** the bound, same shape and dtype; NaN where the loss is NaN.

        **Raises:** `ValueError` when a concrete loss is negative.
        """
        return _evaluated(self.formula, *self._numbers(loss))

    def holds(
        self, loss: ArrayLike, value: ArrayLike, slack_ulp: float = 8.0
    ) -> Bool[Array, "..."]:
        """Whether measured values respect the bound, up to rounding.

        Exact values rounded to their dtype miss a sharp bound by about one unit in the last
        place, so the bound is relaxed by the relative amount `slack_ulp * eps`, with `eps` the
        machine epsilon of the coarser of the two dtypes. The value must be that accurate too: a
        tiny singular value from an SVD carries an absolute error `eps * sigma_1`, so derive it
        from the determinant or from its logarithm instead.

        **Arguments:**

        - `loss`: half the sum of squared residuals, any shape.
        - `value`: the measured quantity, broadcast against `loss`; lower bounds compare its
            absolute value.
        - `slack_ulp`: relative slack in machine epsilons.

        **Returns:** booleans; False wherever the loss or the value is NaN.

        **Raises:** `ValueError` when a concrete loss or slack is negative.
        """
        require_nonnegative("slack_ulp", slack_ulp, "pass the number of rounding units to forgive")
        (loss, parameters), value = self._numbers(loss), as_float(value)
        dtypes = sorted((loss.dtype, value.dtype), key=lambda dtype: jnp.finfo(dtype).bits)
        slack = jnp.asarray(slack_ulp * float(jnp.finfo(dtypes[0]).eps), dtypes[1])
        return _respected(self.kind, self.formula, loss, parameters, value, slack)

    def _numbers(self, loss: ArrayLike) -> tuple[Array, tuple[Array, ...]]:
        require_nonnegative("loss", loss, "pass half the sum of squared residuals")
        loss = as_float(loss)
        return loss, tuple(cast_like(value, loss) for value in self.parameters)


# One compilation for a formula and not one for each of its operations.
@eqx.filter_jit
def _evaluated(formula: Callable[..., Array], loss: Array, parameters: tuple[Array, ...]) -> Array:
    # Comparisons and clips inside the formulas would turn a missing row into a number.
    return jnp.where(jnp.isnan(loss), loss, formula(loss, *parameters))


@eqx.filter_jit
def _respected(
    kind: str,
    formula: Callable[..., Array],
    loss: Array,
    parameters: tuple[Array, ...],
    value: Array,
    slack: Array,
) -> Array:
    bound = _evaluated(formula, loss, parameters).astype(slack.dtype)
    value = value.astype(slack.dtype)
    if kind == "lower":
        return jnp.abs(value) >= bound * (1.0 - slack)
    return value <= bound * (1.0 + slack)


def is_sharp(constants: str) -> bool:
    """Whether our constants were asked for; `ValueError` for an unknown choice."""
    if constants not in ("sharp", "paper"):
        raise ValueError(f'constants must be "sharp" or "paper", got {constants!r}: choose one')
    return constants == "sharp"

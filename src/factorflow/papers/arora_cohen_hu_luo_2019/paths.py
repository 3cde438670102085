"""Singular values along flows, and how the gradient lies in the bases of their vectors."""

from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from factorflow.experiments import Experiment
from factorflow.papers.arora_cohen_hu_luo_2019.settings import RANK

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["KEPT", "along"]

# Singular values that are kept; the first `RANK` of them are those of the ground truth.
KEPT = 8


# Threads of one small decomposition wait for each other ten times as long as it takes.
@threadpool_limits.wrap(limits=1, user_api="blas")
def along(dataset: "xr.Dataset", experiments: list[Experiment]) -> "xr.Dataset":
    r"""Every row's leading singular values, and the gradient in the bases of their vectors.

    With $W = \sum_i \sigma_i u_i v_i^\top$ and $G = \nabla\ell(W)$, `along_gradient` is
    $u_i^\top G v_i$, `alignment` that over $-\|G\|_2$, and `off_diagonal` the Frobenius norm of the
    matrix $u_i^\top G v_j$ for $i, j$ up to the rank of the ground truth, without its diagonal, as
    a share of the norm of all of it. `share` is the loss over that of the first row. Products are
    dropped.
    """
    products, reached_rows = np.asarray(dataset["product"]), np.asarray(dataset["reached"])
    values, inner = (np.full((*reached_rows.shape, KEPT), np.nan) for _ in range(2))
    sizes, off = (np.full(reached_rows.shape, np.nan) for _ in range(2))
    for run, experiment in enumerate(experiments):
        weights, observed = (np.asarray(part) for part in experiment.problem().masked)  # pyright: ignore[reportAttributeAccessIssue]
        for row in np.flatnonzero(reached_rows[run]):
            product = products[run, row]
            if not np.all(np.isfinite(product)):
                continue
            gradient = weights * (product - observed)
            left, spectrum, right = np.linalg.svd(product)
            block = left[:, :KEPT].T @ gradient @ right[:KEPT].T
            values[run, row], inner[run, row] = spectrum[:KEPT], np.diag(block)
            sizes[run, row] = np.linalg.norm(gradient, 2)
            block = block[:RANK, :RANK]
            off[run, row] = np.linalg.norm(block - np.diag(np.diag(block))) / np.linalg.norm(block)
    loss = np.asarray(dataset["loss"])
    wide, narrow = ("run", "row", "value"), ("run", "row")
    return dataset.drop_vars("product").assign(
        singular_values=(wide, values),
        along_gradient=(wide, inner),
        alignment=(wide, -inner / sizes[..., None]),
        off_diagonal=(narrow, off),
        share=(narrow, loss / loss[:, :1]),
    )

"""Measure everything, or the parts named on the command line: `run.py descent startup`."""

import sys

import descent
import figures
import flows
import jax
import large_flows
import minimum_norm
import squares
import startup
import tensor_rank
import tensors
import verdicts
from timing import table

PARTS = {
    "startup": startup,
    "descent": descent,
    "flows": flows,
    "squares": squares,
    "large_flows": large_flows,
    "tensors": tensors,
    "tensor_rank": tensor_rank,
    "minimum_norm": minimum_norm,
    "verdicts": verdicts,
    "figures": figures,
}


def main() -> None:
    """Print one table per part."""
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:] or PARTS:
        print(f"\n{name}\n{table(PARTS[name].measure())}", flush=True)


if __name__ == "__main__":
    main()

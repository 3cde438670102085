"""The Python blocks of the README and of docs/ run, whatever JAX's debugging switches say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
# A block, and the indented lines after it: what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n((?: {4}[^\n]*\n|\n)+))?", re.M | re.S)
SWITCHES = {
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
}
# JAX's own keys are made of seeds by a transfer that the guard refuses.
PREPARED = """
import jax
make = jax.random.key

def key(seed):
    with jax.transfer_guard("allow"):
        return make(seed)

jax.random.key = key
"""


def written(text: str) -> list[str]:
    """Lines without what differs between machines: the spaces that arrays are printed with."""
    return [re.sub(r"\s+", " ", line).replace("[ ", "[").strip() for line in text.splitlines()]


@pytest.mark.x64
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_and_print_what_the_page_shows(page):
    blocks = BLOCK.findall((ROOT / page).read_text())
    # The report of a paper is made and looked at by tests of its own.
    blocks = [block for block in blocks if "reproduce(" not in block[0]]
    if not blocks:
        return
    program = PREPARED + "\nprint('=====')\n".join(code for code, _ in blocks)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **SWITCHES, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for printed, (_, shown) in zip(done.stdout.split("=====\n"), blocks, strict=True):
        if shown:
            assert written(printed.strip()) == written(shown.strip())

"""How long a newcomer waits before anything happens."""

import subprocess
import sys
import time
from pathlib import Path

from timing import Row, best_of

_COMMAND = str(Path(sys.executable).parent / "factorflow")


def measure() -> list[Row]:
    """Import, first use of the JAX parts, and `--help`, each in a fresh process."""

    def fresh(*arguments: str) -> float:
        return best_of(5, lambda: subprocess.run(arguments, check=True, capture_output=True))

    bare = fresh(sys.executable, "-c", "pass")
    lazy = fresh(sys.executable, "-c", "import factorflow") - bare
    used = fresh(
        sys.executable, "-c", "import factorflow as ff; ff.simulate; ff.razin_cohen_problem"
    )
    return [
        Row("import factorflow, s", f"{lazy:.3f}", "at most 0.3"),
        Row("first use of JAX parts, s more", f"{used - bare - lazy:.2f}", "at most 1.5"),
        Row("factorflow --help, s", f"{fresh(_COMMAND, '--help'):.2f}", "at most 0.4"),
    ]


def timed(*arguments: str) -> tuple[float, float]:
    """Wall seconds and peak memory in GB of a command."""
    import resource

    start = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return seconds, peak

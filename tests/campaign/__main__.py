"""`python -m campaign --minutes 10 --seed 0`: see the paragraph in CONTRIBUTING."""

import argparse
import itertools
import multiprocessing
import os
import pathlib
import sys
import time
from typing import Any

from campaign.kept import Kept
from campaign.report import Report
from campaign.work import work

# Seconds of its own that a portion of a structure's runs may take before it counts as hung.
_HUNG = 500.0
# Workers that end like this one after another have a common cause.
_MOST_DEATHS = 3
# A worker's compilations are let go with it.
_STRUCTURES = 12
_BEGIN, _END = "<!-- campaign -->", "<!-- end of campaign -->"


class _Worker:
    def __init__(self, seed: int, numbers: list[int], seconds: float):
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(
            target=work, args=(seed, numbers, seconds, theirs), daemon=True
        )
        self.process.start()
        theirs.close()
        self.number, self.used, self.about = numbers[0], 0.0, ""
        self.portions: list[Any] = []

    def seconds(self) -> float:
        """Of processor time, where the system tells; a loaded machine is no hang."""
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat")
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def _campaign(arguments) -> Report:
    report, kept = Report(), Kept(arguments.kept, arguments.seed)
    for portions in kept.done.values():
        for portion in portions:
            report.add(portion)
    left = (n for n in itertools.count(arguments.first) if n not in kept.done)
    end = time.monotonic() + 60 * arguments.minutes
    workers: list[_Worker] = []
    deaths = 0

    def fresh() -> _Worker:
        numbers = list(itertools.islice(left, _STRUCTURES))
        return _Worker(arguments.seed, numbers, arguments.seconds)

    def enough() -> bool:
        over = arguments.runs is not None and report.counts["runs"] >= arguments.runs
        return over or time.monotonic() > end

    try:
        workers = [fresh() for _ in range(arguments.processes)]
        while not enough():
            for place, worker in enumerate(workers):
                if not worker.channel.poll(0.2):
                    if not worker.process.is_alive() or worker.seconds() - worker.used > _HUNG:
                        word = "hung" if worker.process.is_alive() else "died"
                        deaths += word == "died"
                        if deaths > _MOST_DEATHS:
                            raise SystemExit("Workers die; see what they printed above.")
                        print(f"HUNG structure {worker.number} ({word})", flush=True)
                        report.counts["hung"] += 1
                        worker.stop()
                        workers[place] = fresh()
                    continue
                try:
                    kind, value = worker.channel.recv()
                except EOFError:
                    worker.process.join(5)
                    continue
                if kind == "began":
                    worker.number, worker.used, worker.portions = value, worker.seconds(), []
                elif kind == "portion":
                    deaths, worker.about, worker.used = 0, value.structure, worker.seconds()
                    worker.portions.append(value)
                    for line in report.add(value):
                        print(line, flush=True)
                elif kind == "done":
                    kept.add(value, worker.portions)
                    print(f"# {report.counts['runs']} runs; {value}: {worker.about}", flush=True)
                else:
                    worker.stop()
                    workers[place] = fresh()
    finally:
        for worker in workers:
            worker.stop()
    return report


def _alone(seed: int, name: str, seconds: float) -> Report:
    import jax

    jax.config.update("jax_enable_x64", True)
    from campaign.batch import run_structure
    from campaign.draw import draw_structure

    number, _, index = name.partition(".")
    report, of = Report(), draw_structure(seed, int(number))
    for batch in run_structure(seed, of, seconds, int(index) if index else None):
        for line in report.add(batch):
            print(line)
        for run in batch.judgements:
            for row in run.rows:
                errors = ", ".join(f"{n} {e:.1e}" for n, e in row.errors.items())
                print(f"{run.name} row {row.index}: {row.doubt}; {errors} {row.why}")
        for name, message in batch.refused.items():
            print(f"REFUSED {name}: {message}")
    return report


def _write(path: pathlib.Path, report: Report, seed: int) -> None:
    """Between the marks of a page, which it must have."""
    text = path.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, found, after = rest.partition(_END)
    if not found:
        raise SystemExit(f"{path} has no {_BEGIN} ... {_END} to write between.")
    made = f"{_BEGIN}\n`make campaign SEED={seed}`:\n\n{report.summary()}\n{_END}"
    path.write_text(before + made + after)


def main() -> int:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, help="end after this many runs, too")
    parser.add_argument("--seconds", type=float, default=75, help="of a processor, per structure")
    parser.add_argument("--first", type=int, default=0, help="the first structure's number")
    parser.add_argument("--kept", type=pathlib.Path, help="a file to keep runs in and go on from")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", help="one run or structure, as it is printed: 17.4 or 17")
    parser.add_argument("--markdown", type=pathlib.Path, help="a page to write the table into")
    arguments = parser.parse_args()
    if arguments.only:
        report = _alone(arguments.seed, arguments.only, arguments.seconds)
    else:
        report = _campaign(arguments)
    print()
    print(report.summary())
    if arguments.markdown:
        _write(arguments.markdown, report, arguments.seed)
    found = report.counts["false trusts"] or report.counts["hung"]
    if not report.counts["compared"]:
        print("No trusted row was compared.")
        return 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

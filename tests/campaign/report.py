"""What a campaign has found, printed and as a table."""

from collections import Counter, defaultdict

import numpy as np

from campaign.batch import Batch
from campaign.judge import Judgement

__all__ = ["Report"]


class Report:
    """Sums over batches, and every run that was judged wrongly."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.structures: set[int] = set()
        self.by_integrator: dict[str, Counter[str]] = defaultdict(Counter)
        self.worst: dict[str, dict[str, float]] = defaultdict(dict)
        self.doubts: Counter[str] = Counter()
        self.lines: list[str] = []
        self.second_error = 0.0

    def add(self, batch: Batch) -> list[str]:
        """Count a batch; the lines to print about it."""
        lines = []
        self.counts["refused"] += len(batch.refused)
        self.structures.add(batch.structure.number)
        for name, message in batch.raised.items():
            self.counts["raised"] += 1
            lines.append(f"RAISED {name}: {message}")
        for judgement in batch.judgements:
            lines += self._add_run(judgement, batch)
        self.lines += lines
        return lines

    def _add_run(self, run: Judgement, batch: Batch) -> list[str]:
        mine = self.by_integrator[f"{run.integrator}, {batch.structure.dtype}"]
        for counter in (self.counts, mine):
            counter["runs"] += 1
            counter["rows"] += len(run.rows)
            counter["trusted"] += sum(row.trusted for row in run.rows)
            counter["asked"] += len(run.asked)
        worst = self.worst[f"{run.integrator}, {batch.structure.dtype}"]
        for row in run.rows:
            self.doubts[row.doubt] += 1
            compared = row.known and bool(row.promised)
            for counter in (self.counts, mine):
                counter["compared"] += compared and row.trusted
                counter["known"] += row.known
            if compared:
                for name in row.promised:
                    error = row.errors.get(name, np.nan)
                    if not np.isnan(error):
                        worst[name] = max(worst.get(name, 0.0), error)
        lines = []
        about = f"[{batch.structure}; {run.about}; {run.integrator}; {run.result}]"
        for row in run.false_trusts:
            wrong = {n: e for n, e in row.wrong(run.tolerance).items() if n in row.promised}
            errors = ", ".join(f"{n} {e:.1e}" for n, e in wrong.items())
            lines.append(
                f"FALSE TRUST {run.name} row {row.index}: {errors} (allowed {run.tolerance:.0e}) "
                f"{row.why} {about}"
            )
        for row in run.false_doubts:
            largest = max((e for e in row.errors.values() if not np.isnan(e)), default=0.0)
            lines.append(
                f"FALSE DOUBT {run.name} row {row.index}: {row.doubt}, largest error "
                f"{largest:.1e} {about}"
            )
        for counter in (self.counts, mine):
            counter["false trusts"] += len(run.false_trusts)
            counter["false doubts"] += len(run.false_doubts)
        return lines

    def summary(self) -> str:
        c = self.counts
        asked = c["asked"]
        lines = [
            f"{c['runs']} runs of {len(self.structures)} structures, {c['refused']} refused, "
            f"{c['raised']} raised, {c['hung']} structures hung",
            f"{c['rows']} rows reached, {asked} of them asked about, {c['trusted']} trusted "
            f"({_share(c['trusted'], asked)}), {c['compared']} trusted rows compared",
            f"false trusts: {c['false trusts']}",
            f"false doubts: {c['false doubts']} ({_share(c['false doubts'], asked)})",
            f"doubts: {dict(self.doubts.most_common())}",
            "",
            self.table(),
        ]
        return "\n".join(lines)

    def table(self) -> str:
        """Markdown: a line per integrator, with the worst errors of what was trusted."""
        head = "| followed by | runs | rows | trusted | compared | false trusts | false doubts |"
        lines = [head + " worst errors of trusted rows |", "|---" * 8 + "|"]
        for name in sorted(self.by_integrator):
            c, worst = self.by_integrator[name], self.worst[name]
            shown = sorted(worst.items(), key=lambda item: -item[1])[:4]
            errors = ", ".join(f"{n} {e:.0e}" for n, e in shown)
            lines.append(
                f"| {name} | {c['runs']} | {c['rows']} | {c['trusted']} | {c['compared']} | "
                f"{c['false trusts']} | {c['false doubts']} | {errors} |"
            )
        measures: dict[str, float] = {}
        for worst in self.worst.values():
            for name, error in worst.items():
                measures[name] = max(measures.get(name, 0.0), error)
        lines += ["", "| quantity | worst error of a trusted row |", "|---|---|"]
        lines += [f"| {name} | {error:.0e} |" for name, error in sorted(measures.items())]
        return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "-"

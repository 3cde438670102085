"""What two references do not agree on is not known; all else stays as it was judged."""

import numpy as np
import pytest

from campaign.judge import Judgement, Row

# Its arithmetic is its own: once is enough.
pytestmark = pytest.mark.x64


def test_false_trusts_are_forgotten_only_where_references_part():
    def false_trusts(parted: float) -> list[int]:
        # The last row is at a loss that the exact flow never reaches.
        rows = [
            Row(i, True, "none", ("time",), {"time": np.inf}, True, time)
            for i, time in enumerate([1.0, 2.0, np.inf])
        ]
        run = Judgement("0.0", "", "radau", 1e-6, "", 3, rows, "past", 1, True)
        run.forget_after(parted)
        return [row.index for row in run.false_trusts]

    assert false_trusts(np.inf) == [0, 1, 2]
    assert false_trusts(1.5) == [0]

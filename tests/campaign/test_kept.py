"""A campaign that was interrupted goes on."""

import pytest

from campaign.batch import Batch
from campaign.draw import draw_structure
from campaign.kept import Kept

# Its arithmetic is its own: once is enough.
pytestmark = pytest.mark.x64


def test_what_is_done_is_kept_and_what_was_cut_short_is_done_again(tmp_path):
    path = tmp_path / "runs"
    kept = Kept(path, seed=3)
    for number in 4, 2:
        kept.add(number, [Batch(draw_structure(3, number))])
    whole = path.stat().st_size
    kept.add(5, [Batch(draw_structure(3, 5))])
    with path.open("r+b") as file:
        file.truncate(whole + 20)
    again = Kept(path, seed=3)
    assert sorted(again.done) == [2, 4]
    assert again.done[4][0].structure == draw_structure(3, 4)
    again.add(7, [])
    assert sorted(Kept(path, seed=3).done) == [2, 4, 7]
    with pytest.raises(SystemExit, match="another seed or of other code"):
        Kept(path, seed=4)

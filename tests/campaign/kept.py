"""What a campaign has found, in a file: it may be interrupted, and go on where it was."""

import hashlib
import pathlib
import pickle

import campaign
import factorflow
from campaign.batch import Batch

__all__ = ["Kept"]


class Kept:
    """Portions of runs by the number of their structure; without a path nothing is kept.

    Each structure that is done is one pickle at the end of the file. One that was cut short, when
    the campaign was killed, is done again.
    """

    def __init__(self, path: pathlib.Path | None, seed: int):
        self.path, self.of = path, (seed, _fingerprint())
        self.done: dict[int, list[Batch]] = {}
        if path is None or not path.exists():
            return
        with path.open("rb") as file:
            while True:
                whole = file.tell()
                try:
                    of, number, portions = pickle.load(file)
                except (EOFError, pickle.UnpicklingError):
                    break
                if of != self.of:
                    raise SystemExit(
                        f"{path} holds runs of another seed or of other code; name another file."
                    )
                self.done[number] = portions
        with path.open("r+b") as file:
            file.truncate(whole)

    def add(self, number: int, portions: list[Batch]) -> None:
        """Keep a structure that is done."""
        self.done[number] = portions
        if self.path is not None:
            with self.path.open("ab") as file:
                pickle.dump((self.of, number, portions), file)


def _fingerprint() -> str:
    """Of all code that a campaign runs: figures of different code do not add up."""
    digest = hashlib.sha256()
    for package in factorflow, campaign:
        assert package.__file__ is not None
        for file in sorted(pathlib.Path(package.__file__).parent.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

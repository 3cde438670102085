"""An experiment to start from, and the command line without a process that loads JAX anew."""

import pytest

from factorflow.cli import main
from factorflow.cli.commands import _example


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """The file that `factorflow run --example` prints."""
    path = tmp_path_factory.mktemp("cli") / "example.json"
    path.write_text(_example().to_json())
    return path


@pytest.fixture
def command(capsys):
    """Runs the arguments of a command: its exit status, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return run

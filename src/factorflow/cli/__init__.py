"""The command line: arguments, commands, and how they end.

Nothing here imports JAX until a command needs it.
"""

from factorflow.cli.main import main as main

"""The `lgm` script: `service.cli`, and for `lgm serve` the imports of its workers beside its own."""

import sys

from service.forking import begin_imports


def main() -> None:
    """Run the command that the arguments name."""
    if sys.argv[1:2] == ["serve"] and "--help" not in sys.argv:
        begin_imports()
    from service.cli import app

    app()

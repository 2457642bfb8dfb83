"""The command ``stigg-guard``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from stigg_guard.errors import StiggGuardError
from stigg_guard.sidecar.__main__ import configure as configure_sidecar


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. An error of ours is one message on stderr and status 2."""
    parser = ArgumentParser(prog="stigg-guard", description="Guard views by what a customer has paid for.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    configure_sidecar(commands.add_parser("sidecar", help="run a local Stigg sidecar that needs no account"))
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except StiggGuardError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())

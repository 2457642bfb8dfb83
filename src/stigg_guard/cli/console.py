"""The console of commands: text, tables and JSON on standard output, warnings and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stigg_guard.foreign import printable

WIDEST = 60


def on_standard_output(text: str) -> None:
    """Prints a result. Whoever reads it may close it when they have seen enough; the command goes on all the same."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is left in its buffer goes there, too
        os.close(nowhere)


def _on_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """What a command prints on: ``say`` takes its result, ``tell`` what is said besides; both end the line themselves.

    With ``json`` results are JSON. ``good`` and ``bad`` colour a text. ``ledger`` is how the ledger's commands are
    called here, such as ``stigg-guard ledger``, for remedies.
    """

    ledger: str
    json: bool = False
    say: Callable[[str], object] = on_standard_output
    tell: Callable[[str], object] = _on_standard_error
    good: Callable[[str], str] = str
    bad: Callable[[str], str] = str

    def show(self, value: object, text: str) -> None:
        """Say a result: the value as JSON, or else the text."""
        self.say(json.dumps(value, indent=2, default=str) if self.json else text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their heads, in columns; a cell is one line, whatever is in it.

    A cell of more than ``WIDEST`` characters goes on past its column, which is as wide as the others need.
    """
    cells = [head, *(list(map(printable, row)) for row in rows)]
    widths = [max(len(text) for text in column if len(text) <= WIDEST) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )

"""How results look on a terminal."""

from __future__ import annotations

from stigg_guard.cli.console import table


def test_a_long_cell_widens_no_other_row() -> None:
    long = "x" * 61
    assert table(("what", "found", "to do"), [("a", "y" * 60, "look"), ("b", long, "ask")]).split("\n") == [
        f"what  found{' ' * 55}  to do",
        f"a     {'y' * 60}  look",
        f"b     {long}  ask",
    ]

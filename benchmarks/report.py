"""What a run found: a line of the console, JSON, and tables of docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import CONTROL_RANGE, Effort, Row
from benchmarks.servers import CORES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
PACKAGES = ("grpcio", "protobuf", "cachetools", "Django", "Flask")
LINE = "{:<66} {:>11} {:>11} {:>8} {:>12}  {:<14} {:<9} {:>5}"
HEAD = ("ours / floor", "ours", "floor", "ratio", "adds", "aim", "reached", "A/A")


def machine() -> str:
    """What the figures depend on."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    cores = len(CORES) or os.cpu_count()
    return (
        f"{python}, {platform.system()} {platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}, {packages}"
    )


def method(effort: Effort) -> str:
    """How the figures come about."""
    low, high = CONTROL_RANGE
    return (
        f"medians of {effort.rounds} rounds of {effort.laps} laps, floor - ours - floor; A/A is the floor over itself, "
        f"and outside {low:g}-{high:g} a row says nothing"
    )


def line(row: Row) -> str:
    """A line of the console."""
    return LINE.format(*_cells(row)).rstrip()


def write_json(file: Path, rows: Iterable[Row], **run: object) -> None:
    """Writes the rows, with seconds, calls per second and bytes as numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**run, "rows": [row._asdict() for row in rows]}, indent=2) + "\n")


def markdown(rows: Iterable[Row]) -> str:
    """A table of a page."""
    return table(HEAD, [_cells(row) for row in rows])


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def publish(block: str, text: str) -> None:
    """Puts the text between the two markers of a block of docs/performance.md.

    Raises:
        ValueError: the page has no such block.
    """
    begin, end = f"<!-- {block}: written by make -->\n", f"<!-- {block}: end -->"
    page, found = re.subn(
        f"(?s){re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", PAGE.read_text()
    )
    if found != 1:
        raise ValueError(f"{PAGE}: there is no block {block!r}, or more than one")
    PAGE.write_text(page)


def duration(seconds: float) -> str:
    """In microseconds with three digits at least, or in nanoseconds."""
    microseconds = seconds * 1e6
    if microseconds < 1:
        return f"{seconds * 1e9:.0f} ns"
    return f"{microseconds:.3g} us" if microseconds < 100 else f"{microseconds:,.0f} us"


def _cells(row: Row) -> tuple[str, ...]:
    control = "-" if row.control is None else f"{row.control:.2f}"
    return (
        row.name,
        _amount(row, row.ours),
        _amount(row, row.floor),
        _ratio(row.ratio),
        _added(row),
        row.aim,
        row.reached,
        control,
    )


def _amount(row: Row, value: float) -> str:
    return {"s": duration(value), "/s": f"{value:,.0f}/s", "B": f"{value:,.0f} B"}[row.unit]


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _added(row: Row) -> str:
    return {"s": f"{row.added * 1e6:+,.2f} us", "/s": "", "B": f"{row.added:+,.0f} B"}[row.unit]

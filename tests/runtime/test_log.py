"""The log: no text of a request, a customer or a server begins a line of it, and the manual has each of its lines."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

import stigg_guard
from stigg_guard import ConfigError, Customer, Entitlement, FeatureDenied, InvalidRequest, SidecarError
from stigg_guard.ledger import UsageKey
from stigg_guard.runtime.log import logger

PACKAGE = Path(stigg_guard.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
FORGED = "\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029CRITICAL forged \x1b[2J"
LEVELS = {
    **{name: name.upper() for name in ("debug", "info", "warning", "error", "critical")},
    "exception": "ERROR",
    "log": "",
}


@pytest.fixture
def written() -> Iterator[Callable[[], list[str]]]:
    """The lines that a handler of a project writes, in the plainest of formats."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    yield lambda: stream.getvalue().splitlines()
    logger.removeHandler(handler)


class Foreign(Exception):
    """An error of somebody else."""


@pytest.mark.parametrize(
    "told",
    [
        FORGED,
        UsageKey(FORGED, FORGED, FORGED),
        Customer(FORGED, FORGED),
        FeatureDenied(Entitlement(feature_id=FORGED, has_access=False), Customer(FORGED)),
        InvalidRequest(FORGED, FORGED),
        SidecarError(FORGED),
        Foreign(FORGED),
        [FORGED],
        Path(FORGED),
    ],
    ids=lambda told: type(told).__name__,
)
@pytest.mark.parametrize("template", ["usage of %s is lost", "usage of %r is lost"])
def test_what_is_told_stays_on_its_line(template: str, told: object, written: Callable[[], list[str]]) -> None:
    logger.warning(template, told)
    (line,) = written()
    assert line.startswith("WARNING usage of ")
    assert line.isprintable()
    assert "CRITICAL forged" in line


def test_figures_are_written_as_the_template_says(written: Callable[[], list[str]]) -> None:
    logger.warning("%g units and %d reports of %s", 2.0, 3, "customer-01")
    assert written() == ["WARNING 2 units and 3 reports of customer-01"]


def test_a_traceback_is_indented_whoever_raised(written: Callable[[], list[str]]) -> None:
    try:
        raise Foreign(f"no such plan: {FORGED}\nERROR forged too")
    except Foreign:
        logger.warning("a callable failed", exc_info=True)
    first, *traceback = written()
    assert first == "WARNING a callable failed"
    assert traceback[0] == "  Traceback (most recent call last):"
    assert traceback[-1] == "  ERROR forged too"
    assert all(line.startswith("  ") and line.isprintable() for line in traceback)


def test_the_faults_of_a_catalog_keep_their_lines(written: Callable[[], list[str]]) -> None:
    logger.warning("the catalog is wrong: %s", ConfigError("shop.toml: 2 faults", "  line 3, a", f"  line 4, {FORGED}"))
    first, second, third = written()
    assert (first, second) == ("WARNING the catalog is wrong: shop.toml: 2 faults", "  line 3, a")
    assert third.startswith("  line 4, ")


def test_an_error_is_one_line_wherever_it_is_shown() -> None:
    denied = FeatureDenied(Entitlement(feature_id="f", has_access=False), Customer("ann\nCRITICAL forged"))
    assert str(denied) == r"ann\nCRITICAL forged may not use f: UNKNOWN"


class Line(NamedTuple):
    """A call of a logger. ``level`` is empty where the code decides it."""

    place: str
    level: str
    template: str


def lines() -> Iterator[Line]:
    """Everything that is logged."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {ast.unparse(made.targets[0]): made.value for made in tree.body if isinstance(made, ast.Assign)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                level = LEVELS.get(node.func.attr)
                if level is not None and ast.unparse(node.func.value).rpartition(".")[2] == "logger":
                    said = node.args[not level]
                    template = ast.literal_eval(named.get(ast.unparse(said), said))
                    yield Line(f"{path.relative_to(PACKAGE)}:{node.lineno}", level, template)


def rows(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The table of a manual: in each row the levels, and the lines as patterns, in which … stands for anything."""
    table = page.read_text(encoding="utf-8").partition("\n## Log lines\n")[2]
    for row in re.findall(r"^\| ([A-Z].+) \| .+ \|$", table, re.MULTILINE):
        said = re.findall(r"`(.+?)`", row)
        yield row.partition("`")[0], [".*".join(map(re.escape, f"{text}…".split("…"))) for text in said]


def shown(line: Line) -> str:
    return re.sub(r"%[a-z]", "…", line.template)


def is_told(line: Line, levels: str, patterns: list[str]) -> bool:
    return line.level in levels and any(re.fullmatch(pattern, shown(line)) for pattern in patterns)


def test_every_line_goes_through_the_one_logger() -> None:
    found = {text for path in PACKAGE.rglob("*.py") for text in re.findall(r"getLogger\(.*\)", path.read_text("utf-8"))}
    assert found == {'getLogger("stigg_guard")'}


def test_every_line_begins_with_words_or_figures_of_ours() -> None:
    assert [line.template for line in lines() if line.template.startswith("%s")] == []


def manual_of(line: Line) -> Path:
    return DOCS / ("sidecar.md" if line.place.startswith("sidecar/") else "operations.md")


def test_every_line_that_wants_a_person_is_in_the_manual() -> None:
    wanted = [line for line in lines() if line.level not in ("DEBUG", "INFO")]
    assert [line for line in wanted if not any(is_told(line, *row) for row in rows(manual_of(line)))] == []


@pytest.mark.parametrize("name", ["operations", "sidecar"])
def test_every_line_in_the_manual_is_logged(name: str) -> None:
    page = DOCS / f"{name}.md"
    said = [line for line in lines() if manual_of(line) == page]
    patterns = [(levels, [pattern]) for levels, every in rows(page) for pattern in every]
    assert [row for row in patterns if not any(is_told(line, *row) for line in said)] == []

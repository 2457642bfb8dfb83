"""The site of the manuals: it is built without a warning, and asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="make docs installs it")
ROOT = Path(__file__).parents[1]
FETCHED = re.compile(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?((?:https?:)?//[^"' >]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=110)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    return folder


def test_every_manual_has_its_page(site: Path) -> None:
    docs = ROOT / "docs"
    pages = [page.relative_to(docs).with_suffix("") for page in docs.rglob("*.md")]
    missing = [
        page for page in pages if not (site / (page.parent if page.name == "index" else page) / "index.html").exists()
    ]
    assert missing == []


def test_a_reader_s_browser_asks_nobody_else(site: Path) -> None:
    assert [found for page in site.rglob("*.html") for found in FETCHED.findall(page.read_text(encoding="utf-8"))] == []


def test_the_reference_has_docstrings_without_marks_of_another_language(site: Path) -> None:
    text = (site / "reference" / "index.html").read_text(encoding="utf-8")
    assert "Returns whether the customer may use the feature" in text
    assert re.findall(r":\w+:<code>|:\w+:`", text) == []

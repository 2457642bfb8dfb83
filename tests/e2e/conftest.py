"""The example projects as real servers, and a browser before them that notes whatever goes wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from e2e.visitor import Visitor
from stigg_guard.sidecar.server import Sidecar

SHOP, API = (Path(__file__).parents[2] / "example_projects" / name for name in ("django_shop", "flask_api"))
PATIENCE = 15_000  # milliseconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, metavar="FOLDER", help="save what the pages look like in this folder")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not on the PATH: run make e2e, which installs it"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        # Without its sandbox, because containers are often entered as root; it sees nothing but our own pages.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the database of a shop that nobody has visited yet."""
    folder = tmp_path_factory.mktemp("shop")
    subprocess.run([sys.executable, "manage.py", "migrate"], cwd=SHOP, env=os.environ | _shop_in(folder), check=True)
    return folder


@pytest.fixture
def shop(browser: Browser, sidecar: Sidecar, migrated: Path, tmp_path: Path) -> Iterator[Visitor]:
    """A visitor of the Django example."""
    with _visiting_shop(browser, sidecar, migrated, tmp_path) as visitor:
        yield visitor


@pytest.fixture
def debugged_shop(browser: Browser, sidecar: Sidecar, migrated: Path, tmp_path: Path) -> Iterator[Visitor]:
    """A visitor of the Django example with its debug toolbar, as a developer sees it."""
    with _visiting_shop(browser, sidecar, migrated, tmp_path, SHOP_DEBUG_TOOLBAR="1") as visitor:
        yield visitor


@contextmanager
def _visiting_shop(
    browser: Browser, sidecar: Sidecar, migrated: Path, folder: Path, **environ: str
) -> Iterator[Visitor]:
    shutil.copytree(migrated, folder, dirs_exist_ok=True)
    command = ["manage.py", "runserver", "--noreload", "127.0.0.1:0"]
    environ = {**_shop_in(folder), **_sidecar_of(sidecar), **environ}
    with _serving(SHOP, command, environ) as address, _visiting(browser, address) as visitor:
        yield visitor


@pytest.fixture
def api(browser: Browser, sidecar: Sidecar, tmp_path: Path) -> Iterator[Visitor]:
    """A visitor of the Flask example."""
    environ = {
        "FLASK_API_DATABASE": str(tmp_path / "api.sqlite3"),
        "STIGG_GUARD_LEDGER": f"sqlite:///{tmp_path}/ledger.sqlite3",
        "STIGG_GUARD_TIMEOUT": "5",
        **_sidecar_of(sidecar),
    }
    command = ["-m", "flask", "--app", "app:create_app", "run", "--port", "0"]
    with _serving(API, command, environ) as address, _visiting(browser, address) as visitor:
        yield visitor


@pytest.fixture
def status(browser: Browser, sidecar: Sidecar) -> Iterator[Visitor]:
    """Somebody who looks at the status page of the local sidecar, with the token for changes."""
    with _visiting(browser, f"http://{sidecar.http_address}", sidecar.page_url) as visitor:
        yield visitor


def _shop_in(folder: Path) -> dict[str, str]:
    return {"DJANGO_SETTINGS_MODULE": "shop.settings", "SHOP_DATA": str(folder)}


def _sidecar_of(sidecar: Sidecar) -> dict[str, str]:
    return {"STIGG_GUARD_SIDECAR": sidecar.address, "STIGG_SIDECAR_HTTP": str(sidecar.http_address)}


@contextmanager
def _serving(folder: Path, command: list[str], environ: dict[str, str]) -> Iterator[str]:
    """The address of a site that runs meanwhile. It must start, and end without ever having written a traceback."""
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=folder,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        said = ""
        for line in server.stdout:
            said += line
            if listening := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
                break
        else:
            pytest.fail(f"{folder.name} did not start: {said}")
        try:
            yield listening[0]
        finally:
            server.terminate()
            said += server.communicate()[0]
            print(said)  # shown with a test that fails
    assert "Traceback" not in said, said


@contextmanager
def _visiting(browser: Browser, address: str, first: str = "/") -> Iterator[Visitor]:
    with browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        visitor = Visitor(page)
        page.goto(first)
        yield visitor
        visitor.check()

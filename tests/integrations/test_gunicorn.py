"""Both example sites under gunicorn with ``--preload``, two workers and four threads each."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import requests

ROOT = Path(__file__).parents[2]
REQUESTS = 500
CLIENTS = 8

USES_THE_GUARD_BEFORE_IT_FORKS = """
def when_ready(server):
    import sys
    if "shop.settings" in sys.modules:
        from stigg_guard.django import get_guard
        guard = get_guard()
    else:
        guard = server.app.wsgi().extensions["stigg_guard"].guard
    assert guard.check("feature-templates", customer="customer-demo-01").source == "sidecar"
"""


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The module ``example_projects/demo.py``."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "example_projects" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["fresh", "used"])
def sites(
    request: pytest.FixtureRequest, demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """The addresses of both sites; ``used`` means that the preloading parent made calls before it forked."""
    if request.param == "used":
        config = tmp_path / "gunicorn_conf.py"
        config.write_text(USES_THE_GUARD_BEFORE_IT_FORKS)
        monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--config {config}")
    with demo.running(0, 0) as (running, _):
        yield running.shop, running.api


def test_answers_many_requests_without_a_fault(sites: tuple[str, str]) -> None:
    shop, api = sites
    token = {"Authorization": "Bearer demo-token-ada", "Accept": "application/json"}
    urls = [f"http://{shop}/analytics/", f"http://{api}/api/templates", f"http://{shop}/", f"http://{api}/analytics/"]

    def client(count: int) -> set[tuple[str, int]]:
        with requests.Session() as session:
            session.headers.update(token)
            asked = [urls[index % len(urls)] for index in range(count)]
            return {(url, session.get(url, timeout=30).status_code) for url in asked}

    with ThreadPoolExecutor(CLIENTS) as clients:
        answered = set().union(*clients.map(client, [REQUESTS // CLIENTS] * CLIENTS))
    assert answered == {(urls[0], 401), (urls[1], 200), (urls[2], 200), (urls[3], 401)}


def test_the_walk_finds_everything_as_expected() -> None:
    command = [sys.executable, str(ROOT / "example_projects" / "demo.py"), "--once"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 not as expected" in done.stdout

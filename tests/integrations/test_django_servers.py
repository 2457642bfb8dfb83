"""One Django site under each kind of server, with eight clients at once: no unit too many, and no report lost."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from stigg_guard import Config, GetMeteredEntitlementRequest, Guard
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

SITE = Path(__file__).parent / "guarded_site"
CLIENTS = 8
ROUNDS = 4
LIMIT = 60
CATALOG = f"""
[features.templates]
type = "metered"
meter = "fluctuating"
[features.exports]
type = "boolean"
[plans.p.entitlements]
templates = {{ limit = {LIMIT} }}
exports = true
[customers.ann]
plan = "p"
"""
GUNICORN = ["gunicorn", "--no-control-socket", "--log-level", "warning"]
SERVERS = {
    "runserver": ["django", "runserver", "--noreload", "127.0.0.1:0"],
    "sync": [*GUNICORN, "--workers", "3"],
    "gthread": [*GUNICORN, "--workers", "2", "--threads", "4"],
    "preload": [*GUNICORN, "--workers", "2", "--threads", "4", "--preload"],
    "uvicorn": ["uvicorn", "--log-level", "warning", "--factory", "django.core.asgi:get_asgi_application"],
}
ASKS_BEFORE_IT_FORKS = """
def when_ready(server):
    from stigg_guard.django import get_guard
    assert get_guard().check("exports", customer="ann")
"""


@pytest.fixture
def engine() -> Engine:
    return Engine(parse_catalog(CATALOG), Store(None))


@pytest.fixture
def sidecar(engine: Engine) -> Iterator[Sidecar]:
    with Sidecar(engine, host="127.0.0.1", port=0, http_port=0) as running:
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@contextmanager
def serving(server: str, folder: Path, environ: dict[str, str]) -> Iterator[str]:
    """The address of the site, run by the server, which is sent SIGTERM in the end."""
    command = SERVERS[server]
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if command[0] == "gunicorn":
            command = [*command, "--bind", f"fd://{listener.fileno()}", "django.core.wsgi:get_wsgi_application()"]
        elif command[0] == "uvicorn":
            command = [*command, "--fd", str(listener.fileno())]
        if server == "preload":
            (folder / "conf.py").write_text(ASKS_BEFORE_IT_FORKS)
            command = [*command, "--config", str(folder / "conf.py")]
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(SITE)},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(listener.fileno(),),
        )
    with process:
        try:
            yield address if server != "runserver" else announced(process)
        finally:
            process.terminate()


def announced(process: subprocess.Popen[str]) -> str:
    """The address that ``runserver`` prints."""
    assert process.stdout is not None
    return next(found[1] for line in process.stdout if (found := re.search(r"http://([\d.:]+)/", line)))


def used(engine: Engine) -> float:
    """What the sidecar has counted."""
    request = GetMeteredEntitlementRequest(customer_id="ann", feature_id="templates")
    answer: Any = engine.answer("GetMeteredEntitlement", request)
    return float(answer.entitlement.current_usage)


@pytest.mark.parametrize("server", SERVERS)
def test_eight_clients_get_exactly_what_is_there_and_all_of_it_is_reported(
    server: str, engine: Engine, sidecar: Sidecar, ledger: str, tmp_path: Path
) -> None:
    paths = ["plain", "create", "acreate", "astream" if server == "uvicorn" else "stream"] * ROUNDS

    def client(address: str) -> Counter[str]:
        with requests.Session() as session:
            answers = [session.get(f"http://{address}/{path}", timeout=30) for path in paths]
        return Counter(answer.text if answer.ok else str(answer.status_code) for answer in answers)

    environ = {"SITE_SIDECAR": sidecar.address, "SITE_LEDGER": ledger}
    with serving(server, tmp_path, environ) as address, ThreadPoolExecutor(CLIENTS) as clients:
        told = sum(clients.map(client, [address] * CLIENTS), Counter())
    assert told == {"exported": ROUNDS * CLIENTS, "created": LIMIT, "402": 3 * ROUNDS * CLIENTS - LIMIT}
    with Guard(Config(sidecar=sidecar.address, ledger=ledger)) as successor:
        assert successor.flush(30) == 0
    assert used(engine) == LIMIT

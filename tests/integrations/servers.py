"""The guarded sites under real servers: what they sell, how they are started, and eight clients at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from stigg_guard import Config, GetMeteredEntitlementRequest, Guard
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

SITE = Path(__file__).parent / "guarded_site"
CLIENTS = 8
ROUNDS = 4
ASKED = CLIENTS * ROUNDS
"""How often each path is asked for."""
LIMIT = 60
CATALOG = f"""
[features.templates]
type = "metered"
meter = "fluctuating"
[features.letters]
type = "metered"
meter = "fluctuating"
[features.visits]
type = "metered"
meter = "fluctuating"
[features.pages]
type = "metered"
meter = "fluctuating"
[features.exports]
type = "boolean"
[plans.p.entitlements]
templates = {{ limit = {LIMIT} }}
letters = {{ limit = 1 }}
visits = {{ limit = 1000 }}
pages = {{ limit = 1000 }}
exports = true
[customers.ann]
plan = "p"
"""
# A connection that a busy client leaves unused for longer than it is kept alive is reset.
GUNICORN = ["gunicorn", "--no-control-socket", "--log-level", "warning", "--keep-alive", "60"]


@dataclass(frozen=True)
class Shop:
    """What is sold to ann, and where it is counted."""

    engine: Engine
    folder: Path
    environ: Mapping[str, str]

    def used(self, feature: str = "templates", *, held: int | None = None) -> float:
        """What the sidecar has counted, once the next process has reported what was left. ``held`` is how many holds
        must be there then."""
        config = Config(sidecar=self.environ["SITE_SIDECAR"], ledger=self.environ["SITE_LEDGER"])
        with Guard(config) as successor:
            assert successor.flush(30) == 0
            assert held in (None, successor.stats()["held"])
        request = GetMeteredEntitlementRequest(customer_id="ann", feature_id=feature)
        answer: Any = self.engine.answer("GetMeteredEntitlement", request)
        return float(answer.entitlement.current_usage)


@contextmanager
def selling(folder: Path, **environ: str) -> Iterator[Shop]:
    """A sidecar with the catalog, and a ledger in the folder; ``environ`` is the site's own environment."""
    engine = Engine(parse_catalog(CATALOG), Store(None))
    ledger = f"sqlite:///{folder}/ledger.db"
    with Sidecar(engine, host="127.0.0.1", port=0, http_port=0) as sidecar:
        yield Shop(engine, folder, {"SITE_SIDECAR": sidecar.address, "SITE_LEDGER": ledger, **environ})


@contextmanager
def serving(shop: Shop, command: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of ``python -m`` with the command, in which ``{}`` is the number of the listening
    socket; in the end it is sent SIGTERM."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *(part.format(listener.fileno()) for part in command)],
            env={**os.environ, **shop.environ, "PYTHONPATH": str(SITE)},
            cwd=shop.folder,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(listener.fileno(),),
        )
    with process:
        try:
            yield address, process
        finally:
            process.terminate()


def answered(address: str, paths: Sequence[str]) -> Counter[str]:
    """What eight clients are answered who ask for the paths at once: texts, or statuses of failure."""

    def client(_: int) -> Counter[str]:
        with requests.Session() as session:
            answers = [session.get(f"http://{address}/{path}", timeout=30) for path in [*paths] * ROUNDS]
        return Counter(answer.text if answer.ok else str(answer.status_code) for answer in answers)

    with ThreadPoolExecutor(CLIENTS) as clients:
        return sum(clients.map(client, range(CLIENTS)), Counter())


def use(guard: Guard) -> None:
    """Uses one unit."""
    with guard.consume("templates", customer="ann"):
        pass


def use_a_new_guard(sidecar: str, ledger: str) -> None:
    """The same in a process that has no guard yet."""
    use(Guard(Config(sidecar=sidecar, ledger=ledger)))

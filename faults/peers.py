"""The same five misfortunes for our SDK and for four that are widely used: how many reports arrive."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from faults import peer_client
from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.sink import Sink
from faults.workers import drain

ENVIRONMENT = Path(".venv-peers")
GROUP = f"{Path(__file__).parents[1] / 'pyproject.toml'}:peers"
OURS = "stigg_guard"
PEERS = [name for name in peer_client.SDKS if name != OURS]
FORKED = peer_client.PARENT_CALLS + peer_client.CHILDREN * peer_client.CALLS_OF_CHILD
CALLS = {
    "killed": ("kill -9 after 500 calls", peer_client.CALLS),
    "terminated": ("SIGTERM after 500 calls", peer_client.CALLS),
    "forked": ("40 calls, then 4 forked children x 100", FORKED),
    "burst": ("20,000 calls at once", peer_client.BURST),
    "outage": ("1,000 calls while the server is away", peer_client.DURING_OUTAGE),
}
SETTLE_SECONDS = 2.0  # for what a server is still reading when the client is gone


class Arrived(NamedTuple):
    """How many different reports arrived, and how many of them again."""

    once: float
    again: float

    def __str__(self) -> str:
        return f"{self.once:g}" + (f" (+{self.again:g} again)" if self.again else "")


def peers(scale: Scale) -> Iterator[Promise]:
    """Each SDK at its defaults, in a process of its own, against a server on this machine."""
    python = _environment()
    for scenario, (text, calls) in CALLS.items():
        with ThreadPoolExecutor(len(PEERS) if scenario == "outage" else 1) as turns:
            at_sink = partial(_arrived_at_sink, python, scenario, scale.outage_seconds)
            theirs = turns.map(at_sink, PEERS)
            ours = _arrived_at_sidecar(scale, scenario, calls)
            others = ", ".join(f"{peer} {arrived}" for peer, arrived in zip(PEERS, theirs, strict=True))
        yield Promise(f"{text}: all arrive, once", f"ours {ours}, {others}", ours == (calls, 0))


def _environment() -> str:
    """The interpreter of the peers' own environment, which is made on first use."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--group", GROUP], check=True)
    return str(python)


def _arrived_at_sink(python: str, scenario: str, seconds: float, peer: str) -> Arrived:
    with Sink() as sink:
        application = _started(python, peer, sink.address, scenario, seconds)
        if scenario == "outage":
            _wait_until_ready(application)
            sink.away = True
            _go(application)
            time.sleep(seconds)
            sink.away = False
        application.communicate()
        time.sleep(SETTLE_SECONDS)
        return Arrived(len(sink.arrived), sink.arrived.total() - len(sink.arrived))


def _arrived_at_sidecar(scale: Scale, scenario: str, calls: int) -> Arrived:
    ledger = f"sqlite:///{scale.folder / f'peers-{scenario}.sqlite3'}"
    with LocalSidecar(scale.folder / f"peers-{scenario}", {"feature-units": None}, ["customer"]) as sidecar:
        application = _started(sys.executable, OURS, f"{sidecar.address} {ledger}", scenario, scale.outage_seconds)
        if scenario == "outage":
            _wait_until_ready(application)
            sidecar.kill()
            _go(application)
            time.sleep(scale.outage_seconds)
            sidecar.start()
        application.communicate()
        drain(sidecar.address, ledger)  # the next process
        counted = sidecar.usage(["customer"])["customer", "feature-units"]
    return Arrived(min(counted, calls), max(0, counted - calls))


def _started(python: str, sdk: str, server: str, scenario: str, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [python, "-m", "faults.peer_client", sdk, server, scenario, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _wait_until_ready(application: subprocess.Popen[bytes]) -> None:
    assert application.stdout is not None
    application.stdout.readline()


def _go(application: subprocess.Popen[bytes]) -> None:
    assert application.stdin is not None
    application.stdin.write(b"\n")
    application.stdin.flush()

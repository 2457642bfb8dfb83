"""The guard straight on Stigg's API: the same promises, a network that speaks HTTP and breaks, and the rate limits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from faults.killed import killed_on
from faults.network import CUSTOMER, FEATURES, storm
from faults.outage import CUSTOMERS, LIMIT, UNITS, limits_while_away
from faults.oversell import oversell_on
from faults.promise import Promise, Scale
from faults.proxy import Fault, Proxy
from faults.sidecars import LocalSidecar, target
from stigg_guard import Clock, Config, Guard, SidecarError
from stigg_guard.cloud.rates import LIMITS
from stigg_guard.entitlements import Source

STATUSES = (429, 500, 401)
ACTIVE = 10_000
SECONDS = 180
CHECKS = 400
"""Checks a second."""
HOT = 0.8
"""The part of the checks that is of the first tenth of the customers."""


def cloud(scale: Scale) -> Iterator[Promise]:
    """Oversell, kill -9, outage, storm and traffic, without a sidecar."""
    os.environ["XDG_STATE_HOME"] = str(scale.folder)  # where the rate limits are kept
    yield from oversell_on(scale, "cloud", f"sqlite:///{scale.folder / 'oversell-cloud.sqlite3'}", api=True)
    yield from killed_on(scale, "cloud", f"sqlite:///{scale.folder / 'killed-cloud.sqlite3'}", api=True)
    away = LocalSidecar(scale.folder / "outage-cloud", {UNITS: LIMIT}, CUSTOMERS[:1], api=True)
    yield from limits_while_away(away, f"sqlite:///{scale.folder / 'outage-cloud.sqlite3'}")
    folder = scale.folder / "storm-cloud"
    folder.mkdir()
    behind = LocalSidecar(folder / "server", dict.fromkeys(FEATURES.values()), [CUSTOMER], api=True)
    proxy = HttpProxy(behind.address.removeprefix("http://"))
    with behind, proxy:
        through = f"http://{proxy.address}"
        yield storm(folder, "the API", proxy.breaks, [*Fault, *STATUSES], through, behind.address)
    yield from _traffic("4 processes without Redis", guards=4, cache_ttl=30.0)
    yield from _traffic("one shared cache", guards=1, cache_ttl=120.0)


class HttpProxy(Proxy):
    """A proxy that can answer by itself, with a status."""

    _status: int | None = None

    def breaks(self, fault: Fault | int) -> None:
        """From now on this is what happens; a number is the status of all answers."""
        self._status = fault if isinstance(fault, int) else None
        self.set(Fault.NONE if isinstance(fault, int) else fault)

    def _connect(self, client: socket.socket) -> None:
        if self._status is None:
            super()._connect(client)
        else:
            self._start(_answer, client, self._status)


def _answer(client: socket.socket, status: int) -> None:
    head = f"HTTP/1.1 {status} on purpose\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    with contextlib.suppress(OSError), client, client.makefile("rb") as lines:
        length = 0
        while (line := lines.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        lines.read(length)
        client.sendall(head.encode())


class _Time:
    """A clock that moves when it is told to, for minutes of traffic."""

    def __init__(self) -> None:
        self.passed = 0.0
        self._began = datetime.now(timezone.utc)
        self.clock = Clock(monotonic=lambda: 1_000.0 + self.passed, now=self.now)

    def now(self) -> datetime:
        return self._began + timedelta(seconds=self.passed)


class _Enforcing(ThreadingHTTPServer):
    """Answers every customer alike, and refuses reads beyond the documented limit of any minute."""

    daemon_threads = True

    def __init__(self, time: _Time) -> None:
        super().__init__(("127.0.0.1", 0), _Reads)
        self._time = time
        self._lock = threading.Lock()
        self.reads: list[float] = []
        self.refused = 0

    def admits(self) -> bool:
        now = self._time.passed
        limit = LIMITS["entitlements"]
        with self._lock:
            recent = len(self.reads) - bisect_left(self.reads, now - limit.seconds)
            if recent >= limit.requests:
                self.refused += 1
                return False
            self.reads.append(now)
            return True


_STATE: Any = {
    "accessDeniedReason": None,
    "entitlementsV2": [
        {
            "__typename": "FeatureEntitlement",
            "isGranted": True,
            "accessDeniedReason": None,
            "usageLimit": None,
            "hasUnlimitedUsage": False,
            "hasSoftLimit": None,
            "currentUsage": None,
            "enumValues": [],
            "resetPeriod": None,
            "usagePeriodAnchor": None,
            "usagePeriodStart": None,
            "usagePeriodEnd": None,
            "validUntil": None,
            "feature": {"refId": "f", "featureType": "BOOLEAN", "meterType": None}
            | {"featureUnits": None, "featureUnitsPlural": None},
        }
    ],
}
"""One boolean feature, for whoever is asked about."""


class _Reads(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answer = json.dumps({"data": {"entitlementsState": _STATE}}).encode()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        status, body = (200, self.answer) if server.admits() else (429, b"{}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _traffic(what: str, guards: int, cache_ttl: float) -> Iterator[Promise]:
    settings = {"LEDGER": "memory://", "CACHE_SIZE": ACTIVE, "CACHE_TTL": cache_ttl}
    time = _Time()
    server = _Enforcing(time)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    config = Config.from_mapping({**target(address), **settings})
    asked = [Guard(config, clock=time.clock) for _ in range(guards)]
    told: Counter[str] = Counter()
    for _ in range(SECONDS * CHECKS):
        time.passed += 1 / CHECKS
        told[_checked(random.choice(asked))] += 1
    for guard in asked:
        guard.close()
    server.shutdown()
    server.server_close()
    minutes = SECONDS / 60
    yield Promise(
        f"{ACTIVE:,} customers, {what}, CACHE_TTL {cache_ttl:g} s: never over the documented limit",
        f"{server.refused} refused by the server; {len(server.reads) / minutes:,.0f} reads a minute of 6,000",
        not server.refused and len(server.reads) > 0,
    )
    total = told.total()
    yield Promise(
        f"{what}: most checks are answered from data, in the first minutes after a cold start",
        ", ".join(f"{told[name] / total:.1%} {name}" for name in ("fresh", "stale", "refused")),
        told["fresh"] + told["stale"] > told["refused"],
    )


def _checked(guard: Guard) -> str:
    hot = random.random() < HOT
    number = random.randrange(ACTIVE // 10) if hot else random.randrange(ACTIVE)
    try:
        answer = guard.check("f", customer=f"customer-{number}")
    except SidecarError:
        return "refused"
    return "stale" if answer.source is Source.STALE else "fresh"

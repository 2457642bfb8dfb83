"""Mutated messages and requests at the ports of the local sidecar."""

from __future__ import annotations

import http.client
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import grpc

from faults.promise import Promise, Scale
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS

MESSAGES, REQUESTS = 200_000, 20_000
WARM = 2_000  # after so many, memory must not grow
GROWTH = 16  # megabytes
SERIOUS = {grpc.StatusCode.INTERNAL.name, grpc.StatusCode.UNKNOWN.name, grpc.StatusCode.UNAVAILABLE.name}
IDS = {"customer_id": "customer-demo-01", "feature_id": "feature-templates"}
PATHS = ("/changes/plan", "/changes/usage", "/changes/promotion", "/changes/clock", "/graphql", "/customers/x", "/")
BODIES = (
    b'{"customer": "customer-demo-01", "plan": "growth"}',
    b'{"customer": "customer-demo-01", "feature": "feature-templates", "value": 6}',
    b'{"customer": "customer-demo-01", "feature": "feature-templates", "grant": {"limit": 9}}',
    b'{"query": "{ coupons { edges { cursor } } }"}',
)


def fuzz(_: Scale) -> Iterator[Promise]:
    """No crash, no traceback, no growth, whatever is sent."""
    log = _Log()
    logging.getLogger().addHandler(log)
    with closing(Engine(demo_catalog(), Store(None))) as engine, Sidecar(engine, token="fuzz") as sidecar:
        yield _messages(sidecar, Random(7))
        yield _requests(sidecar, Random(7))
    logging.getLogger().removeHandler(log)
    yield Promise("nothing of it is an error of the sidecar's", f"{log.errors} errors logged", not log.errors)


class _Log(logging.Handler):
    errors = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.errors += record.levelno >= logging.ERROR


def _messages(sidecar: Sidecar, chance: Random) -> Promise:
    codes: Counter[str] = Counter()
    before = 0
    with grpc.insecure_channel(sidecar.address) as channel:
        ask = {name: channel.unary_unary(method.path, None, None) for name, method in METHODS.items()}
        for number in range(MESSAGES):
            before = _megabytes() if number == WARM else before
            name = chance.choice(list(ask))
            known = {key: id_ for key, id_ in IDS.items() if key in METHODS[name].request.DESCRIPTOR.fields_by_name}
            body = METHODS[name].request(**known).SerializeToString() or b"\n\x03abc"
            try:
                ask[name](_mutated(body, chance, at_least=1), timeout=20)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
    grown = _megabytes() - before
    told = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    kept = not codes.keys() & SERIOUS and grown < GROWTH
    return Promise(f"{MESSAGES} mutated messages are answered or refused", f"{told}; {grown} MB grown", kept)


def _requests(sidecar: Sidecar, chance: Random) -> Promise:
    statuses: Counter[int] = Counter()
    host, _, port = sidecar.http_address.rpartition(":")
    for _ in range(REQUESTS):
        token = chance.choice(("fuzz", "guess"))
        headers = {"Content-Type": "application/json", "X-Sidecar-Token": token}
        body = _mutated(chance.choice(BODIES), chance, at_least=0)
        with closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:
            connection.request(chance.choice(("POST", "PUT", "GET")), chance.choice(PATHS), body, headers)
            statuses[connection.getresponse().status] += 1
    told = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    return Promise(f"{REQUESTS} mutated requests are answered or refused", told, max(statuses) < 500)


def _mutated(body: bytes, chance: Random, at_least: int) -> bytes:
    mutant = bytearray(body)
    for _ in range(chance.randint(at_least, 4)):
        place = chance.randrange(len(mutant)) if mutant else 0
        kind = chance.choice(("change", "insert", "remove"))
        if kind == "insert" or not mutant:
            mutant.insert(place, chance.randrange(256))
        elif kind == "change":
            mutant[place] = chance.randrange(256)
        else:
            del mutant[place]
    return bytes(mutant)


def _megabytes() -> int:
    """What this process, in which the sidecar runs, has in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 // 1024**2

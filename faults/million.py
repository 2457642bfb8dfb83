"""A million reports into the state file of a local sidecar, some of them twice under their key."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from faults.promise import Promise, Scale
from stigg_guard import Stigg
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import sidecar_pb2 as wire

CALLS, EACH = 10_000, 100
THREADS = 4
CUSTOMERS = [f"customer-{number}" for number in range(100)]
CATALOG = """
[features.f]
type = "metered"
meter = "fluctuating"
[plans.p.entitlements]
f = { unlimited = true }
""" + "".join(f'[customers.{customer}]\nplan = "p"\n' for customer in CUSTOMERS)


def million(scale: Scale) -> Iterator[Promise]:
    """What was told is what is stored, to the unit, also after the sidecar was started again."""
    path = scale.folder / "million.sqlite3"
    told: Counter[str] = Counter()
    with closing(_engine(path)) as engine, Sidecar(engine) as sidecar:
        host, _, port = sidecar.address.rpartition(":")
        began = time.monotonic()
        with (
            Stigg(remote_sidecar_host=host, remote_sidecar_port=port, report_timeout=60) as stigg,
            ThreadPoolExecutor(THREADS) as threads,
        ):
            for counted in threads.map(partial(_report, stigg), range(CALLS)):
                told.update(counted)
        seconds = time.monotonic() - began
        rate = CALLS * EACH / seconds
        yield _compared(f"{CALLS * EACH} reports are counted exactly", f", {rate:,.0f} a second", engine, told)
    with closing(_engine(path)) as engine:
        yield _compared("and stay so when it starts again", "", engine, told)


def _engine(path: Path) -> Engine:
    return Engine(parse_catalog(CATALOG), Store(path))


def _report(stigg: Stigg, call: int) -> Counter[str]:
    """Reports a batch, one in twenty again under its key, and returns what is to be counted."""
    chance, counted = Random(call), Counter[str]()
    usages = []
    for _ in range(EACH):
        customer, value = chance.choice(CUSTOMERS), chance.randint(1, 9)
        usages.append(wire.ReportUsageRequest(customer_id=customer, feature_id="f", value=value))
        counted[customer] += value
    request = wire.ReportUsageBulkRequest(usages=usages)
    for _ in range(2 if call % 20 == 0 else 1):
        stigg.report_usage_bulk(request, idempotency_key=f"call-{call}")
    return counted


def _compared(text: str, more: str, engine: Engine, told: Counter[str]) -> Promise:
    stored = {customer: _usage(engine, customer) for customer in CUSTOMERS}
    wrong = sum(stored[customer] != told[customer] for customer in CUSTOMERS)
    figures = f"{sum(told.values())} units told, {sum(stored.values()):.0f} stored, {wrong} customers wrong{more}"
    return Promise(text, figures, not wrong)


def _usage(engine: Engine, customer: str) -> float:
    request = wire.GetMeteredEntitlementRequest(customer_id=customer, feature_id="f")
    answer: Any = engine.answer("GetMeteredEntitlement", request)
    return float(answer.entitlement.current_usage)

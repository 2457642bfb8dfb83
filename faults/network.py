"""A network between application and sidecar that delays, loses, resets and cuts short."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from faults.promise import Promise, Scale
from faults.proxy import Fault, Proxy
from faults.sidecars import LocalSidecar, keyless_sidecar, usage_of, write_catalog
from faults.workers import CONTEXT, PATIENCE, drain, make_guard, processes
from stigg_guard import Guard, SidecarError
from stigg_guard.ledger import State, UsageKey, Use

CUSTOMER = "customer"
OUTCOME_UNKNOWN = {Fault.LOSE_REQUESTS, Fault.LOSE_REPLIES, Fault.RESET, Fault.TRUNCATE}
FEATURES = {fault: f"feature-{fault.name.lower().replace('_', '-')}" for fault in Fault}
PROCESSES = 2
STORM_SECONDS = 10.0
SETTLE_GRACE = 2.0
REPEATS = 3


def network(scale: Scale) -> Iterator[Promise]:
    """Each fault alone, then all of them at random, with and without idempotency keys."""
    folder = scale.folder / "network"
    folder.mkdir()
    catalog = write_catalog(folder, dict.fromkeys(FEATURES.values()), [CUSTOMER])
    yield from _one_by_one(folder, catalog)
    with keyless_sidecar(catalog) as address, Proxy(address) as proxy:
        yield storm(folder, "no keys", proxy.set, list(Fault), proxy.address, address)
    sidecar = LocalSidecar(folder / "keys", dict.fromkeys(FEATURES.values()), [CUSTOMER])
    with sidecar, Proxy(sidecar.address) as proxy:
        yield storm(folder, "keys", proxy.set, list(Fault), proxy.address, sidecar.address)


def _one_by_one(folder: Path, catalog: Path) -> Iterator[Promise]:
    expected = Counter({FEATURES[fault]: REPEATS for fault in OUTCOME_UNKNOWN})
    found: Counter[str] = Counter()
    left: Counter[str] = Counter()
    ledger = f"sqlite:///{folder / 'one-by-one.sqlite3'}"
    strikes = _Strikes()
    with keyless_sidecar(catalog, strikes.hears) as address, Proxy(address) as proxy:
        with make_guard(proxy.address, ledger, SETTLE_GRACE=SETTLE_GRACE) as guard:
            for _ in range(REPEATS):
                for fault in Fault:
                    found.update(_uncertain_after(proxy, guard, fault, strikes))
            while any(guard.ledger.counts()[state] for state in ("unsent", "sending")):
                guard.flush(1.0)
        left.update(drain(address, ledger))
        usage = usage_of(address, [CUSTOMER])[CUSTOMER]
    which = ", ".join(fault.value for fault in Fault if found[FEATURES[fault]])
    yield Promise(
        "open after a fault are exactly the reports whose outcome is unknown",
        f"{found.total()} of {REPEATS * len(Fault)}: {which}",
        found == expected,
    )
    wrong = {feature: count for feature, count in usage.items() if count != 2 * REPEATS}
    yield Promise(
        "reading the usage back decides them, and each counts once",
        f"{len(wrong)} of {len(usage)} keys wrong, {left['uncertain']} undecided",
        not wrong and not left["uncertain"],
    )


class _Strikes:
    """Sets faults at their moment: a report follows a question, which must come through for the report to be sent."""

    def __init__(self) -> None:
        self._strikes: dict[str, Callable[[], None]] = {}

    def at(self, moment: str, strike: Callable[[], None]) -> None:
        self._strikes = {moment: strike}

    def hears(self, method: str) -> None:
        strike = self._strikes.pop(method, None)
        if strike is not None:
            strike()


MOMENTS = {
    Fault.LOSE_REQUESTS: "Check",
    Fault.LOSE_REPLIES: "ReportUsage",
    Fault.RESET: "ReportUsage",
    Fault.TRUNCATE: "ReportUsage",
}
"""The request that the sidecar hears when a fault strikes; the others are there before the report."""


def _uncertain_after(proxy: Proxy, guard: Guard, fault: Fault, strikes: _Strikes) -> list[str]:
    """Sends one report through the fault; the features of which a report is open afterwards."""
    key = UsageKey(CUSTOMER, "", FEATURES[fault])
    guard.ledger.record(Use(key, 1))
    _flush_until_sent(guard)
    if fault in MOMENTS:
        strikes.at(MOMENTS[fault], lambda: proxy.set(fault))
    else:
        proxy.set(fault)
    guard.ledger.record(Use(key, 1))
    guard.flush(1.0)
    open_states = [State.SENDING, State.UNCERTAIN]
    found = [entry.key.feature_id for entry in guard.ledger.entries(open_states, 100)]
    proxy.set(Fault.NONE)
    _flush_until_sent(guard)
    while guard.ledger.counts()["uncertain"]:
        guard.flush(1.0)
        time.sleep(0.05)
    return found


def _flush_until_sent(guard: Guard) -> None:
    while guard.flush(1.0):
        time.sleep(0.05)


def storm(
    folder: Path,
    what: str,
    breaks: Callable[[Any], None],
    faults: Sequence[Any],
    through: str,
    address: str,
) -> Promise:
    """Random faults, which ``breaks`` sets; the first of them is none. Guards ask ``address`` by way of ``through``."""
    ledger = f"sqlite:///{folder / f'{what}.sqlite3'}"
    results: Any = CONTEXT.Queue()
    began = time.monotonic()
    struck = 0
    with processes(PROCESSES, _use, through, ledger, began + STORM_SECONDS, results):
        while time.monotonic() < began + STORM_SECONDS:
            for fault in (random.choice(faults), faults[0]):
                breaks(fault)
                struck += fault is not faults[0]
                time.sleep(random.uniform(0.05, 0.4))
        used = sum((Counter(results.get(timeout=PATIENCE)) for _ in range(PROCESSES)), Counter[str]())
    left = drain(address, ledger)
    usage = usage_of(address, [CUSTOMER])[CUSTOMER]
    lost = sum(max(0, used[feature] - count) for feature, count in usage.items())
    twice = sum(max(0, count - used[feature]) for feature, count in usage.items())
    open_states = [f"{left[state]} {state}" for state in ("unsent", "sending", "uncertain", "dead") if left[state]]
    return Promise(
        f"{STORM_SECONDS:g} s of random faults, sidecar with {what}: nothing lost, nothing twice",
        f"{used.total()} units, {lost:g} lost, {twice:g} twice; {struck} faults; "
        f"{', '.join(open_states) or 'nothing'} left",
        not (lost or twice or open_states) and used.total() > 0,
    )


def _use(address: str, ledger: str, until: float, results: Any, _number: int) -> None:
    used: Counter[str] = Counter()
    with make_guard(address, ledger, SETTLE_GRACE=SETTLE_GRACE) as guard:
        while time.monotonic() < until:
            feature = random.choice(list(FEATURES.values()))
            amount = random.randint(1, 9)
            try:
                with guard.consume(feature, amount, customer=CUSTOMER):
                    time.sleep(random.random() * 0.01)
                used[feature] += amount
            except SidecarError:  # it has not seen the customer yet
                time.sleep(0.02)
    results.put(dict(used))

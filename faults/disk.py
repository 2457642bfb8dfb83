"""A disk without room for the ledger, and a ledger that may not be written."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, PATIENCE, drain, make_guard, processes
from stigg_guard import FeatureDenied
from stigg_guard.errors import LedgerUnavailable

POLICIES = ("error", "deny", "allow")
REFUSED_BY = {"error": LedgerUnavailable.__name__, "deny": FeatureDenied.__name__}
FEATURE = "feature-units"
USES = 200
ROOM = range(100_000, 300_000, 40_000)  # bytes for each file of the ledger; it is full after some uses
NOBODY = 65_534


def disk(scale: Scale) -> Iterator[Promise]:
    """Nothing is lost in silence when the ledger cannot be written, whatever ``ON_OUTAGE`` says."""
    scale.folder.chmod(0o755)  # for a worker that is not root, to whom no file is read-only
    customers = [f"customer-{policy}" for policy in POLICIES]
    with LocalSidecar(scale.folder / "disk", {FEATURE: None}, customers) as sidecar:
        yield from _full(scale.folder, sidecar)
        for policy in POLICIES:
            yield _read_only(scale.folder, sidecar, policy)
        yield _full_and_alone(scale.folder, sidecar)


def _full(folder: Path, sidecar: LocalSidecar) -> Iterator[Promise]:
    runs = [
        (policy, room, f"sqlite:///{folder / f'full-{policy}-{room}.sqlite3'}") for policy in POLICIES for room in ROOM
    ]
    outcomes = {policy: Counter[str]() for policy in POLICIES}
    for policy, room, ledger in runs:
        outcomes[policy] += _outcomes(
            _use_with_little_room, sidecar.address, ledger, policy, f"customer-{policy}", room
        )
    for _, _, ledger in runs:
        drain(sidecar.address, ledger)  # the next process finds room
    for policy in POLICIES:
        counted = _counted(sidecar, policy)
        refused = outcomes[policy].keys() - {"used"}
        yield Promise(
            f"full disk, ON_OUTAGE={policy}: refused before the work, or counted",
            f"{_shown(outcomes[policy])}; {counted:g} counted",
            counted == outcomes[policy]["used"]
            and refused == ({REFUSED_BY[policy]} if policy in REFUSED_BY else set()),
        )


def _counted(sidecar: LocalSidecar, policy: str) -> float:
    customer = f"customer-{policy}"
    return sidecar.usage([customer])[customer, FEATURE]


def _read_only(folder: Path, sidecar: LocalSidecar, policy: str) -> Promise:
    customer = f"customer-{policy}"
    place = folder / f"read-only-{policy}"
    place.mkdir()
    ledger = f"sqlite:///{place / 'ledger.sqlite3'}"
    drain(sidecar.address, ledger)  # makes it
    for path, mode in ((place / "ledger.sqlite3", 0o444), (place, 0o555)):
        path.chmod(mode)
    before = _counted(sidecar, policy)
    outcomes = _outcomes(_use_as_nobody, sidecar.address, ledger, policy, customer)
    counted = _counted(sidecar, policy) - before
    expected = {REFUSED_BY.get(policy, "used")}
    return Promise(
        f"read-only ledger, ON_OUTAGE={policy}: refused before the work, or counted",
        f"{_shown(outcomes)}; {counted:g} counted",
        counted == outcomes["used"] and outcomes.keys() == expected,
    )


def _full_and_alone(folder: Path, sidecar: LocalSidecar) -> Promise:
    """Neither ledger nor sidecar takes the usage; then the sidecar is back, and the disk still full."""
    customer = "customer-allow"
    before = _counted(sidecar, "allow")
    ledger = f"sqlite:///{folder / 'alone.sqlite3'}"
    results: Any = CONTEXT.Queue()
    turn = CONTEXT.Barrier(2, timeout=PATIENCE)
    with processes(1, _use_alone, sidecar.address, ledger, customer, turn, results):
        turn.wait()
        sidecar.kill()
        turn.wait()
        turn.wait()
        sidecar.start()
        turn.wait()
        used, stranded, still = results.get(timeout=PATIENCE)
    drain(sidecar.address, ledger)
    counted = _counted(sidecar, "allow") - before
    return Promise(
        "full disk and no sidecar: kept in memory until the sidecar is back",
        f"{used} used, {stranded} of them in memory, then {still}; {counted:g} counted",
        counted == used and stranded > 0 and not still,
    )


def _outcomes(work: Any, *args: Any) -> Counter[str]:
    results: Any = CONTEXT.Queue()
    with processes(1, work, results, *args):
        return Counter(results.get(timeout=PATIENCE))


def _use_with_little_room(
    results: Any, address: str, ledger: str, policy: str, customer: str, room: int, _number: int
) -> None:
    _leave_room(room)
    results.put(_use(address, ledger, policy, customer))


def _use_as_nobody(results: Any, address: str, ledger: str, policy: str, customer: str, _number: int) -> None:
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    results.put(_use(address, ledger, policy, customer))


def _use_alone(address: str, ledger: str, customer: str, turn: Any, results: Any, _number: int) -> None:
    with make_guard(address, ledger, ON_OUTAGE="allow") as guard:
        guard.entitlements(customer)
        _leave_room(ROOM.start)
        turn.wait()
        turn.wait()
        used = _used(guard, customer)
        stranded = guard.stats()["stranded"]
        turn.wait()
        turn.wait()
        guard.flush(20.0)
        results.put((used["used"], stranded, guard.stats()["stranded"]))


def _leave_room(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _use(address: str, ledger: str, policy: str, customer: str) -> dict[str, int]:
    with make_guard(address, ledger, ON_OUTAGE=policy) as guard:
        return dict(_used(guard, customer))


def _used(guard: Any, customer: str) -> Counter[str]:
    """How each use ended; one whose work began and which raises all the same is told apart."""
    outcomes: Counter[str] = Counter()
    for _ in range(USES):
        began = False
        try:
            with guard.consume(FEATURE, customer=customer):
                began = True
            outcomes["used"] += 1
        except Exception as error:
            outcomes[f"{type(error).__name__}{' after the work' if began else ''}"] += 1
    return outcomes


def _shown(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))

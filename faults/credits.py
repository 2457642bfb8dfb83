"""One wallet of credits that pays for three features at different rates: what is sold of it, and what is left."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from django.conf import settings
from django.core.management import call_command
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

from faults.django_ledger import make_django_guard, set_up
from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar, usage_of
from faults.workers import CONTEXT, PATIENCE, drained, make_guard, processes
from stigg_guard import FeatureDenied, Guard
from stigg_guard.errors import LedgerUnavailable, SidecarError

PROCESSES, THREADS, ATTEMPTS = 8, 8, 40
THREADS_OF_A_DATABASE = 4  # each has connections of its own
CUSTOMER = "customer"
WALLET = 3_000
RATES = {"ai": 2.0, "images": 0.5, "words": 0.1}
HOLD_TTL = 2.0
CATALOG = "\n".join(
    [
        "[currencies.credits]",
        *(
            f'[features.{feature}]\ntype = "metered"\nmeter = "incremental"\n'
            f'credit_rate = {{ currency = "credits", amount = {rate} }}'
            for feature, rate in RATES.items()
        ),
        "[plans.plan.entitlements]",
        *(f"{feature} = {{}}" for feature in RATES),
        f"[plans.plan.credits]\ncredits = {{ amount = {WALLET} }}",
        f'[customers.{CUSTOMER}]\nplan = "plan"',
    ]
)


Home: TypeAlias = "str | Mapping[str, Any]"
"""The URL of a ledger, or the database that Django has it in."""


class WorkFailed(Exception):
    """What an application raises when its own work goes wrong."""


def wallets(scale: Scale) -> Iterator[Promise]:
    """8 processes x 8 threads use three features of one wallet; a third of the work fails, and two are killed."""
    yield from _on(scale, "sqlite", f"sqlite:///{scale.folder / 'credits.sqlite3'}")
    folder = scale.folder / "credits-server"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield from _on(scale, "redis", server.url)
    with PostgresServer(durable=False) as postgres:
        yield from _on(scale, "postgresql", postgres.database("site"))


def _on(scale: Scale, home: str, ledger: Home) -> Iterator[Promise]:
    with LocalSidecar(scale.folder / f"credits-{home}", catalog=CATALOG) as sidecar:
        logs = [scale.folder / f"credits-{home}-{number}.log" for number in range(PROCESSES)]
        _apart(_migrate, sidecar.address, ledger)
        _all_attempts(sidecar.address, ledger, logs)
        usage, rest = _apart(_rest, sidecar.address, ledger)
    lines = [line.split() for log in logs for line in log.read_text().splitlines()]
    sold = {feature: sum(int(line[2]) for line in lines if line[:2] == [feature, "used"]) for feature in RATES}
    open_ends = sum(line[1] == "using" for line in lines) - sum(line[1] == "used" for line in lines)
    who = f"{home}: {PROCESSES} processes x {_threads(ledger)} threads, three features of one wallet"
    yield Promise(
        f"{who} never spend more than it has", f"{usage['credits']:g} of {WALLET} spent", usage["credits"] <= WALLET
    )
    missing = {feature: sold[feature] - usage[feature] for feature in RATES if usage[feature] < sold[feature]}
    most = sum(usage[feature] - sold[feature] for feature in RATES)
    yield Promise(
        f"{who}: the sidecar counts what was sold",
        f"{sum(usage[feature] for feature in RATES):g} counted, {open_ends} killed in the commit, missing {missing}",
        not missing and most <= 9 * open_ends and sum(sold.values()) > 0,
    )
    yield Promise(f"{who}: exactly the rest can be held afterwards", rest or "to a tenth of a credit", not rest)


def _apart(look: Callable[[str, Home], Any], address: str, ledger: Home) -> Any:
    """What another process finds: a process is one Django project for good."""
    found: Any = CONTEXT.Queue()
    with processes(1, _look, look, address, ledger, found):
        return found.get(timeout=2 * PATIENCE)


def _look(look: Callable[[str, Home], Any], address: str, ledger: Home, found: Any, _number: int) -> None:
    found.put(look(address, ledger))


def _migrate(_address: str, ledger: Home) -> None:
    if not isinstance(ledger, str):
        set_up(ledger)
        call_command("migrate", verbosity=0)


def _rest(address: str, ledger: Home) -> tuple[dict[str, float], str]:
    """What the sidecar has counted when all is reported, and what is wrong with the rest of the wallet."""
    with _guard(address, ledger, SETTLE_GRACE=2) as guard:
        drained(guard)
    time.sleep(HOLD_TTL)
    usage = dict(usage_of(address, [CUSTOMER])[CUSTOMER])
    return usage, _rest_is_exact(address, ledger, WALLET - usage["credits"])


def _guard(address: str, ledger: Home, **given: Any) -> Guard:
    if isinstance(ledger, str):
        return make_guard(address, ledger, **given)
    if not settings.configured:
        set_up(ledger)
    return make_django_guard(address, **given)


def _rest_is_exact(address: str, ledger: Home, rest: float) -> str:
    """What is wrong with what can be held of the rest of the wallet."""
    most = round(rest / RATES["words"])
    with _guard(address, ledger, CREDIT_RATES=_setting(), SETTLE_GRACE=0) as guard:
        for amount, is_free in ((most, most > 0), (most + 1, False)):  # an empty wallet gives not even nothing
            try:
                with guard.consume("words", amount, customer=CUSTOMER):
                    raise WorkFailed
            except WorkFailed:
                held = True
            except FeatureDenied:
                held = False
            if held is not is_free:
                return f"{amount} words of {rest:g} credits: held {held}"
    return ""


def _all_attempts(address: str, ledger: Home, logs: Sequence[Path]) -> None:
    done: Any = CONTEXT.Queue()
    together = CONTEXT.Barrier(PROCESSES, timeout=PATIENCE)
    with processes(PROCESSES, _work, address, ledger, list(map(str, logs)), together, done) as started:
        while not all(log.exists() and log.stat().st_size for log in logs):
            time.sleep(0.01)
        for process in started[:2]:
            process.kill()
        for _ in started[2:]:
            done.get(timeout=5 * PATIENCE)


def _work(address: str, ledger: Home, logs: Sequence[str], together: Any, done: Any, number: int) -> None:
    lines = os.open(logs[number], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with _guard(address, ledger, CREDIT_RATES=_setting(), HOLD_TTL=HOLD_TTL) as guard:

        def attempt(_: int) -> None:
            feature, amount = random.choice(list(RATES)), random.randint(1, 9)
            try:
                with guard.consume(feature, amount, customer=CUSTOMER):
                    time.sleep(random.random() * 0.004)
                    if random.random() < 0.33:
                        raise WorkFailed
                    os.write(lines, f"{feature} using {amount}\n".encode())
                os.write(lines, f"{feature} used {amount}\n".encode())
            except (WorkFailed, FeatureDenied, LedgerUnavailable, SidecarError):
                pass

        count = _threads(ledger)
        with ThreadPoolExecutor(count) as threads:
            together.wait()
            list(threads.map(attempt, range(count * ATTEMPTS)))
    done.put(number)


def _threads(ledger: Home) -> int:
    return THREADS if isinstance(ledger, str) else THREADS_OF_A_DATABASE


def _setting() -> dict[str, object]:
    return {feature: {"currency": "credits", "rate": rate} for feature, rate in RATES.items()}

"""The doctor: what of a guard's settings works, what is assumed and not verified, and what to do. It only reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from time import perf_counter

from stigg_guard.cli.console import Console, table
from stigg_guard.cli.operators import IN_MEMORY, ledger_url
from stigg_guard.clock import utc_now
from stigg_guard.config import Config
from stigg_guard.errors import ApiUnavailable, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.ledger.files import is_default, obstacle
from stigg_guard.settings.urls import SQLITE, ledger_file, prefix_at
from stigg_guard.wire import sidecar_pb2 as wire

NOBODY = "stigg-guard-doctor"
"""Who is asked about: a customer that need not exist."""
MAX_OFFSET = 60.0
"""By how many seconds a clock may differ: the local sidecar takes no report from five minutes ahead."""

# What Stigg's public schema and documentation leave open, and a guard on the API goes by; docs/cloud.md says more.
ASSUMPTIONS = (
    "an idempotency key is remembered for a day at least",
    "a report under a known key is answered as before",
    "a bulk of reports is taken or rejected as a whole",
    "a bulk of reports is answered with one measurement for each",
    "isGranted may leave out the limit, so the figures decide",
    "no answer for a feature means that Stigg has none of that id",
    "a missing resource is told by the code RESOURCE_NOT_FOUND",
    "creditRate.amount is the price of one unit, in the currency customCurrencyId",
    "validUntil is in seconds, milliseconds or ISO 8601",
    "the code of an error stands in its extensions",
    "30 mutations a minute per customer is no limit of reports",
)


class Health(str, Enum):
    """How something is: it works, it does not, or nobody can tell."""

    OK = "ok"
    UNVERIFIED = "not verified"
    BROKEN = "broken"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about a setting, and what to do about it."""

    subject: str
    health: Health
    found: str
    remedy: str = ""


def doctor(guard: Guard, console: Console) -> int:
    """Tells how everything is; 0 all is well, 1 something is broken, 2 it works as far as can be told."""
    findings = list(_findings(guard))
    rows = [(each.subject, each.health.value, each.found, each.remedy) for each in findings]
    console.show([asdict(each) for each in findings], table(("what", "state", "found", "to do"), rows))
    return status_of(findings)


def status_of(findings: Sequence[Finding]) -> int:
    """The exit status of the worst finding."""
    states = {each.health for each in findings}
    return 1 if Health.BROKEN in states else 2 if Health.UNVERIFIED in states else 0


def _findings(guard: Guard) -> Iterator[Finding]:
    config = guard.config
    if not config.enabled:
        yield Finding("ENABLED", Health.OK, "the guard is disabled: every check passes, and nothing is reported")
        return
    yield _sidecar(guard)
    if config.api_key is not None:
        yield from _api(guard)
    yield _ledger(guard)
    yield _cache(config)
    yield _credit_rates(config)
    yield _webhooks(config)
    if config.sidecar == "cloud":
        yield from (Finding("Stigg's API", Health.UNVERIFIED, f"assumed: {each}") for each in ASSUMPTIONS)


def _sidecar(guard: Guard) -> Finding:
    where = guard.config.sidecar
    request = wire.GetEntitlementsStateV2Request(customer_id=NOBODY)
    try:
        stigg = guard.stigg  # which is made now, if it is the first time
        began = perf_counter()
        stigg.get_entitlements_state_v2(request)
    except StiggGuardError as error:
        return Finding("SIDECAR", Health.BROKEN, f"{where!r} does not answer: {error}", "see what it says")
    took = perf_counter() - began
    if took > guard.config.timeout / 2:
        slow = f"{where!r} answered in {took * 1000:.0f} ms"
        return Finding(
            "SIDECAR", Health.UNVERIFIED, slow, f"ask again, or raise TIMEOUT from {guard.config.timeout:g} s"
        )
    return Finding("SIDECAR", Health.OK, f"{where!r} answered in {took * 1000:.0f} ms")


def _api(guard: Guard) -> Iterator[Finding]:
    from stigg_guard.api import FetchEntitlementsQuery  # a library takes its time

    try:
        guard.api.get_entitlements_state(FetchEntitlementsQuery(customer_id=NOBODY), fields="accessDeniedReason")
    except StiggGuardError as error:
        away = isinstance(error, ApiUnavailable)
        remedy = "let this host reach API_URL" if away else "set API_KEY and API_URL to those of this environment"
        yield Finding("API_KEY", Health.BROKEN, f"{error}", remedy)
        return
    yield Finding("API_KEY", Health.OK, "Stigg's API accepts it")
    told = guard.api.server_time
    if told is not None:
        yield _clock(told, utc_now())


def _clock(told: datetime, now: datetime) -> Finding:
    offset = (now - told).total_seconds()
    if abs(offset) > MAX_OFFSET:
        found = f"this host's clock is {offset:+.0f} s from that of the API"
        return Finding("clock", Health.BROKEN, found, "set it right, by NTP: reports carry its time")
    return Finding("clock", Health.OK, "as that of the API, within a minute")


def _ledger(guard: Guard) -> Finding:
    try:
        url = ledger_url(guard.config)
        if url == IN_MEMORY:
            return Finding("LEDGER", Health.OK, "in memory: what is unsent is lost with its process")
        if url.startswith(SQLITE) and not os.path.exists(path := ledger_file(url).path):
            blocked = None if is_default(path) else obstacle(path)
            found = blocked or "there is none yet; the first use makes it"
            return Finding("LEDGER", Health.BROKEN if blocked else Health.OK, found)
        counts = guard.ledger.counts()
    except StiggGuardError as error:
        return Finding("LEDGER", Health.BROKEN, str(error), "look at LEDGER")
    undecided = counts["dead"] + counts["waiting"]
    on_the_way = f"{counts['unsent'] + counts['sending'] + counts['uncertain'] - counts['waiting']} on their way"
    if undecided:
        found = f"{undecided} reports wait for a decision, {on_the_way}"
        return Finding("LEDGER", Health.BROKEN, found, "list them, then retry or discard each")
    return Finding("LEDGER", Health.OK, f"it can be read: {on_the_way}")


def _cache(config: Config) -> Finding:
    if config.cache == IN_MEMORY:
        return Finding("CACHE", Health.OK, "each process has its own")
    from stigg_guard.cache.redis import FAULTS, cache_client, cache_home  # it needs an extra

    home = cache_home(config.cache)
    prefix = prefix_at(config.cache, config.redis_environment_prefix)
    try:
        client = cache_client(home, prefix)
        client.get(prefix)
        client.close()
    except FAULTS as error:
        found = f"Redis does not answer: {home.explained(error)}"
        return Finding("CACHE", Health.BROKEN, found, "start it, or correct CACHE")
    return Finding("CACHE", Health.OK, "Redis answers")


def _credit_rates(config: Config) -> Finding:
    tells = config.sidecar in ("cloud", "local")
    others = "the source tells the rates" if tells else "a sidecar of Stigg's tells no rates"
    if config.credit_rates:
        return Finding("CREDIT_RATES", Health.OK, f"set for {len(config.credit_rates)} features; of others {others}")
    remedy = "" if tells else "set it, if credits pay for a feature: else it is asked about at each use, one by one"
    return Finding("CREDIT_RATES", Health.OK, f"not set: {others}", remedy)


def _webhooks(config: Config) -> Finding:
    if config.webhook_secret is None:
        found = f"not set: a change of plan may show {config.cache_ttl:g} s late"
        return Finding("WEBHOOK_SECRET", Health.OK, found, "set up Stigg's webhooks, if that is too late")
    return Finding(
        "WEBHOOK_SECRET", Health.UNVERIFIED, "set; only a webhook shows whether it is right", "send a test event"
    )

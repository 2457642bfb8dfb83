"""The operators' commands: show a customer's entitlements, report usage, look after the ledger.

Each function prints on a console and returns the exit status: 0 for done or allowed, 1 for denied, left or declined.
What goes wrong is raised.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from math import inf
from time import monotonic, sleep, time
from typing import Any

from stigg_guard.cli.console import Console, table
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import ConfigError, InvalidRequest, SidecarError, StiggGuardError
from stigg_guard.foreign import printable
from stigg_guard.guard import Guard
from stigg_guard.ledger import Acknowledged, Entry, Ledger, State, UsageKey
from stigg_guard.ledger.files import default_url, obstacle, user_state_folder
from stigg_guard.settings.urls import SQLITE, ledger_file
from stigg_guard.usage.keeper import HoldKeeper
from stigg_guard.usage.reporter import Reporter
from stigg_guard.web.display import usage_text

TELL_SECONDS = 1.0
MAX_LISTED = 1_000_000
RETRY_SECONDS = 1.0
CALL_SECONDS = 5.0
IN_MEMORY = "memory://"
DECIDABLE = (State.UNCERTAIN, State.DEAD)
"""States whose entries wait for a person, who sends them again or discards them."""

_ON_ITS_WAY = (State.UNSENT, State.SENDING, State.UNCERTAIN)
_COLUMNS = ("id", "state", "customer", "resource", "feature", "amount", "age", "attempts", "reason")


def show_entitlements(guard: Guard, console: Console, customer: Customer) -> int:
    """All that the customer's plan has.

    Raises:
        InvalidRequest: there is no such customer.
        SidecarError: the sidecar did not answer.
    """
    _show_answers(console, entitlements_of(guard, customer))
    return 0


def entitlements_of(guard: Guard, customer: Customer) -> Sequence[Entitlement]:
    """All that the customer's plan has; nothing without a subscription.

    Raises:
        InvalidRequest: there is no such customer.
        SidecarError: the sidecar did not answer.
    """
    answers = list(guard.entitlements(customer).values())
    if not answers and not guard.reload(customer):
        raise InvalidRequest("customer_id", f"the sidecar knows no customer {str(customer)!r}")
    return answers


def check(
    guard: Guard, console: Console, customer: Customer, feature: str | None, requested_usage: float | None = None
) -> int:
    """Whether the customer may use the feature, and ``requested_usage`` units more of it; status 1 if not. Without a
    feature as :func:`show_entitlements`.

    Raises:
        InvalidRequest: an id is empty, or the requested usage is no amount, or of no feature.
        SidecarError: the sidecar did not answer.
    """
    if feature is None and requested_usage is not None:
        raise InvalidRequest("feature_id", "--requested-usage is about one feature: name it")
    if feature is None:
        return show_entitlements(guard, console, customer)
    answer = guard.check(feature, customer=customer, requested_usage=requested_usage)
    _show_answers(console, [answer])
    return 0 if answer else 1


def report(
    guard: Guard, console: Console, customer: Customer, feature: str, value: float, *, set_total: bool = False
) -> int:
    """Reports usage that happened; status 1 if the sidecar did not take it yet, 2 if it rejects it, as the log says.

    Raises:
        ConfigError: the guard is one that reports nothing.
        InvalidRequest: the value is no amount, or an id is empty.
    """
    _require_reports(guard.config)
    key = UsageKey(customer.id, customer.resource or "", feature)
    before = {entry.id for entry in _entries_of(guard.ledger, key)}
    guard.report(feature, value, customer=customer, set_total=set_total)
    guard.flush(RETRY_SECONDS)
    after = _entries_of(guard.ledger, key)
    if any(entry.state is State.DEAD and entry.id not in before for entry in after):
        return 2
    if any(entry.state in _ON_ITS_WAY for entry in after):
        console.tell(f"not taken by the sidecar: {_whereabouts(guard, console)}")
        return 1
    console.say(f"{'set to' if set_total else 'reported'} {value:g}")
    return 0


def show_status(guard: Guard, console: Console) -> int:
    """How many entries of the ledger are in each state, and since when."""
    ledger = _seen_ledger(guard)
    now = time()
    counts = ledger.counts()
    ages = {state: next((now - entry.first_at / 1e6 for entry in ledger.entries((state,), 1)), None) for state in State}
    states = {state: {"entries": counts[state], "oldest_seconds": ages[state]} for state in State}
    rows = [(state.value, str(counts[state]), _age(ages[state])) for state in State]
    console.show(
        {"states": states, "late": counts["late"]},
        table(("state", "entries", "oldest"), [*rows, ("late", str(counts["late"]), "")]),
    )
    return 0


def list_entries(guard: Guard, console: Console, states: Sequence[State], limit: int) -> int:
    """The entries in these states, oldest first; without states, all."""
    found = _seen_ledger(guard).entries(states or list(State), limit + 1)
    shown = found[:limit]
    text = table(_COLUMNS, [_row(entry) for entry in shown]) if shown else "nothing"
    console.show([_fields(entry) for entry in shown], text)
    if len(found) > len(shown):
        console.tell(f"there are more than these {len(shown)}; raise --limit")
    return 0


def retry(guard: Guard, console: Console, ids: Sequence[str] | None, *, yes: bool) -> int:
    """Makes dead and uncertain entries unsent again: these, or all. Uncertain ones want a yes: they may count twice.

    Raises:
        StiggGuardError: an id is wrong, so nothing was changed; or nobody is there to say yes.
    """
    ledger = _seen_ledger(guard)
    chosen = _chosen(console, ledger, ids)
    doubtful = sum(entry.state is State.UNCERTAIN for entry in chosen)
    if doubtful and not (yes or _agreed(f"{doubtful} of them may have been counted, and would count twice")):
        return 1
    done = ledger.retry([entry.id for entry in chosen])
    console.show({"retried": done}, f"{done} unsent again: the application sends them, or {console.ledger} drain")
    _tell_missed(console, done, chosen)
    return 0


def discard(guard: Guard, console: Console, ids: Sequence[str] | None, *, yes: bool) -> int:
    """Forgets dead and uncertain entries for good: these, or all. It wants a yes.

    Raises:
        StiggGuardError: an id is wrong, so nothing was changed; or nobody is there to say yes.
    """
    ledger = _seen_ledger(guard)
    chosen = _chosen(console, ledger, ids)
    if chosen and not (yes or _agreed(f"{len(chosen)} would be forgotten for good, and never be billed")):
        return 1
    done = ledger.discard([entry.id for entry in chosen])
    console.show({"discarded": done}, f"{done} discarded")
    _tell_missed(console, done, chosen)
    return 0


def drain(guard: Guard, console: Console, timeout: float) -> int:
    """Sends what is unsent, for ``timeout`` seconds at most, also while the sidecar is away; status 1 if some is left.

    Raises:
        ConfigError: the guard is one that reports nothing.
    """
    _require_reports(guard.config)
    ledger = _seen_ledger(guard)
    draining = _Drain(guard, console, timeout)
    draining.run()
    counts, left = ledger.counts(), draining.left()
    waiting = {state.value: counts[state] for state in DECIDABLE}
    console.show(
        {"acknowledged": draining.acknowledged, "left": left, **waiting},
        f"{draining.acknowledged} acknowledged, {left} left",
    )
    if any(waiting.values()):
        console.tell(
            f"{sum(waiting.values())} dead or uncertain; see {console.ledger} list --state dead --state uncertain"
        )
    return 1 if left else 0


class _Drain:
    """Sends until nothing is left or the time is up, also while the sidecar is away, and tells how far it is."""

    def __init__(self, guard: Guard, console: Console, timeout: float) -> None:
        self._ledger = guard.ledger
        self._reporter = Reporter(
            guard.ledger,
            lambda: guard.stigg,
            guard.config,
            HoldKeeper(guard.ledger, guard.config.hold_ttl),
            self._progress,
            Clock(),
        )
        self._tell = console.tell
        self._began = monotonic()
        self._ends = self._began + timeout
        self._told_at = -inf
        self._problem = ""

    @property
    def acknowledged(self) -> int:
        return self._reporter.stats()["acknowledged"]

    def left(self) -> int:
        counts = self._ledger.counts()
        return counts[State.UNSENT] + counts[State.SENDING]

    def run(self) -> None:
        with suppress(KeyboardInterrupt):
            self._send()
            while self.left() and (remaining := self._ends - monotonic()) > 0:
                sleep(min(RETRY_SECONDS, remaining))
                self._send()

    def _send(self) -> None:
        try:
            self._reporter.drain(max(CALL_SECONDS, self._ends - monotonic()))
        except SidecarError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._tell(f"{self.left()} left, and the sidecar does not take them: {error}")
        else:
            self._reporter.flush(CALL_SECONDS)  # decides what is uncertain, too

    def _progress(self, _: Acknowledged) -> None:
        now = monotonic()
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self._tell(f"{self.left()} left, {self.acknowledged / (now - self._began):.0f} a second")


def ledger_url(config: Config) -> str:
    """Where the ledger of this configuration is.

    Raises:
        ConfigError: it names none, and there is no place for one.
    """
    return config.ledger or default_url(user_state_folder(), config.sidecar)


def require_ledger(url: str) -> None:
    """Raises for a ledger that does not exist yet, so that looking at it does not make one.

    Raises:
        ConfigError: there is no file of this ledger, or it is out of reach.
    """
    if url.startswith(SQLITE):
        path = os.path.abspath(ledger_file(url).path)
        try:
            os.stat(path)
        except PermissionError:
            raise ConfigError(f"LEDGER: {obstacle(path)}") from None
        except OSError:
            raise ConfigError(
                f"LEDGER: there is no file {path}: nothing was used yet, or another ledger is in use; name that one"
            ) from None


def amount_text(entry: Entry) -> str:
    """How many units an entry is about: ``+2`` more, ``-2`` given back, ``=7`` a new total."""
    return f"={entry.amount:.15g}" if entry.is_set else f"{entry.amount:+.15g}"


def _show_answers(console: Console, answers: Sequence[Entitlement]) -> None:
    names = [printable(answer.feature_id) for answer in answers]
    width = max(map(len, names), default=0)
    lines = (
        f"{name:{width}}  {console.good('yes') if answer else console.bad('no ')}  "
        f"{printable(usage_text(answer) if answer else answer.explanation)}"
        for name, answer in zip(names, answers, strict=True)
    )
    text = "\n".join(lines) or "nothing: there is no active subscription"
    console.show([asdict(answer) for answer in answers], text)


def _chosen(console: Console, ledger: Ledger, ids: Sequence[str] | None) -> Sequence[Entry]:
    """The entries that are named, or all; none is touched if one of the ids is wrong."""
    counts = ledger.counts()
    there = ledger.entries(DECIDABLE, sum(counts[state] for state in DECIDABLE))
    if ids is None:
        return there
    wrong = set(ids) - {entry.id for entry in there}
    if wrong:
        raise StiggGuardError(
            f"no dead or uncertain entry has the id {', '.join(sorted(wrong))}, so nothing was changed; "
            f"see {console.ledger} list --state dead --state uncertain"
        )
    return [entry for entry in there if entry.id in ids]


def _tell_missed(console: Console, done: int, chosen: Sequence[Entry]) -> None:
    if done < len(chosen):
        console.tell(f"{len(chosen) - done} others were decided by somebody else meanwhile")


def _agreed(consequence: str) -> bool:
    if not sys.stdin.isatty():
        raise StiggGuardError(f"{consequence}; give --yes if that is right")
    print(f"{consequence}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _entries_of(ledger: Ledger, key: UsageKey) -> list[Entry]:
    return [entry for entry in ledger.entries(list(State), MAX_LISTED) if entry.key == key]


def _whereabouts(guard: Guard, console: Console) -> str:
    if ledger_url(guard.config) == IN_MEMORY:
        return "lost with this process, since the ledger is in memory; name one that lasts in LEDGER"
    return f"kept in the ledger, from where the application sends it, or {console.ledger} drain"


def _require_reports(config: Config) -> None:
    if config.sidecar == "offline":
        raise ConfigError("SIDECAR: 'offline' reports nothing; name the sidecar's host:port")
    if not config.enabled:
        raise ConfigError("ENABLED: a guard that is disabled reports nothing; set it to true")


def _seen_ledger(guard: Guard) -> Ledger:
    """The guard's ledger, unless it is not there, or the processes that use it keep it to themselves."""
    url = ledger_url(guard.config)
    if url == IN_MEMORY:
        raise ConfigError(
            f"LEDGER: what is in {IN_MEMORY} only its own process can see; "
            "name a ledger that processes share, such as sqlite:///path"
        )
    require_ledger(url)
    return guard.ledger


def _fields(entry: Entry) -> Mapping[str, Any]:
    fields = asdict(entry)
    for internal in ("key", "period", "first_at", "ticket", "before", "rate"):
        del fields[internal]
    times = {"used_at": _instant(entry.used_at / 1e9), "first_used_at": _instant(entry.first_at / 1e6)}
    return {**entry.key._asdict(), **fields, **times}


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _row(entry: Entry) -> tuple[str, ...]:
    key = entry.key
    what = (entry.id, entry.state.value, key.customer_id, key.resource_id, key.feature_id, amount_text(entry))
    return (*what, _age(time() - entry.first_at / 1e6), str(entry.attempts), entry.reason)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"

"""What operators do with usage on its way to the sidecar: ``stigg-guard ledger …`` and ``stigg-guard report``."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime, timezone
from math import inf, isfinite
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any
from urllib.parse import unquote

from stigg_guard.clock import Clock
from stigg_guard.config import Config, ReportMode
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, SidecarError, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.ledger import (
    Acknowledged,
    Entry,
    Ledger,
    State,
    UsageKey,
    default_ledger,
    ledger_from_url,
    user_state_folder,
)
from stigg_guard.reporter import Reporter

TELL_SECONDS = 1.0
MAX_LISTED = 1_000_000
RETRY_SECONDS = 1.0
CALL_SECONDS = 5.0
IN_MEMORY = "memory://"

_ON_ITS_WAY = (State.UNSENT, State.SENDING, State.UNCERTAIN)
_DECIDABLE = (State.UNCERTAIN, State.DEAD)
_COLUMNS = ("id", "state", "customer", "resource", "feature", "amount", "age", "attempts", "reason")


def configure_ledger(parser: ArgumentParser) -> None:
    """Give a parser the actions of ``stigg-guard ledger``, each with what to run."""
    common = ArgumentParser(add_help=False)
    common.add_argument(
        "--url", help="the ledger (default: STIGG_GUARD_LEDGER, or else the one in the user's state folder)"
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    status = actions.add_parser("status", parents=[common], help="how much is in each state, and since when")
    status.set_defaults(run=_status)

    listing = actions.add_parser("list", parents=[common], help="the entries, oldest first")
    states = [state.value for state in State]
    listing.add_argument(
        "--state", nargs="+", action="extend", choices=states, metavar="STATE", help=f"only {', '.join(states)}"
    )
    listing.add_argument("--limit", type=_count, default=100, metavar="N", help="at most N (default: %(default)s)")
    listing.set_defaults(run=_list)

    retry = actions.add_parser("retry", parents=[common], help="send what is dead or uncertain again")
    _configure_choice(retry, "yes, although an uncertain one may count twice")
    retry.set_defaults(run=_retry)

    discard = actions.add_parser("discard", parents=[common], help="forget what is dead or uncertain, for good")
    _configure_choice(discard, "yes, although it cannot be undone")
    discard.set_defaults(run=_discard)

    drain = actions.add_parser("drain", parents=[common], help="send what is unsent to the sidecar, now")
    drain.description = "Send what is unsent to STIGG_GUARD_SIDECAR. Exit status 1 means that something is left."
    drain.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="give up after S seconds (default: 60)"
    )
    drain.set_defaults(run=_drain)


def configure_report(parser: ArgumentParser) -> None:
    """Give a parser the options of ``stigg-guard report``, and what to run."""
    parser.description = "Report usage that happened. Exit status 1 means that the sidecar did not take it yet."
    parser.add_argument("customer", help="customer id")
    parser.add_argument("feature", help="feature id")
    parser.add_argument("value", type=float, help="units more, or fewer when negative")
    parser.add_argument("--set", action="store_true", help="VALUE is the new total")
    parser.add_argument("--resource", help="id of the customer's resource")
    parser.set_defaults(run=_report)


def _configure_choice(parser: ArgumentParser, consequence: str) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("ids", nargs="*", default=[], metavar="ID", help="id of an entry, as list shows it")
    choice.add_argument("--all", action="store_true", help="every dead and uncertain entry")
    parser.add_argument("--yes", action="store_true", help=f"do not ask: {consequence}")


def _status(options: Namespace) -> int:
    now = time()
    with _opened(options) as ledger:
        counts = ledger.counts()
        ages = {state: next((now - entry.used_at for entry in ledger.entries((state,), 1)), None) for state in State}
    if options.json:
        states = {state: {"entries": counts[state], "oldest_seconds": ages[state]} for state in State}
        _print_json({"states": states, "late": counts["late"]})
    else:
        rows = [(state.value, str(counts[state]), _age(ages[state])) for state in State]
        print(_table(("state", "entries", "oldest"), [*rows, ("late", str(counts["late"]), "")]))
    return 0


def _list(options: Namespace) -> int:
    states = [State(name) for name in options.state or State]
    with _opened(options) as ledger:
        found = ledger.entries(states, options.limit + 1)
    shown = found[: options.limit]
    if options.json:
        _print_json([_fields(entry) for entry in shown])
    else:
        print(_table(_COLUMNS, [_row(entry) for entry in shown]) if shown else "nothing")
    if len(found) > len(shown):
        _tell(f"there are more than these {len(shown)}; raise --limit")
    return 0


def _retry(options: Namespace) -> int:
    with _opened(options) as ledger:
        chosen = _chosen(options, ledger)
        doubtful = sum(entry.state is State.UNCERTAIN for entry in chosen)
        if doubtful and not _confirmed(options, f"{doubtful} of them may have been counted, and would count twice"):
            return 1
        done = ledger.retry([entry.id for entry in chosen])
    if options.json:
        _print_json({"retried": done})
    else:
        print(f"{done} unsent again: the application sends them, or stigg-guard ledger drain")
    return _nothing_missed(done, chosen)


def _discard(options: Namespace) -> int:
    with _opened(options) as ledger:
        chosen = _chosen(options, ledger)
        if chosen and not _confirmed(options, f"{len(chosen)} would be forgotten for good, and never be billed"):
            return 1
        done = ledger.discard([entry.id for entry in chosen])
    if options.json:
        _print_json({"discarded": done})
    else:
        print(f"{done} discarded")
    return _nothing_missed(done, chosen)


def _chosen(options: Namespace, ledger: Ledger) -> Sequence[Entry]:
    """The entries that are named; none is touched if one of the ids is wrong."""
    counts = ledger.counts()
    there = ledger.entries(_DECIDABLE, sum(counts[state] for state in _DECIDABLE))
    if options.all:
        return there
    wrong = set(options.ids) - {entry.id for entry in there}
    if wrong:
        raise StiggGuardError(
            f"no dead or uncertain entry has the id {', '.join(sorted(wrong))}, so nothing was changed; "
            "see stigg-guard ledger list --state dead uncertain"
        )
    return [entry for entry in there if entry.id in options.ids]


def _nothing_missed(done: int, chosen: Sequence[Entry]) -> int:
    if done < len(chosen):
        _tell(f"{len(chosen) - done} others were decided by somebody else meanwhile")
    return 0


def _confirmed(options: Namespace, consequence: str) -> bool:
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise StiggGuardError(f"{consequence}; give --yes if that is right")
    print(f"{consequence}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _drain(options: Namespace) -> int:
    config = _that_reports(Config.from_env())
    with Guard(replace(config, ledger=_ledger_url(options, config))) as guard:
        drain = _Drain(guard, options.timeout)
        drain.run()
        counts, left = guard.ledger.counts(), drain.left()
    decidable = {state.value: counts[state] for state in _DECIDABLE}
    if options.json:
        _print_json({"acknowledged": drain.acknowledged, "left": left, **decidable})
    else:
        print(f"{drain.acknowledged} acknowledged, {left} left")
    if any(decidable.values()):
        _tell(f"{sum(decidable.values())} dead or uncertain; see stigg-guard ledger list --state dead uncertain")
    return 1 if left else 0


class _Drain:
    """Sends until nothing is left or the time is up, also while the sidecar is away, and tells how far it is."""

    def __init__(self, guard: Guard, timeout: float) -> None:
        self._ledger = guard.ledger
        self._reporter = Reporter(guard.ledger, lambda: guard.stigg, guard.config, self._progress, Clock())
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
                _tell(f"{self.left()} left, and the sidecar does not take them: {error}")
        else:
            self._reporter.flush(CALL_SECONDS)  # decides what is uncertain, too

    def _progress(self, _: Acknowledged) -> None:
        now = monotonic()
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            _tell(f"{self.left()} left, {self.acknowledged / (now - self._began):.0f} a second")


def _report(options: Namespace) -> int:
    config = _that_reports(Config.from_env())
    customer = Customer(options.customer, options.resource)
    key = UsageKey(customer.id, customer.resource or "", options.feature)
    with Guard(replace(config, report=ReportMode.INLINE)) as guard:
        before = {entry.id for entry in _entries_of(guard.ledger, key)}
        guard.report(options.feature, options.value, customer=customer, set_total=options.set)
        guard.flush(RETRY_SECONDS)
        after = _entries_of(guard.ledger, key)
    if any(entry.state is State.DEAD and entry.id not in before for entry in after):
        return 2  # the log has said why
    if any(entry.state in _ON_ITS_WAY for entry in after):
        _tell(f"not taken by the sidecar: {_whereabouts(config)}")
        return 1
    print(f"{'set to' if options.set else 'reported'} {options.value:g}")
    return 0


def _entries_of(ledger: Ledger, key: UsageKey) -> list[Entry]:
    return [entry for entry in ledger.entries(list(State), MAX_LISTED) if entry.key == key]


def _whereabouts(config: Config) -> str:
    if config.ledger == IN_MEMORY:
        return "lost, since the ledger is in memory; name a file in STIGG_GUARD_LEDGER"
    return "kept in the ledger, from where the application sends it, or stigg-guard ledger drain"


def _that_reports(config: Config) -> Config:
    if config.sidecar == "offline":
        raise ConfigError("SIDECAR: 'offline' reports nothing; name the sidecar in STIGG_GUARD_SIDECAR")
    if not config.enabled:
        raise ConfigError("ENABLED: a guard that is disabled reports nothing; set STIGG_GUARD_ENABLED=1")
    return config


def _ledger_url(options: Namespace, config: Config) -> str:
    """The ledger that was asked for. It must be there, so that a wrong path does not make an empty one."""
    url: str = options.url or config.ledger or default_ledger(user_state_folder(), config.sidecar)
    remedy = "name the application's ledger in --url or STIGG_GUARD_LEDGER"
    if url == IN_MEMORY:
        raise ConfigError(f"LEDGER: what is in {IN_MEMORY} only its own process can see; {remedy}")
    scheme, _, path = url.partition(":///")
    if scheme == "sqlite" and not Path(unquote(path)).exists():
        raise ConfigError(f"LEDGER: there is no file {Path(unquote(path)).absolute()}; {remedy}")
    return url


@contextmanager
def _opened(options: Namespace) -> Iterator[Ledger]:
    with closing(ledger_from_url(_ledger_url(options, Config.from_env()), Clock())) as ledger:
        yield ledger


def _fields(entry: Entry) -> Mapping[str, Any]:
    fields = asdict(entry)
    used_at = datetime.fromtimestamp(entry.used_at, timezone.utc).isoformat()
    return {**fields.pop("key"), **fields, "used_at": used_at}


def _row(entry: Entry) -> tuple[str, ...]:
    amount = f"={entry.amount:.15g}" if entry.is_set else f"{entry.amount:+.15g}"
    key = entry.key
    what = (entry.id, entry.state.value, key.customer_id, key.resource_id, key.feature_id, amount)
    return (*what, _age(time() - entry.used_at), str(entry.attempts), entry.reason)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, *([_cell(text) for text in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(text: str) -> str:
    return text if text.isprintable() else repr(text)  # ids and reasons come from elsewhere and may hold anything


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LISTED:
        raise ArgumentTypeError(f"{text!r} is no number of entries; give 1 to {MAX_LISTED}")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if isfinite(seconds := float(text)) and seconds > 0:
            return seconds
    raise ArgumentTypeError(f"{text!r} is no time; give a number of seconds above 0")

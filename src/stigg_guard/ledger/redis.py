"""The distributed ledger: one Redis that the processes of all hosts share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote, unquote

from stigg_guard.clock import Clock, utc_now
from stigg_guard.errors import ClientClosed, ConfigError, InvalidRequest, LedgerUnavailable, MissingExtra
from stigg_guard.ledger.entries import Acknowledged, Batch, Claim, Entry, Event, Hold, Refused, State, UsageKey, Use

EVENTS_PER_USAGE = 10

try:
    from redis import ConnectionPool, Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, RedisError, ResponseError
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra("redis", "A Redis ledger") from error

logger = logging.getLogger("stigg_guard")

CONNECT_SECONDS = 0.25
ANSWER_SECONDS = 0.25
SPLIT_SECONDS = 30.0
COMMITS_REMEMBERED_SECONDS = 600
CUSTOMERS_AT_ONCE = 500

PREFIX = "stigg-guard:"
_CUSTOMER_KEYS = (
    *("usage", "entries", "live", "counters", "tallies"),
    *("held", "unsent", "event", "sending", "uncertain", "dead"),
)
_QUEUE = f"{PREFIX}{{queue}}:"
_QUEUES = {state: f"{_QUEUE}{state}" for state in ("unsent", "event", "uncertain")}
_CUSTOMERS, _LEASES, _LATE = f"{_QUEUE}customers", f"{_QUEUE}leases", f"{_QUEUE}late"
_QUEUE_KEYS = (_CUSTOMERS, _LEASES, *_QUEUES.values())

_SCRIPT = files("stigg_guard.ledger").joinpath("redis.lua").read_text("utf-8")
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

# How no customer with something to send is ever forgotten.
#
# What a customer has and the queue of customers live under different hash tags, so no script can change both. A step
# that leaves something to send therefore first queues its customer, with a token, and then changes the customer: a
# crash between the two leaves a customer in the queue in vain, which does no harm. A visitor of the queue that finds
# nothing to send notes the token that it saw with the customer, atomically with having found nothing, and then takes
# the customer out of the queue if the token there is still the same. A step whose token is not above the noted one is
# refused, and begins again with a higher token. So whoever takes a customer out has seen the token of each step that
# queued it before, and those steps either showed the visitor what they left to send, or are refused.
#
# Tokens only grow in the queue. They come from hosts' clocks, and a clock that is wrong costs a refusal, nothing else.


class RedisLedger:
    """A ledger in Redis (6.2 or newer), exact among all hosts that use the same URL.

    What concerns one customer is one atomic step; a call about several customers is one step for each of them. Holds
    and leases are timed by the Redis server, so hosts' clocks do not matter. What Redis keeps over a restart is kept:
    all with ``appendfsync always``, all but the last second at a power failure with ``everysec``.

    Each answer is waited for at most a quarter of a second, or what ``?socket_timeout=`` in the URL says, in seconds.
    ``LedgerUnavailable`` after that, or after a lost connection, may mean that the step was made and only its answer
    was lost: a hold then expires, and a commit may be repeated for ten minutes, as no hold is committed twice.

    Raises:
        MissingExtra: on import, when redis-py is not installed.
        ConfigError: the URL is none of a Redis.
    """

    def __init__(self, url: str, clock: Clock, *, settle_grace: float = 0.0) -> None:
        self._server = _Server(url)
        self._now = None if clock.now is utc_now else clock.now
        self._grace = settle_grace
        self._token = 0

    def ticket(self, customer_id: str) -> int:
        counters = _customer_keys(_quoted(customer_id))[_CUSTOMER_KEYS.index("counters")]
        return int(self._server.ask(("HINCRBY", counters, "ticket", 1)))

    def hold(self, claims: Sequence[Claim], ttl: float) -> Hold | Refused:
        """As the protocol says, for claims of one customer.

        Raises:
            InvalidRequest: they are of different customers, or there are none.
        """
        customer = _one_customer(claim.key for claim in claims)
        hold = Hold(secrets.token_hex(8), tuple(claims))
        wishes = [field for claim in claims for field in _claim_fields(claim)]
        answer = self._queue({customer: ("hold", hold.id, ttl, self._grace, *wishes)})[customer]
        return Refused(claims[answer[0]], float(answer[1])) if answer else hold

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        self._server.ask_all([self._of(_holder(hold), "renew", ttl, *_held_ids(hold)) for hold in holds])

    def commit(self, hold: Hold, uses: Sequence[Use]) -> Sequence[float]:
        """As the protocol says. A hold that was committed before is not committed again; the usage is told anew.

        Raises:
            InvalidRequest: the uses are of another customer.
        """
        customer = _one_customer([*(claim.key for claim in hold.claims), *(use.key for use in uses)])
        queues = {"event" if use.event else "unsent" for use in uses if use.amount or use.is_set}
        held = _held_ids(hold)
        used = [field for use in uses for field in _use_fields(use)]
        step = {customer: ("commit", hold.id, COMMITS_REMEMBERED_SECONDS, len(held), *held, *used)}
        ended = f"{_customer_prefix(customer)}ended:{hold.id}"
        try:
            late, *usage = self._queue(step, queues, ended)[customer]
        except LedgerUnavailable:  # perhaps only the answer was lost
            try:
                late, *usage = self._queue(step, queues, ended)[customer]
            except LedgerUnavailable as error:
                error.repeat, error.repeatable = lambda: self.commit(hold, uses), COMMITS_REMEMBERED_SECONDS
                raise
        if late:
            with suppress(LedgerUnavailable):  # the commit is made, whoever counts it
                self._server.ask(("INCR", _LATE))
        return [float(number) for number in usage]

    def release(self, hold: Hold) -> None:
        self._server.ask(self._of(_holder(hold), "release", *_held_ids(hold)))

    def record(self, use: Use) -> float:
        return self.commit(Hold(secrets.token_hex(8), ()), [use])[0]

    def take_batch(self, size: int, lease: float) -> Batch | None:
        while True:
            new = secrets.token_hex(16)
            opened = self._server.ask(self._of_queue("open", lease, size, new, batch=new))
            if opened is None:
                return None
            batch, until, kind, *seen = opened
            rows = self._fill(batch, until, kind, _pairs(seen), size) if kind else self._refill(batch, until)
            if rows:
                return Batch(batch, _in_order(rows))

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        fields: defaultdict[str, list[Any]] = defaultdict(list)
        for answer in answers:
            customer, entry = _split_id(answer.report.id)
            current = "" if answer.current_usage is None else answer.current_usage
            fields[customer] += [entry, current, answer.period_start, answer.report.amount]
        self._change({customer: ("acknowledge", *given) for customer, given in fields.items()}, ("unsent",))

    def put_back(self, reports: Sequence[Entry]) -> None:
        self._move(_ids(reports), "sending uncertain", State.UNSENT, ("unsent", "event"))

    def postpone(self, batch: Batch, seconds: float) -> None:
        self._server.ask(self._of_queue("postpone", batch.id, seconds))

    def split(self, batch: Batch) -> None:
        leases: list[_Command] = []
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for number, report in enumerate(batch.reports):
            part = f"{batch.id}/{number}"
            customer, entry = _split_id(report.id)
            leases.append(self._of_queue("lease", SPLIT_SECONDS, part, customer, batch=part))
            parts[customer] += [entry, part]
        until = self._server.ask_all(leases)[0]
        steps = [self._of(customer, "split", batch.id, until, *given) for customer, given in parts.items()]
        moved = [customer for customer, done in zip(parts, self._server.ask_all(steps), strict=True) if done]
        due = [self._of_queue("postpone", part, 0) for customer in moved for part in parts[customer][1::2]]
        self._server.ask_all([*due, self._of_queue("leave", batch.id, *moved, batch=batch.id)])

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        queues = ("unsent",) if seconds is None else ("uncertain",)
        self._move(_ids(reports), "sending uncertain", State.UNCERTAIN, queues, seconds, reason)

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        rows: list[_Row] = []
        for customer, token in _pairs(self._server.ask(self._of_queue("due", size))).items():
            left = size - len(rows)
            back, *found = self._server.ask(self._of(customer, "take_uncertain", token, left, lease))
            self._server.ask(self._of_queue("dequeue", "uncertain", customer, token, back, ""))
            rows += _rows(customer, found)
        return _in_order(rows)

    def bury(self, report: Entry, reason: str) -> None:
        self._move([report.id], "unsent sending uncertain", State.DEAD, ("unsent",), None, reason)

    def known_usage(self, key: UsageKey) -> float | None:
        used = self._server.ask(self._of(_quoted(key.customer_id), "known", _name(key)))
        return None if used is None else float(used)

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        rows: list[_Row] = []
        for seen in self._customers():
            steps = [self._of(customer, "list", limit, *(state.value for state in states)) for customer in seen]
            for customer, found in zip(seen, self._server.ask_all(steps), strict=True):
                rows += _rows(customer, found)
        return _in_order(rows)[:limit]

    def retry(self, ids: Sequence[str]) -> int:
        return self._move(ids, "dead uncertain", State.UNSENT, ("unsent", "event"))

    def discard(self, ids: Sequence[str]) -> int:
        return self._move(ids, "dead uncertain", None, ("unsent",))

    def counts(self) -> Mapping[str, int]:
        counted = dict.fromkeys((state.value for state in State), 0)
        for seen in self._customers():
            steps = [self._of(customer, "count", token) for customer, token in seen.items()]
            gone: list[Any] = []
            for (customer, token), (kept, *numbers) in zip(seen.items(), self._server.ask_all(steps), strict=True):
                for state, number in zip(counted, numbers, strict=True):
                    counted[state] += number
                if not kept:
                    gone += [customer, token, "", kept]
            if gone:
                self._server.ask(self._of_queue("dequeue", "", *gone))
        return {**counted, "late": int(self._server.ask(("GET", _LATE)) or 0)}

    def close(self) -> None:
        self._server.close()

    def _of(self, customer: str, step: str, *given: Any, ended: str | None = None) -> _Command:
        keys = _customer_keys(customer) if ended is None else (*_customer_keys(customer), ended)
        return _evalsha(keys, step, self._time(), *given)

    def _of_queue(self, step: str, *given: Any, batch: str | None = None) -> _Command:
        keys = _QUEUE_KEYS if batch is None else (*_QUEUE_KEYS, _batch_key(batch))
        return _evalsha(keys, step, self._time(), *given)

    def _time(self) -> str:
        """The injected clock's time; empty to let the server take its own."""
        return "" if self._now is None else repr(self._now().timestamp())

    def _queue(
        self, steps: Mapping[str, Sequence[Any]], queues: Collection[str] = (), ended: str | None = None
    ) -> dict[str, Any]:
        """Queues the customers and makes the step of each, until none is refused; the answers by customer."""
        answers: dict[str, Any] = {}
        while steps:
            self._token = token = max(time.time_ns() // 1000, self._token + 1)
            commands: list[_Command] = []
            for customer, (step, *given) in steps.items():
                commands.append(("ZADD", _CUSTOMERS, "GT", token, customer))
                for queue in queues:
                    score = 0 if queue == "uncertain" else token  # there it is the time when a decision is due
                    commands.append(("ZADD", _QUEUES[queue], "LT", score, customer))
                commands.append(self._of(customer, step, token, *given, ended=ended))
            answered = self._server.ask_all(commands)[len(queues) + 1 :: len(queues) + 2]
            answers.update(zip(steps, answered, strict=True))
            steps = {customer: steps[customer] for customer in steps if isinstance(answers[customer], int)}
            self._token = max(self._token, *(answers[customer] for customer in steps), 0)
        return answers

    def _change(self, steps: Mapping[str, Sequence[Any]], queues: Collection[str]) -> int:
        """Changes entries of customers, and lets go of batches of which nothing is left; how many entries it were."""
        changed, leaving = 0, []
        for customer, (number, batches) in self._queue(steps, queues).items():
            changed += number
            leaving += [self._of_queue("leave", batch, customer, batch=batch) for batch in batches]
        self._server.ask_all(leaving)
        return changed

    def _move(
        self,
        ids: Iterable[str],
        leaving: str,
        entering: State | None,
        queues: Collection[str],
        seconds: float | None = None,
        reason: str = "",
    ) -> int:
        """Moves the entries that are in one of the states ``leaving``, and forgets them without a state to enter."""
        entries: defaultdict[str, list[str]] = defaultdict(list)
        for entry_id in ids:
            customer, entry = _split_id(entry_id)
            entries[customer].append(entry)
        to = entering.value if entering else ""
        due = "" if seconds is None else seconds
        steps = {customer: ("change", leaving, to, due, reason, *moved) for customer, moved in entries.items()}
        return self._change(steps, queues)

    def _fill(self, batch: str, until: str, kind: str, seen: Mapping[str, str], size: int) -> list[_Row]:
        """Marks entries of the customers as the batch; who has nothing left to send is taken out of the queue."""
        room = size * (EVENTS_PER_USAGE if kind == "event" else 1) // len(seen)
        steps = [self._of(customer, "take", token, batch, until, room, kind) for customer, token in seen.items()]
        rows: list[_Row] = []
        gone: list[Any] = []
        for customer, (more, kept, *found) in zip(seen, self._server.ask_all(steps), strict=True):
            rows += _rows(customer, found)
            if not more:
                gone += [customer, seen[customer], "", kept]
        idle = seen.keys() - {customer for customer, _ in rows}
        leave = self._of_queue("leave", batch, *idle, batch=batch)
        self._server.ask_all([self._of_queue("dequeue", kind, *gone), leave])
        return rows

    def _refill(self, batch: str, until: str) -> list[_Row]:
        """What is left of a batch whose lease ended."""
        customers = sorted(self._server.ask(("SMEMBERS", _batch_key(batch))))
        steps = [self._of(customer, "take", "", batch, until, 0, "") for customer in customers]
        rows: list[_Row] = []
        for customer, (_, _, *found) in zip(customers, self._server.ask_all(steps), strict=True):
            rows += _rows(customer, found)
        idle = set(customers) - {customer for customer, _ in rows}
        self._server.ask(self._of_queue("leave", batch, *idle, batch=batch))
        return rows

    def _customers(self) -> Iterator[dict[str, str]]:
        """All customers that may have entries, with the tokens that they were queued with, some at a time."""
        seen = self._server.ask(self._of_queue("customers"))
        step = 2 * CUSTOMERS_AT_ONCE
        return (_pairs(seen[start : start + step]) for start in range(0, len(seen), step))


class _Server:
    """The connections of this process to the Redis at a URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._closed = False
        self._checked = False
        self._connect()
        where = self._pool.connection_kwargs
        self._address = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"

    def ask(self, command: _Command) -> Any:
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[_Command]) -> list[Any]:
        """Sends the commands in one go, in this order; their answers.

        Raises:
            LedgerUnavailable: not all of them were answered, or one with an error.
        """
        if self._closed:
            raise ClientClosed("the guard or its ledger is closed; make a new one")
        if self._pid != os.getpid():
            self._connect()
        try:
            self._check()
            return self._answers(commands)
        except RedisError as error:
            raise LedgerUnavailable(f"the Redis ledger at {self._address} cannot be used: {error}") from error

    def close(self) -> None:
        self._closed = True
        if self._pid == os.getpid():
            self._pool.disconnect(inuse_connections=False)

    def _connect(self) -> None:
        """Begins with no connection; those of a parent process are left alone, and so are the locks around them."""
        self._pool = self._made()
        self._client = Redis(connection_pool=self._pool)
        self._pid = os.getpid()

    def _made(self) -> ConnectionPool:
        try:
            pool = ConnectionPool.from_url(
                self._url,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
                encoding_errors="surrogatepass",
            )
            pool.make_connection()  # it does not connect yet, and refuses what it does not know
            return pool
        except (ValueError, TypeError):  # their text may quote a piece of the password
            raise ConfigError(
                "LEDGER: expected redis://user:password@host:port/number or rediss://…, with what a URL cannot carry "
                "percent-encoded"
            ) from None

    def _answers(self, commands: Sequence[_Command]) -> list[Any]:
        answers = self._sent(commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            self._client.script_load(_SCRIPT)
            repeated = self._sent([commands[i] for i in unknown])
            for i, answer in zip(unknown, repeated, strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    def _sent(self, commands: Sequence[_Command]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call] # redis-py has no types for it
            return pipeline.execute(raise_on_error=False)

    def _check(self) -> None:
        if self._checked:
            return
        if self._keeps_nothing():
            logger.warning(
                "the Redis ledger at %s writes nothing to disk: holds and unreported usage are lost when it stops; "
                "set appendonly yes",
                self._address,
            )
        self._checked = True

    def _keeps_nothing(self) -> bool:
        if self._client.info("persistence").get("aof_enabled"):
            return False
        try:
            return not self._client.config_get("save").get("save")
        except ResponseError:  # hosted servers do not tell
            return False


_Command = tuple[Any, ...]
_Row = tuple[str, list[Any]]


def _evalsha(keys: Sequence[str], *given: Any) -> _Command:
    return ("EVALSHA", _SHA, len(keys), *keys, *given)


def _quoted(part: str) -> str:
    """An id as a piece of a key: no two ids alike, and none with a brace or a slash."""
    return quote(part, safe="", errors="surrogatepass")


def _unquoted(part: str) -> str:
    return unquote(part, errors="surrogatepass")


def _name(key: UsageKey) -> str:
    return f"{_quoted(key.resource_id)}/{_quoted(key.feature_id)}"


def _customer_prefix(customer: str) -> str:
    return f"{PREFIX}{{customer/{customer}}}:"


@lru_cache(maxsize=1024)
def _customer_keys(customer: str) -> tuple[str, ...]:
    prefix = _customer_prefix(customer)
    return tuple(prefix + name for name in _CUSTOMER_KEYS)


def _batch_key(batch: str) -> str:
    return f"{_QUEUE}batch:{batch}"


def _one_customer(keys: Iterable[UsageKey]) -> str:
    customers = {key.customer_id for key in keys}
    if len(customers) != 1:
        raise InvalidRequest("customer_id", "a Redis ledger holds and commits for one customer at a time")
    return _quoted(customers.pop())


def _holder(hold: Hold) -> str:
    return _one_customer(claim.key for claim in hold.claims)


def _held_ids(hold: Hold) -> list[str]:
    return [f"{_name(claim.key)}/{hold.id}.{number}" for number, claim in enumerate(hold.claims, 1)]


def _claim_fields(claim: Claim) -> _Command:
    limit = "" if claim.limit is None else claim.limit
    return (
        _name(claim.key),
        claim.amount,
        limit,
        claim.known_usage,
        claim.period_start,
        claim.ticket,
        claim.fetched_at,
    )


def _use_fields(use: Use) -> _Command:
    return _name(use.key), use.amount, int(use.is_set), use.period_start, _event_text(use.event)


def _event_text(event: Event | None) -> str:
    if event is None:
        return ""
    fields = {"name": event.name, "idempotency_key": event.idempotency_key, "dimensions": dict(event.dimensions)}
    return json.dumps(fields)


def _ids(reports: Iterable[Entry]) -> list[str]:
    return [report.id for report in reports]


def _split_id(entry_id: str) -> tuple[str, str]:
    customer, _, entry = entry_id.partition("/")
    return customer, entry


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _rows(customer: str, found: Iterable[list[Any]]) -> list[_Row]:
    return [(customer, row) for row in found]


def _in_order(rows: Sequence[_Row]) -> list[Entry]:
    return [_entry(customer, row) for customer, row in sorted(rows, key=_number)]


def _number(row: _Row) -> tuple[float, str]:
    customer, fields = row
    return float(fields[-1]), customer


def _entry(customer: str, row: Sequence[Any]) -> Entry:
    entry_id, state, amount, is_set, used_at, event, reason, attempts, _ = row
    resource, feature, _ = entry_id.split("/")
    key = UsageKey(_unquoted(customer), _unquoted(resource), _unquoted(feature))
    what = Event(**json.loads(event)) if event else None
    return Entry(
        id=f"{customer}/{entry_id}",
        state=State(state),
        key=key,
        amount=float(amount),
        is_set=bool(is_set),
        used_at=float(used_at),
        event=what,
        reason=reason,
        attempts=attempts,
    )

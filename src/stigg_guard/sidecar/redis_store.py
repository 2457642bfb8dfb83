"""The state of several sidecars: one Redis, which they share exactly. Each knows all of it, and learns what is new."""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from random import uniform
from threading import Event, Lock
from typing import Any, TypeAlias

from stigg_guard.errors import MissingExtra
from stigg_guard.runtime.log import logger
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.sidecar.state import (
    ANSWERS_KEPT,
    CounterKey,
    CreditEvent,
    EventKey,
    RecordKey,
    State,
    StateUnavailable,
    StoredResponse,
    Transaction,
)

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError, ResponseError
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra("redis", "A sidecar with Redis") from error

from stigg_guard.settings.redis_homes import home_of  # it needs redis-py, too
from stigg_guard.settings.urls import prefix_at

FORMAT = 1
ANSWER_SECONDS = 0.5
REST_SECONDS = 1.0
"""How long Redis is left alone after it failed."""
FOLLOW_SECONDS = 1.0
TURN_SECONDS = 3.0
"""How long a sidecar that died in its turn keeps the others from writing."""
PATIENCE_SECONDS = 4.0
LOG_LENGTH = 10_000
_NOTHING = "0-0"
_DEFAULTS = {"socket_connect_timeout": ANSWER_SECONDS, "socket_timeout": ANSWER_SECONDS}
# Who else writes there need not write texts.
_FIXED = {"retry": Retry(NoBackoff(), 0), "decode_responses": True, "encoding_errors": "replace"}
_HASHES = ("usage", "plans", "records")

_Changes: TypeAlias = tuple[
    Mapping[CounterKey, float],
    Mapping[tuple[str, str], "str | None"],
    Mapping[RecordKey, "Mapping[str, Any] | None"],
]
"""Of usage, plans and records."""

# What came after an entry of the log: the newest entry's id and the entries, or false for who must read all anew.
_NEWS = """
local function news(log, last)
    local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    local id = newest and newest[1] or '0-0'
    if id == last then return {id, {}} end
    local was_empty = last == '0-0' and redis.call('XLEN', log) < 1000  -- nothing of it was cut off
    if not was_empty and #redis.call('XRANGE', log, last, last) == 0 then return {id, false} end
    return {id, redis.call('XRANGE', log, '(' .. last, '+')}
end
"""
_LEARN = f"{_NEWS} return news(KEYS[1], ARGV[1])"
# One sidecar writes at a time: the one whose token is there.
_TAKE = f"""{_NEWS}
if redis.call('EXISTS', KEYS[2]) == 1 then return false end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return news(KEYS[1], ARGV[1])
"""
_READ = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('the turn is over') end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return redis.call(unpack(ARGV, 3))
"""
_COMMIT = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('the turn is over') end
for _, command in ipairs(cjson.decode(ARGV[2])) do redis.call(unpack(command)) end
redis.call('DEL', KEYS[2])
if ARGV[3] == '' then return false end
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'changes', ARGV[3])
"""
_GIVE_BACK = "if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end"


class RedisStore(State):
    """The state in the Redis at ``url``, for all sidecars of one ``prefix``.

    While Redis does not answer, checks are answered from what is known, and a change raises ``StateUnavailable``. Redis
    is asked again after a second. What it has lost and is known here is written back. Raises ``ConfigError`` for a URL
    that is none.
    """

    def __init__(
        self, prefix: str, url: str, metrics: Metrics, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._home = home_of(url, "REDIS_HOST, REDIS_PORT, REDIS_DB", _DEFAULTS, _FIXED)
        self._prefix = f"{prefix_at(url, prefix)}:sidecar:{FORMAT}"
        self._redis = self._home.client(self._prefix)
        self._address = self._home.address
        self._errors = metrics.redis_client_errors
        self._monotonic = monotonic
        self._scripts = {
            text: self._redis.register_script(text) for text in (_LEARN, _TAKE, _READ, _COMMIT, _GIVE_BACK)
        }
        self._log = self.key("log")
        self._keys = [self._log, self.key("turn")]
        self._writing = Lock()
        self._learning = Lock()
        self._last: str | None = None
        self._seeds: Mapping[CounterKey, float] = {}
        self._rests_until = 0.0
        self._failing: str | None = None
        """The script that fails, empty while Redis answers nothing; None if nothing fails."""
        self._has_skipped = False
        self.refresh()
        if self._last is None:
            metrics.initialization_errors.inc()

    def refresh(self) -> bool:
        last = self._last
        try:
            newest, entries = self._run(_LEARN, last or _NOTHING)
            knew = bool(newest == last)
            if self._has_lost(newest):
                with self._turn():
                    pass  # whoever has the turn gives Redis back what it has lost
            elif not knew:
                self._take_in(newest, entries)
            if self._seeds:
                self._sow()
        except StateUnavailable:
            return True
        return knew

    def follow(self, over: Event) -> None:
        patience = FOLLOW_SECONDS + ANSWER_SECONDS
        with closing(self._home.client(self._prefix, socket_timeout=patience)) as redis:
            while not over.is_set():
                try:
                    redis.xread({self._log: self._last or _NOTHING}, count=1, block=int(FOLLOW_SECONDS * 1000))
                except (RedisError, OSError):
                    over.wait(REST_SECONDS)
                if not over.is_set():
                    self.refresh()

    def seed(self, amounts: Mapping[CounterKey, float]) -> None:
        """As ``State.seed``; without Redis they are known here, and written when it is back."""
        self._seeds = amounts
        try:
            self._sow()
        except StateUnavailable:
            self._usage.update(dict(self._unwritten(amounts)))

    def credit_events(self, customer: str) -> list[CreditEvent]:
        rows = self._ask(lambda redis: redis.lrange(self.key("credit-events", customer), 0, -1))
        return [CreditEvent(*json.loads(row)) for row in rows]

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        if self._seeds:
            self._sow()
        with self._turn() as transaction:
            yield transaction

    def close(self) -> None:
        self._redis.close()

    def read(self, token: str, *command: str) -> Any:
        """The answer to a command within a turn, which is prolonged. Raises ``StateUnavailable`` when it is over."""
        return self._run(_READ, token, int(TURN_SECONDS * 1000), *command)

    def key(self, *parts: str) -> str:
        """The name of a key."""
        return ":".join((self._prefix, *parts))

    @contextmanager
    def _turn(self) -> Iterator[_Transaction]:
        with self._writing:
            token = secrets.token_hex(8)
            self._take_turn(token)
            transaction = _Transaction(self, token)
            try:
                yield transaction
            except BaseException:
                with suppress(StateUnavailable):
                    self._run(_GIVE_BACK, token)
                raise
            changes = transaction.changes()
            newest = self._commit(token, transaction.commands(), changes)
            if newest:
                self._take_in(newest, [(newest, {"changes": changes})])

    def _take_turn(self, token: str) -> None:
        gives_up = self._monotonic() + PATIENCE_SECONDS
        while (taken := self._run(_TAKE, self._last or _NOTHING, token, int(TURN_SECONDS * 1000))) is None:
            if self._monotonic() > gives_up:
                raise StateUnavailable("another sidecar has been writing all the time; try again")
            time.sleep(uniform(0.0002, 0.002))  # noqa: S311 - so that two that wait do not go on meeting
        newest, entries = taken
        if self._has_lost(newest) and not self._has_all_but_log(newest, token):
            self._write_back(token)
            self._take_turn(token)
        elif newest != self._last:
            self._take_in(newest, entries)

    def _commit(self, token: str, commands: Iterable[Sequence[str]], changes: str) -> str | None:
        """Write it, and end the turn; the id of its entry in the log, if it has one."""
        newest: str | None = self._run(_COMMIT, token, json.dumps(list(commands)), changes, LOG_LENGTH)
        return newest

    def _has_lost(self, newest: str) -> bool:
        """Whether the newest entry of the log is older than what is known here: Redis took that, and has it no more."""
        return self._last is not None and _order(newest) < _order(self._last)

    def _has_all_but_log(self, newest: str, token: str) -> bool:
        """Whether somebody deleted the log alone: what others have written since is in the hashes."""
        return newest == _NOTHING and bool(self.read(token, "EXISTS", *(self.key(name) for name in _HASHES)))

    def _write_back(self, token: str) -> None:
        """Give Redis all that is known here in the place of the older state that it has, and end the turn."""
        known = _Transaction(self, token)
        known.usages, known.plans, known.kept = dict(self._usage), dict(self._plans), dict(self._records)
        older = ("DEL", *(self.key(name) for name in _HASHES))
        self._last = self._commit(token, (older, *known.commands()), known.changes()) or _NOTHING
        logger.error("Redis at %s lost what it had taken; what is known here was written back", self._address)

    def _sow(self) -> None:
        seeds, self._seeds = self._seeds, {}
        try:
            with self._turn() as transaction:
                for key, amount in self._unwritten(seeds):
                    transaction.set_usage(key, amount)
        except BaseException:
            self._seeds = seeds
            raise

    def _take_in(self, newest: str, entries: Any) -> None:
        """Learn the entries, or all anew where there is no way from what is known to the newest one."""
        with self._learning:
            if entries is None or self._last is None:
                self._load()
                return
            for id_, fields in _pairs(entries):
                if _order(id_) > _order(self._last):
                    self._learn(*self._read_changes(fields))
                    self._last = id_

    def _read_changes(self, fields: Mapping[str, str]) -> _Changes:
        try:
            return _changes(fields["changes"])
        except (KeyError, ValueError, TypeError):
            if not self._has_skipped:
                logger.warning("an entry of %s in Redis is not of a sidecar; such entries are skipped", self._log)
            self._has_skipped = True
            return {}, {}, {}

    def _load(self) -> None:
        def read(redis: Redis) -> Any:
            with redis.pipeline(transaction=True) as pipeline:
                for name in _HASHES:
                    pipeline.hgetall(self.key(name))
                pipeline.xrevrange(self._log, count=1)
                return pipeline.execute()

        usage, plans, records, newest = self._ask(read)
        is_first, self._last = self._last is None, newest[0][0] if newest else _NOTHING
        self._usage, self._plans, self._records = {}, {}, {}
        self._learn(
            {CounterKey(*json.loads(key)): float(amount) for key, amount in usage.items()},
            {tuple(json.loads(key)): json.loads(plan) for key, plan in plans.items()},
            {RecordKey(*json.loads(key)): json.loads(content) for key, content in records.items()},
        )
        if not is_first:
            logger.warning("the state in Redis at %s is not the one from before; it was read anew", self._address)
            self.on_change(None)

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._ask(lambda _: self._scripts[script](keys=self._keys, args=arguments), script)

    def _ask(self, step: Callable[[Redis], Any], script: str = "") -> Any:
        if self._monotonic() < self._rests_until:
            raise StateUnavailable(f"Redis at {self._address} does not answer")
        try:
            answer = step(self._redis)
        except (RedisError, OSError) as error:
            self._errors.inc()
            if "turn is over" in str(error):
                raise StateUnavailable("this sidecar was too slow, and nothing was written; try again") from error
            self._rests_until = self._monotonic() + REST_SECONDS
            if self._failing is None:
                told = self._home.explained(error)
                logger.error("nothing can be counted while Redis at %s fails: %s", self._address, told)
            # One that may not be written, or is full, still answers who reads.
            self._failing = script if isinstance(error, ResponseError) else ""
            raise StateUnavailable(f"Redis at {self._address}: {error}") from error
        if self._failing in ("", script):
            self._failing = None
            logger.warning("Redis at %s answers again", self._address)
        return answer


class _Transaction(Transaction):
    """Gathers what is written as commands, and tells it as changes."""

    def __init__(self, store: RedisStore, token: str) -> None:
        super().__init__(store)
        self._store = store
        self._token = token

    def changes(self) -> str:
        """What others must learn, as JSON; empty if nothing."""
        told = [list(self.usages.items()), list(self.plans.items()), list(self.kept.items())]
        return json.dumps(told) if any(told) else ""

    def commands(self) -> Iterable[Sequence[str]]:
        """What writes it, each as the words of one command."""
        key = self._store.key
        for counter, amount in self.usages.items():
            yield "HSET", key("usage"), json.dumps(counter), repr(amount)
        for whose, plan in self.plans.items():
            yield "HSET", key("plans"), json.dumps(whose), json.dumps(plan)
        for record, content in self.kept.items():
            if content is None:
                yield "HDEL", key("records"), json.dumps(record)
            else:
                yield "HSET", key("records"), json.dumps(record), json.dumps(content)
        for event in self.credit_events:
            yield "RPUSH", key("credit-events", event.customer), json.dumps(event)
        for identity in self.events:
            yield "SADD", key("events"), _digest(identity)
        for counted, value in self.values:
            yield "SADD", key("values"), _digest((*counted, value))
        for name, (answer, given_at) in self.answers.items():
            told = [b64encode(part).decode() for part in answer]
            yield "SET", key("answer", name), json.dumps([*told, given_at]), "EX", str(int(ANSWERS_KEPT))

    def _knows_event(self, key: EventKey) -> bool:
        return bool(self._store.read(self._token, "SISMEMBER", self._store.key("events"), _digest(key)))

    def _knows_value(self, key: CounterKey, value: str) -> bool:
        return bool(self._store.read(self._token, "SISMEMBER", self._store.key("values"), _digest((*key, value))))

    def _stored_answer(self, idempotency_key: str) -> tuple[StoredResponse, float] | None:
        found = self._store.read(self._token, "GET", self._store.key("answer", idempotency_key))
        if found is None:
            return None
        request, response, given_at = json.loads(found)
        return StoredResponse(b64decode(request), b64decode(response)), given_at


def _changes(told: str) -> _Changes:
    usages, plans, records = json.loads(told)
    return (
        {CounterKey(*key): float(amount) for key, amount in usages},
        {(customer, resource): plan for (customer, resource), plan in plans},
        {RecordKey(*key): content for key, content in records},
    )


def _pairs(entries: Any) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Entries as a script answers them, in which fields and values are one list."""
    for id_, fields in entries:
        yield id_, fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))


def _order(id_: str) -> tuple[int, int]:
    instant, _, number = id_.partition("-")
    return int(instant), int(number)


def _digest(key: Sequence[str]) -> str:
    return blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()

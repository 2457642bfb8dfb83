"""The shared cache: snapshots in Redis that all processes share, and their invalidation."""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from stigg_guard.cache.redis import FAULTS, ONCE, Listener, cache_client, cache_home
from stigg_guard.cache.shared import WAIT_PART, AllOf, Fetch
from stigg_guard.cache.snapshots import Listed, Snapshot, snapshot_of
from stigg_guard.clock import Clock, utc_now
from stigg_guard.config import Config
from stigg_guard.entitlements import Customer
from stigg_guard.ledger import Ticket
from stigg_guard.runtime.log import logger
from stigg_guard.runtime.threads import start
from stigg_guard.settings.redis_homes import Home, home_of
from stigg_guard.settings.urls import REDIS, prefix_at
from stigg_guard.wire import sidecar_pb2 as wire

if TYPE_CHECKING:
    from redis import Redis

REST_SECONDS = 1.0
USES_KEPT_SECONDS = 86_400
"""How long it is known who was asked for: longer than any cache service wants to know."""
USES_AT_A_TIME = 5_000

# A stored snapshot is a line of the format's number, the stamp, the ticket with its time on the ledger's clock, the
# ledger that it is of, the kind of message and a digest, and then the sidecar's answer. The digest covers the key too,
# so that neither a damaged value nor one under another customer's key is ever believed. An invalidation leaves only the
# number and the stamp: a fetch that began before it is not stored any more. One that is of many snapshots leaves them
# under a key of its own, and what was fetched before is not found any more.
_STORED = re.compile(
    rb"2 (?P<stamp>[0-9]{1,16}) (?P<ticket>[0-9]{1,18}) (?P<at>[0-9]{1,18}) (?P<ledger>[0-9]+|-) (?P<name>\w+) "
    rb"(?P<digest>[0-9a-f]{32})\n(?P<payload>.*)",
    re.DOTALL,
)
_INVALIDATED = re.compile(rb"1 [0-9]{1,16}")

_RESPONSES = {
    message.DESCRIPTOR.name: message for message in (wire.GetEntitlementsStateV2Response, wire.GetEntitlementsResponse)
}

# Stamps are the server's time in microseconds, or the time given in the first argument.
_NOW = """
local function now()
    if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end
local function outdated(stamp)  -- by an invalidation of many; KEYS[2] and KEYS[3] are theirs
    for index = 2, 3 do
        local value = redis.pcall('GET', KEYS[index])
        local since = type(value) == 'string' and tonumber(string.match(value, '^1 (%d+)'))
        if since and since > stamp and since <= now() then return true end
    end
    return false
end
local function set(value, ttl)
    if tonumber(ttl) < 0 then redis.call('SET', KEYS[1], value)
    else redis.call('SET', KEYS[1], value, 'EX', ttl) end
end
"""

# Each lookup for a use is noted under KEYS[4]. A Redis that cannot write at the moment finds all the same.
_FIND = f"""{_NOW}
local stamp = string.format('%.0f', now())
if KEYS[4] then
    redis.pcall('ZADD', KEYS[4], stamp, ARGV[2])
    redis.pcall('ZREMRANGEBYSCORE', KEYS[4], '-inf', stamp - ARGV[3])
    redis.pcall('EXPIRE', KEYS[4], ARGV[3] / 1000000)
end
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then value = '' end  -- a key of another type
local fetched = value and tonumber(string.match(value, '^2 (%d+)'))
if fetched and outdated(fetched) then value = false end
return {{stamp, value}}
"""

# KEYS[4] has the process that fetches. What is newer than the stamp in ARGV[2] need not be fetched.
_BEGIN = f"""{_NOW}
local value = redis.pcall('GET', KEYS[1])
local fetched = type(value) == 'string' and tonumber(string.match(value, '^2 (%d+)'))
if fetched and fetched > tonumber(ARGV[2]) and fetched <= now() and not outdated(fetched) then return 'done' end
local begun = redis.pcall('SET', KEYS[4], ARGV[3], 'NX', 'PX', ARGV[4])  -- false if somebody else has
return (begun or redis.call('GET', KEYS[4]) == ARGV[3]) and 'ours' or 'theirs'
"""

_GIVE_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

# A stamp that is still to come was made before the server's clock was set back, or by nobody of us.
_STORE = f"""{_NOW}
redis.call('DEL', KEYS[4])
local known = redis.pcall('GET', KEYS[1])
local stamp = type(known) == 'string' and tonumber(string.match(known, '^[12] (%d+)'))
if stamp and stamp > tonumber(ARGV[3]) and stamp <= now() then return 0 end
if outdated(tonumber(ARGV[3])) then return 0 end
set(ARGV[4], ARGV[2])
return 1
"""

_INVALIDATE = f"""{_NOW}
local stamp = string.format('%.0f', now())
set('1 ' .. stamp, ARGV[2])
redis.call('PUBLISH', ARGV[3], stamp .. ' ' .. ARGV[4])
return stamp
"""

# What was fetched before the stamp in ARGV[3] is outdated; an invalidation that is later stays.
_OUTDATE = f"""{_NOW}
local known = redis.pcall('GET', KEYS[1])
local since = type(known) == 'string' and tonumber(string.match(known, '^1 (%d+)'))
if not since or since < tonumber(ARGV[3]) or since > now() then set('1 ' .. ARGV[3], ARGV[2]) end
return redis.call('PUBLISH', ARGV[4], ARGV[3] .. ' ' .. ARGV[5])
"""

_TELL = f"""{_NOW}
return redis.call('PUBLISH', ARGV[2], string.format('%.0f', now()) .. ' ' .. ARGV[3])
"""


class RedisSnapshots:
    """Snapshots in the Redis of ``config.cache``. ``ticket`` gives the number that orders the snapshots of a customer;
    ``expire`` is told who was invalidated by any process, and the stamp of it.

    Redis is waited for at most 50 ms, and after a failure it is left alone for a second. An invalidation that a process
    does not hear of takes effect there when its own snapshot expires. Nothing is connected before the first use.

    Raises:
        MissingExtra: on import, when redis-py is not installed.
        ConfigError: ``CACHE`` is no URL of a Redis.
    """

    _me: str
    _redis: Redis
    _listener: Listener

    def __init__(
        self,
        config: Config,
        clock: Clock,
        ticket: Callable[[Customer], Ticket],
        expire: Callable[[Customer | AllOf, int], None],
    ) -> None:
        self._home = cache_home(config.cache)
        self._prefix = prefix_at(config.cache, config.redis_environment_prefix)
        self._keys_ttl = config.redis_keys_ttl
        self._patience = max(1, round(WAIT_PART * config.timeout * 1000))
        self._clock = clock
        self._ticket = ticket
        self._expire = expire
        self._closed = False
        self._pid = 0
        self._failing = False
        self._rests_until = 0.0
        self._starting: dict[int, threading.Lock] = {}
        self._ledger = _ledger_beside(self._home, config.ledger or "")

    def find(self, customer: Customer, *, to_use: bool = True) -> tuple[Snapshot | None, int]:
        keys, asked_at = self._keys(customer), self._clock.monotonic()
        asked = (*keys, self._uses) if to_use else keys
        given = (self._given_time(), _name(customer), USES_KEPT_SECONDS * 1_000_000)
        answer = self._ask(lambda redis: redis.eval(_FIND, len(asked), *asked, *given))
        if answer is None:
            return None, 0
        now = int(answer[0])
        snapshot = self._snapshot(keys[0], answer[1], customer, now)
        if snapshot is None or snapshot.stamp > now:
            return None, now
        age = (now - snapshot.stamp) / 1e6
        snapshot.fetched_at = asked_at - age
        snapshot.begun_at = self._clock.now().timestamp() - age
        return snapshot, now

    def begin(self, customer: Customer, seen: int) -> Fetch:
        keys = (*self._keys(customer), self._under_way(customer))
        given = (self._given_time(), seen)
        turn = self._ask(lambda redis: redis.eval(_BEGIN, len(keys), *keys, *given, self._me, self._patience))
        return Fetch.OURS if turn is None else Fetch(turn.decode())

    def give_up(self, customer: Customer) -> None:
        self._ask(lambda redis: redis.eval(_GIVE_UP, 1, self._under_way(customer), self._me))

    def store(self, customer: Customer, snapshot: Snapshot) -> bool:
        listed = snapshot.messages
        if not isinstance(listed, Listed) or not snapshot.stamp:
            return True
        keys = (*self._keys(customer), self._under_way(customer))
        name, payload = listed.kind.DESCRIPTOR.name, listed.payload
        ticket = snapshot.ticket
        head = f"2 {snapshot.stamp} {ticket.number} {ticket.at} {self._ledger} {name}".encode()
        value = b"%b %b\n%b" % (head, _digest(keys[0], head, payload), payload)
        given = (self._given_time(), self._keys_ttl, snapshot.stamp, value)
        kept: int | None = self._ask(lambda redis: redis.eval(_STORE, len(keys), *keys, *given))
        return kept != 0

    def invalidate(self, whose: Customer | AllOf) -> int:
        given = (self._given_time(), self._keys_ttl, self.invalidated, _name(whose))
        stamp = self._ask(lambda redis: redis.eval(_INVALIDATE, 1, self._key(whose), *given))
        return int(stamp or 0)

    def tell(self, whose: AllOf) -> bool:
        given = (self._given_time(), self.changed, _name(whose))
        return bool(self._ask(lambda redis: redis.eval(_TELL, 0, *given)))

    def outdate(self, whose: AllOf, stamp: int) -> bool:
        """Invalidates what was fetched before the stamp, and tells all processes, as after :meth:`tell` and a fetch;
        false if Redis did not answer."""
        given = (self._given_time(), self._keys_ttl, stamp, self.invalidated, _name(whose))
        return self._ask(lambda redis: redis.eval(_OUTDATE, 1, self._key(whose), *given)) is not None

    def in_use(self, seconds: float) -> list[Customer] | None:
        """Who was asked for within these seconds by any process, the latest first; None while Redis does not tell."""
        found: list[Customer] = []
        for page in count():
            names = self._ask(partial(self._used_since, seconds, page * USES_AT_A_TIME))
            if names is None:
                return None
            found += [who for name in names if isinstance(who := _whose(name.decode()), Customer)]
            if len(names) < USES_AT_A_TIME:
                break
        return found

    def listen(self, heard: Callable[[bytes, bytes | None], None]) -> Listener:
        """Hears what is said of changes by any process; :func:`news_in` reads a message."""
        listener = Listener(self._client(), (self.changed, self.invalidated), heard)
        start(listener)
        return listener

    def close(self) -> None:
        self._closed = True
        if self._pid == os.getpid():
            self._listener.over.set()
            self._redis.close()

    @property
    def invalidated(self) -> str:
        """The channel on which all processes hear what is outdated."""
        return f"{self._prefix}:invalidated"

    @property
    def changed(self) -> str:
        """The channel on which cache services hear what is to be read again before it is outdated."""
        return f"{self._prefix}:changed"

    @property
    def _uses(self) -> str:
        return f"{self._prefix}:in-use"

    def _under_way(self, customer: Customer) -> str:
        return f"{self._prefix}:under-way:{_name(customer)}"

    def _used_since(self, seconds: float, offset: int, redis: Redis) -> Any:
        now = self._given_time()
        if not now:
            whole, micro = redis.time()
            now = f"{whole}{micro:06}"
        since = float(now) - seconds * 1e6
        return redis.zrevrangebyscore(self._uses, "+inf", since, offset, USES_AT_A_TIME)

    def _key(self, whose: Customer | AllOf) -> str:
        return f"{self._prefix}:snapshot:{_name(whose)}"

    def _keys(self, customer: Customer) -> tuple[str, ...]:
        """The key of the customer's snapshot, and those of the invalidations of many that it is among."""
        return self._key(customer), self._key(AllOf(customer.id)), self._key(AllOf(None))

    def _given_time(self) -> str:
        """The injected clock's time; empty to let the server take its own, which no host's clock can disturb."""
        return "" if self._clock.now is utc_now else f"{self._clock.now().timestamp() * 1e6:.0f}"

    def _ask(self, step: Callable[[Redis], Any]) -> Any:
        """What Redis answers; None when it does not, or is left alone."""
        if self._closed:
            return None
        self._enter_process()
        now = self._clock.monotonic()
        if now < self._rests_until:
            return None
        if self._failing:
            self._rests_until = now + REST_SECONDS  # one thread tries whether it is back, the others do not wait for it
        try:
            answer = step(self._redis)
        except FAULTS as error:
            self._rests_until = self._clock.monotonic() + REST_SECONDS
            self._note(error)
            return None
        except BaseException:  # from outside: an answer may be under way that nobody waits for
            self._redis.connection_pool.disconnect()
            raise
        self._rests_until = 0.0
        self._note(None)
        return answer

    def _note(self, fault: Exception | None) -> None:
        failing, self._failing = self._failing, fault is not None
        if self._failing and not failing:
            told = "" if fault is None else self._home.explained(fault)
            logger.warning("the cache in Redis at %s is not used while it fails: %s", self._home.address, told)
        if failing and not self._failing:
            logger.warning("the cache in Redis at %s is used again", self._home.address)

    def _enter_process(self) -> None:
        pid = os.getpid()
        if self._pid == pid:
            return
        with self._starting.setdefault(pid, threading.Lock()):  # a parent's lock may be held for ever
            if self._pid != pid:
                self._start_process()

    def _start_process(self) -> None:
        self._failing = False
        self._rests_until = 0.0
        self._me = secrets.token_hex(8)
        self._redis = self._client()
        self._listener = Listener(self._client(), (self.invalidated,), self._heard)
        start(self._listener)
        self._pid = os.getpid()

    def _client(self) -> Redis:
        return cache_client(self._home, self._prefix)

    def _snapshot(self, key: str, value: bytes | None, customer: Customer, now: int) -> Snapshot | None:
        if value is None or _INVALIDATED.fullmatch(value):
            return None
        stored = _STORED.fullmatch(value)
        if stored is None or stored["digest"] != _digest(key, value[: stored.start("digest") - 1], stored["payload"]):
            logger.warning("the value of %r in Redis is not of this version or is damaged; it is not used", key)
            return None
        stamp, ledger, message = int(stored["stamp"]), stored["ledger"].decode(), _RESPONSES[stored["name"].decode()]
        # Numbers of another ledger mean nothing here. With one of our own the ledger goes by the time of the fetch.
        number, present = self._ticket(customer)
        ticket = Ticket(number, present - (now - stamp))
        if ledger == self._ledger != "-":
            ticket = Ticket(min(number, int(stored["ticket"])), int(stored["at"]))
        snapshot = snapshot_of(message.FromString(stored["payload"]), ticket)
        snapshot.stamp = stamp
        return snapshot

    def _heard(self, channel: bytes, message: bytes | None) -> None:
        news = None if message is None else news_in(channel, message)
        if news is not None:
            self._expire(*news)


def news_in(channel: bytes, message: bytes) -> tuple[Customer | AllOf, int] | None:
    """Who has changed, and at which stamp, by a message on one of our channels; None where it is none of ours."""
    stamp, _, name = message.partition(b" ")
    try:
        return _whose(name.decode()), int(stamp)
    except ValueError:
        logger.warning("a message on %s in Redis is not of this version; it is ignored", channel.decode())
        return None


def _ledger_beside(cache: Home, url: str) -> str:
    """The number of the ledger's database when it is on the server of the cache: whoever finds the same number in a
    snapshot has the same ledger. Else a dash."""
    if not url.startswith(REDIS):
        return "-"
    ledger = home_of(url, "LEDGER", {}, ONCE, of_ledger=True)
    return str(ledger.fields.get("db", 0)) if cache.where == ledger.where else "-"


def _name(whose: Customer | AllOf) -> str:
    """Whose they are as a piece of a key: no two alike. An asterisk, which is quoted in ids, stands for all."""
    if isinstance(whose, AllOf):
        return f"{'*' if whose.customer is None else quote(whose.customer, safe='')}/*"
    return "/".join(quote(part, safe="") for part in (whose.id, whose.resource or ""))


def _whose(name: str) -> Customer | AllOf:
    """What :func:`_name` made a name of. Raises ``ValueError`` when it made none."""
    customer_id, resource = name.split("/")
    if resource == "*":
        return AllOf(None if customer_id == "*" else unquote(customer_id))
    return Customer(unquote(customer_id), unquote(resource) or None)


def _digest(key: str, head: bytes, payload: bytes) -> bytes:
    return blake2b(b"%b\n%b\n%b" % (key.encode(), head, payload), digest_size=16).hexdigest().encode()

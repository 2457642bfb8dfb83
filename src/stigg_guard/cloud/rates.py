"""The rate limits of Stigg's API: token buckets that all processes share, in the cache's Redis or a file of this host.

A bucket is one number, the instant at which it is full again (the *generic cell rate algorithm*): a request is admitted
if that is not further ahead than a burst takes, and puts it off by its own share. A tenth of a limit may come at once,
and nine tenths are spread over its time, so that no stretch of that length has more than the limit.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from time import sleep
from typing import Any, NamedTuple, Protocol

from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.errors import StiggGuardError
from stigg_guard.foreign import Unreadable, json_value
from stigg_guard.ledger.files import user_state_folder
from stigg_guard.runtime.log import logger
from stigg_guard.settings.urls import prefix_at

BURST = 0.1
"""The part of a limit that may come at once."""
RATE_LIMITED_SECONDS = 1.0
"""For how long nothing is sent after a 429 that does not say."""
REST_SECONDS = 1.0
GRAIN = 1e-6
"""A shorter wait is one of rounding."""
LOCK_TRIES, LOCK_PAUSE = 100, 0.001
FILE_BYTES = 256
BOOT_ID = "/proc/sys/kernel/random/boot_id"
MAX_CLOSED = 3_600.0
"""For how long a bucket may be closed, in seconds; one that is full again later is of another clock."""


class Limit(NamedTuple):
    """At most ``requests`` in any ``seconds``."""

    requests: int
    seconds: float


# As Stigg documents them for one environment.
LIMITS: Mapping[str, Limit] = {
    "entitlements": Limit(6_000, 60.0),
    "report-usage": Limit(3_000, 60.0),
    "report-usage-bulk": Limit(600, 60.0),
    "report-event": Limit(1_000, 1.0),
}
_OPERATIONS = {
    "GetEntitlementsState": "entitlements",
    "GetEntitlementV2": "entitlements",
    "ReportUsage": "report-usage",
    "ReportUsageBulk": "report-usage-bulk",
    "ReportEvent": "report-event",
}


class Pace(NamedTuple):
    """How often, in seconds, a bucket gives a token, and how far ahead of now it may be spent."""

    interval: float
    ahead: float


class Buckets(Protocol):
    """Where buckets are kept."""

    def take(self, name: str, pace: Pace) -> float:
        """Takes a token: 0, or for how many seconds there is none."""
        ...

    def close_for(self, name: str, pace: Pace, seconds: float) -> None:
        """Lets nobody have a token for so long."""
        ...


class RateGate:
    """Admits what the limits allow; those that ``share``, above 0 and up to 1, leaves of them."""

    def __init__(self, buckets: Buckets, share: float) -> None:
        self._buckets = buckets
        self._paces = {name: pace_of(limit, share) for name, limit in LIMITS.items()}

    def admit(self, operation: str) -> float:
        """Seconds until a request of this operation may go out; 0 admits it, and so does an unlimited operation."""
        name = _OPERATIONS.get(operation)
        return 0.0 if name is None else self._buckets.take(name, self._paces[name])

    def rate_limited(self, operation: str, seconds: float | None) -> None:
        """The server refused one: who else shares the limit has used it up."""
        name = _OPERATIONS.get(operation)
        if name is not None:
            self._buckets.close_for(name, self._paces[name], RATE_LIMITED_SECONDS if seconds is None else seconds)


def pace_of(limit: Limit, share: float) -> Pace:
    """The pace at which no stretch of the limit's length has more than its share of it."""
    count = limit.requests * share
    interval = limit.seconds / (count * (1 - BURST))
    return Pace(interval, max(0.0, count * BURST - 1) * interval)


def gate_of(config: Config, clock: Clock) -> RateGate:
    """The gate for the key of a configuration; where Redis keeps the cache, it keeps the buckets."""
    whose = blake2b(f"{config.api_url} {config.api_key}".encode(), digest_size=8).hexdigest()
    buckets: Buckets = HostBuckets(f"rates-{whose}{_boot()}.json", clock.monotonic)
    if config.cache != "memory://":
        prefix = f"{prefix_at(config.cache, config.redis_environment_prefix)}:rates:{whose}"
        buckets = RedisBuckets(config.cache, prefix, clock.monotonic, buckets)
    return RateGate(buckets, config.api_share)


def taken(full_at: float, now: float, pace: Pace) -> tuple[float, float]:
    """When the bucket is full after a request at ``now``, and how many seconds it has to wait: it is admitted at 0."""
    if not now <= full_at <= now + pace.ahead + pace.interval + MAX_CLOSED:
        full_at = now
    wait = full_at - now - pace.ahead
    return (full_at, wait) if wait > GRAIN else (full_at + pace.interval, 0.0)


def _boot() -> str:
    """What tells this start of the host from others, whose clocks began elsewhere; empty where the system does not."""
    with suppress(OSError), open(BOOT_ID, encoding="ascii") as file:
        return f"-{file.read(8)}"
    return ""


class HostBuckets:
    """Buckets in a file of this user on this host, by the clock that all processes of a host share. Where there can be
    no file, this process has buckets of its own.
    """

    def __init__(self, name: str, monotonic: Callable[[], float]) -> None:
        self._name = name
        self._monotonic = monotonic
        self._own: dict[str, float] = {}
        self._warned = False

    def take(self, name: str, pace: Pace) -> float:
        with self._all() as buckets:
            buckets[name], wait = taken(buckets.get(name, 0.0), self._monotonic(), pace)
            return wait

    def close_for(self, name: str, pace: Pace, seconds: float) -> None:
        with self._all() as buckets:
            buckets[name] = max(buckets.get(name, 0.0), self._monotonic() + pace.ahead + min(seconds, MAX_CLOSED))

    @contextmanager
    def _all(self) -> Iterator[dict[str, float]]:
        """All buckets, for one who may change them."""
        try:
            file, known = self._open()
        except (OSError, StiggGuardError) as error:
            self._warn(error)
            yield self._own
            return
        try:
            buckets = {name: max(known.get(name, 0.0), self._own.get(name, 0.0)) for name in {*known, *self._own}}
            yield buckets
            self._write(file, buckets)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile has the file open, too
            os.close(file)

    def _write(self, file: int, buckets: dict[str, float]) -> None:
        try:
            os.pwrite(file, json.dumps(buckets).ljust(FILE_BYTES).encode(), 0)
            os.ftruncate(file, FILE_BYTES)
        except OSError as error:  # the disk is full
            self._own = buckets
            self._warn(error)

    def _open(self) -> tuple[int, dict[str, float]]:
        """The file, locked, and what it has."""
        folder = user_state_folder()
        os.makedirs(folder, 0o700, exist_ok=True)
        file = os.open(os.path.join(folder, self._name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock(file)
            return file, _read(file)
        except BaseException:
            os.close(file)
            raise

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the rate limit is kept by each process alone, or in CACHE (%s); mend that, or set API_SHARE", error
            )


def _lock(file: int) -> None:
    """Waits for the lock, but not for ever: whoever has it may be stopped. Raises ``OSError``."""
    for _ in range(LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        sleep(LOCK_PAUSE)
    raise TimeoutError(f"another process keeps its file for {LOCK_TRIES * LOCK_PAUSE:g} s")


def _read(file: int) -> dict[str, float]:
    """What the file has; nothing when it is new or is damaged."""
    try:
        found = json_value(os.pread(file, FILE_BYTES, 0))
    except Unreadable:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if name in LIMITS and isinstance(value, float)}


# As ``taken``, in microseconds of the server's clock. ARGV: interval, ahead, seconds to close for (or -1). A bucket
# that is full a minute later than what it was closed for explains, was left by a clock that was set back since.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, ahead, close = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local known = redis.call('HMGET', KEYS[1], 'full_at', 'closed_until', 'closed_for')
local full_at, closed_until, closed_for = tonumber(known[1]) or now, tonumber(known[2]) or 0, tonumber(known[3]) or 0
local closed = closed_until - now
if closed < 0 or closed > closed_for then closed = 0 end
if not (full_at >= now and full_at <= now + ahead + interval + closed + 60000000) then full_at = now end
local wait = full_at - now - ahead
if close >= 0 then
    full_at, wait = math.max(full_at, now + ahead + close), 0
    if close > closed then
        redis.call('HSET', KEYS[1], 'closed_until', string.format('%.0f', now + close), 'closed_for', ARGV[3])
    end
elseif wait <= 0 then
    full_at, wait = full_at + interval, 0
end
redis.call('HSET', KEYS[1], 'full_at', string.format('%.0f', full_at))
redis.call('PEXPIRE', KEYS[1], math.ceil((full_at - now) / 1000) + 1)
return string.format('%.0f', wait)
"""


class RedisBuckets:
    """Buckets in the Redis at ``url``, under ``prefix``. Those of this ``host`` have to give a token, too, so that it
    keeps to its limit when Redis does not answer, or forgets.
    """

    def __init__(self, url: str, prefix: str, monotonic: Callable[[], float], host: Buckets) -> None:
        self._url = url
        self._prefix = prefix
        self._monotonic = monotonic
        self._host = host
        self._rests_until = 0.0
        self._fails = False
        self._clients: dict[int, Any] = {}  # by process

    def take(self, name: str, pace: Pace) -> float:
        return self._host.take(name, pace) or self._ask(name, pace, -1.0) or 0.0

    def close_for(self, name: str, pace: Pace, seconds: float) -> None:
        self._host.close_for(name, pace, seconds)
        self._ask(name, pace, min(seconds, MAX_CLOSED))

    def _ask(self, name: str, pace: Pace, close_for: float) -> float | None:
        """What Redis says; None where it does not answer."""
        from stigg_guard.cache.redis import FAULTS, cache_client, cache_home  # it needs an extra, as the cache does

        if self._monotonic() < self._rests_until:
            return None
        pid = os.getpid()
        client = self._clients.get(pid)
        if client is None:
            client = self._clients.setdefault(pid, cache_client(cache_home(self._url), self._prefix))
        figures = (f"{seconds * 1e6:.0f}" for seconds in (pace.interval, pace.ahead, close_for))
        try:
            told = float(client.eval(_SCRIPT, 1, f"{self._prefix}:{name}", *figures)) / 1e6
        except FAULTS as error:
            self._rests_until = self._monotonic() + REST_SECONDS
            if not self._fails:
                logger.warning("the rate limit is not kept in Redis while it fails: %s", error)
            self._fails = True
            return None
        except BaseException:  # from outside: an answer may be under way that nobody waits for
            client.connection_pool.disconnect()
            raise
        self._fails = False
        return told

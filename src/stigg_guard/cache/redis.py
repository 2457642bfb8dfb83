"""The Redis of ``CACHE``: its client, and the thread that listens on its channels."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from stigg_guard.errors import MissingExtra

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.client import PubSub
    from redis.exceptions import RedisError
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra("redis", "A Redis cache") from error

from stigg_guard.ledger.redis_server import Packer  # it needs redis-py, too
from stigg_guard.settings.redis_homes import Home, home_of

FAULTS = (RedisError, OSError)
"""What is raised when Redis is away, or fails."""
LISTEN_SECONDS = 1.0
ANSWER_SECONDS = 0.05
HEALTH_CHECK_SECONDS = 30
RECONNECT_SECONDS = (0.1, 5.0)
ONCE = {"retry": Retry(NoBackoff(), 0)}


def cache_home(url: str) -> Home:
    """The home of a cache at a URL, which is waited for no longer than ``ANSWER_SECONDS``, and asked once.

    Raises:
        ConfigError: it is no URL of a Redis.
    """
    seconds = {"socket_connect_timeout": ANSWER_SECONDS, "socket_timeout": ANSWER_SECONDS}
    return home_of(url, "CACHE", {**seconds, "health_check_interval": HEALTH_CHECK_SECONDS}, ONCE)


def cache_client(home: Home, prefix: str) -> Redis:
    """A client of the server that has the keys of a cache, which begin with the prefix."""
    return home.client(prefix, command_packer=Packer())


class Listener(threading.Thread):
    """Hears what is said on channels, until ``over`` is set, or ``heard``, a bound method that is held weakly, is gone.

    It is called with the channel and the message; None says that the channel is open now, so that what was said before
    was missed.
    """

    def __init__(self, redis: Redis, channels: tuple[str, ...], heard: Callable[[bytes, bytes | None], None]) -> None:
        super().__init__(name="stigg-guard-invalidations", daemon=True)
        self.over = threading.Event()
        self._redis = redis
        self._channels = channels
        self._heard = weakref.WeakMethod(heard)
        self._pause, _ = RECONNECT_SECONDS

    def run(self) -> None:
        while self._is_wanted():
            try:
                with PubSub(self._redis.connection_pool) as subscription:
                    self._listen(subscription)
            except FAULTS:
                self.over.wait(self._pause)
                self._pause = min(2 * self._pause, RECONNECT_SECONDS[1])
        self._redis.close()

    def _listen(self, subscription: PubSub) -> None:
        subscription.subscribe(*self._channels)
        while self._is_wanted():
            message = subscription.get_message(timeout=LISTEN_SECONDS)
            self._pause, _ = RECONNECT_SECONDS
            heard = self._heard()
            if message is not None and heard is not None:
                heard(message["channel"], message["data"] if message["type"] == "message" else None)
            del heard

    def _is_wanted(self) -> bool:
        return not self.over.is_set() and self._heard() is not None

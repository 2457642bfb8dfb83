"""Where a Redis is: one server, the master that sentinels name, or the nodes of a cluster.

Which server is the master and which node has a key is asked on connections that are made for the question and closed
after it. Where there are several to ask, all together have the time of one answer.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, TypeAlias

from stigg_guard.cache.single_flight import SingleFlight
from stigg_guard.errors import ConfigError, MissingExtra
from stigg_guard.settings.urls import REDIS_FORM, RedisUrl, redis_url

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.connection import Connection, ConnectionPool, SSLConnection, parse_url
    from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
    from redis.exceptions import (
        AskError,
        ClusterCrossSlotError,
        MovedError,
        ReadOnlyError,
        RedisError,
    )
    from redis.exceptions import ConnectionError as NotReached
    from redis.retry import Retry
    from redis.sentinel import MasterNotFoundError, Sentinel
    from redis.utils import str_if_bytes
except ImportError as error:
    raise MissingExtra("redis", "Redis") from error

Place: TypeAlias = "tuple[str, int] | None"
"""The host and the port of a node; None where all keys are in one place."""

_UNKNOWN_TO_SENTINELS = re.compile(
    r"unknown command .(SELECT|EVAL|EVALSHA|SCRIPT|ZADD|ZRANGE|GET|XREAD|HGETALL)\b", re.IGNORECASE
)


class Home:
    """The one server at a URL. ``fields`` are what redis-py makes a connection with."""

    def __init__(self, url: RedisUrl, made: type[Connection], fields: Mapping[str, Any]) -> None:
        self.url = url
        self.fields = fields
        self._made = made

    @property
    def address(self) -> str:
        """Where it is, for messages."""
        if self.url.hosts:
            named = ",".join(f"{host}:{port}" for host, port in self.url.hosts)
            return f"{named}/{self.url.service}" if self.url.service else named
        return self.fields.get("path") or f"{self.fields.get('host', 'localhost')}:{self.fields.get('port', 6379)}"

    @property
    def where(self) -> tuple[object, ...]:
        """What is equal for homes on the same servers."""
        if self.url.hosts:
            return self.url.kind, frozenset(self.url.hosts), self.url.service
        return tuple(self.fields.get(part) for part in ("host", "port", "path"))

    def place(self, key: str) -> Place:
        """Where a key is.

        Raises:
            RedisError: no server tells.
        """
        return None

    def connection(self, place: Place, **more: Any) -> Connection:
        """A new connection to a place, which is not connected yet."""
        return self._made(**{**self.fields, **more})

    def follow(self, moved: MovedError) -> bool:
        """Learns of a slot that has moved; whether that is of use."""
        return False

    def forget(self) -> None:
        """Has all places looked for anew, because a server failed."""

    def client(self, key: str, **more: Any) -> Redis:
        """A client of the server that has ``key``, and with it all that begin with the same prefix of ``prefix_at``."""
        return _client(self._made, {**self.fields, **more})

    def explained(self, error: BaseException) -> str:
        """What an error of a server says. A node of a cluster or a sentinel is told as that, and how to write it."""
        if isinstance(error, MovedError | ClusterCrossSlotError) or "not allowed in cluster mode" in str(error):
            return self.as_node
        if _UNKNOWN_TO_SENTINELS.search(str(error)):
            remedy = f"write {self._scheme}+sentinel://{self.address}/ and the name of its master, often mymaster"
            return f"it is a Redis Sentinel, which keeps no data; {remedy}"
        return str(error)

    @property
    def as_node(self) -> str:
        """What is wrong where the server is a node of a cluster."""
        remedy = f"write {self._scheme}+cluster://{self.address}"
        return f"it is a node of a Redis Cluster, and other nodes have other keys; {remedy}"

    @property
    def _scheme(self) -> str:
        return "rediss" if issubclass(self._made, SSLConnection) else "redis"


class _FoundHome(Home, ABC):
    """A server that is looked for when a connection is opened."""

    def client(self, key: str, **more: Any) -> Redis:
        return _client(_found(self._made), {**self.fields, **more, "find": lambda: self._find(key)})

    def explained(self, error: BaseException) -> str:
        return str(error)

    @abstractmethod
    def _find(self, key: str) -> tuple[str, int]:
        """The host and port of the server that has the key."""


class _SentinelHome(_FoundHome):
    """The present master of a service."""

    def connection(self, place: Place, **more: Any) -> Connection:
        return _found(self._made)(**{**self.fields, **more, "find": lambda: self._find("")})

    def _find(self, key: str) -> tuple[str, int]:
        tls = {name: value for name, value in self.fields.items() if name.startswith("ssl_")}
        access = {**tls, "ssl": issubclass(self._made, SSLConnection), **self.url.sentinel}
        limits = {
            name: self.fields[name] / len(self.url.hosts) for name in ("socket_timeout", "socket_connect_timeout")
        }
        fields = {**limits, **access, "retry": Retry(NoBackoff(), 0)}
        sentinels = Sentinel(self.url.hosts, sentinel_kwargs=fields)
        try:
            host, port = sentinels.discover_master(self.url.service)
        except MasterNotFoundError:  # its text is pages of settings
            raise NotReached(f"no sentinel that answers knows a running master {self.url.service!r}") from None
        finally:
            for sentinel in sentinels.sentinels:
                sentinel.close()
        return host, port


class _ClusterHome(_FoundHome):
    """The nodes of a cluster. Where slots are is asked by one thread of a process; others that want it wait for it."""

    _places: dict[int, tuple[str, int]] | None = None

    def __init__(self, url: RedisUrl, made: type[Connection], fields: Mapping[str, Any]) -> None:
        super().__init__(url, made, fields)
        self._nodes: tuple[tuple[str, int], ...] = url.hosts
        self._flights = SingleFlight(fields.get("socket_timeout") or 0.0, NotReached)

    def place(self, key: str) -> tuple[str, int]:
        slot = key_slot(key.encode("utf-8", errors="surrogatepass"))
        place = (self._places or self._flights.load(os.getpid(), self._look)).get(slot)
        if place is None:
            self.forget()
            raise NotReached(f"no node of the cluster has the slot {slot}")
        return place

    def connection(self, place: Place, **more: Any) -> Connection:
        assert place is not None
        host, port = place
        return self._made(**{**self.fields, **more, "host": host, "port": port})

    def follow(self, moved: MovedError) -> bool:
        places = self._places  # another thread may forget them
        if places is not None and moved.host:
            places[moved.slot_id] = (moved.host, moved.port)
        else:
            self.forget()
        return True

    def forget(self) -> None:
        self._places = None

    def _find(self, key: str) -> tuple[str, int]:
        self.forget()
        return self.place(key)

    def _look(self) -> dict[int, tuple[str, int]]:
        """Asks node after node, all within the time of one answer: the first has half of it, the others share the rest.
        The next time those that the cluster names come first, and those that do not answer last."""
        deadline = monotonic() + self.fields["socket_timeout"]
        places: dict[int, tuple[str, int]] = {}
        named: list[tuple[str, int]] = []
        silent: dict[tuple[str, int], Exception] = {}
        nodes = self._nodes
        for number, node in enumerate(nodes):
            shares = len(nodes) - number if number else min(2, len(nodes))
            try:
                slots = self._slots(node, max(0.001, deadline - monotonic()) / shares)
            except (RedisError, OSError) as error:
                silent[node] = error
                continue
            for first, last, *several in slots:
                at = [(_host(host) or node[0], int(port)) for host, port, *_ in several]
                named += at
                places = {**dict.fromkeys(range(first, last + 1), at[0]), **places}
            if len(places) == REDIS_CLUSTER_HASH_SLOTS:
                break
        known = (*named, *self.url.hosts) if named else (*nodes[1:], nodes[0])
        self._nodes = tuple(sorted(dict.fromkeys(known), key=silent.__contains__))
        if not places:
            told = next(reversed(silent.values()), "none of them is in a cluster")
            raise NotReached(f"no node of the cluster tells where keys are: {told}")
        self._places = places
        return places

    def _slots(self, node: tuple[str, int], seconds: float) -> Any:
        limits = {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry": Retry(NoBackoff(), 0)}
        fields = {name: value for name, value in self.fields.items() if name != "max_connections"}
        connection = self._made(**{**fields, **limits, "protocol": 2, "host": node[0], "port": node[1]})
        try:
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS", check_health=False)
            return connection.read_response()
        finally:
            connection.disconnect()


def _host(told: str | bytes | None) -> str:
    """A host as a node tells it; empty where that is the one that was asked."""
    host = str(str_if_bytes(told or ""))
    return "" if host == "?" else host


_HOMES: Mapping[str, type[Home]] = {"": Home, "sentinel": _SentinelHome, "cluster": _ClusterHome}


def home_of(
    url: str, setting: str, defaults: Mapping[str, Any], fixed: Mapping[str, Any], *, of_ledger: bool = False
) -> Home:
    """The home at a URL, with connections that are made with ``defaults``, or what the URL says instead, and ``fixed``.

    Raises:
        ConfigError: it is no URL of a Redis; the message begins with the setting.
    """
    try:
        parts = redis_url(url, of_ledger=of_ledger)
        told = parse_url(parts.one)
        made = told.pop("connection_class", Connection)
        limit = {name: told.pop(name) for name in ("max_connections",) if name in told}
        fields = {**defaults, **told, **fixed}
        made(**fields)  # it does not connect yet, and refuses what it does not know
    except (ValueError, TypeError):  # their text may quote a piece of the password
        raise ConfigError(
            f"{setting}: {REDIS_FORM}, with what a URL cannot carry percent-encoded, and options that redis-py knows"
        ) from None
    return _HOMES[parts.kind](parts, made, {**fields, **limit})


class _Found(Connection):
    """A connection that looks for its server when it connects. One that is not the right one any more is left."""

    def __init__(self, *, find: Callable[[], tuple[str, int]], **fields: Any) -> None:
        self._find = find
        super().__init__(**fields)

    def _connect(self) -> Any:
        self.host, self.port = self._find()
        return super()._connect()

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except (ReadOnlyError, AskError) as error:
            self.disconnect()
            raise NotReached(f"another server has it now: {error}") from error


class _FoundTls(_Found, SSLConnection):
    """The same over TLS."""


def _found(made: type[Connection]) -> type[_Found]:
    return _FoundTls if issubclass(made, SSLConnection) else _Found


def _client(made: type[Connection], fields: Mapping[str, Any]) -> Redis:
    return Redis.from_pool(ConnectionPool(connection_class=made, **fields))

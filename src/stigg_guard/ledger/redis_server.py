"""The connections of a Redis ledger: what is sent on one is answered on it, whatever interrupts that."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypeAlias

from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable, MissingExtra
from stigg_guard.ledger.redis_scripts import Script
from stigg_guard.log import logger

try:
    from redis.backoff import NoBackoff
    from redis.connection import Connection, parse_url
    from redis.exceptions import NoScriptError, RedisError, ResponseError
    from redis.exceptions import TimeoutError as NoAnswer
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra("redis", "A Redis ledger") from error


CONNECT_SECONDS = 0.25
ANSWER_SECONDS = 0.25
ANSWERS_AT_ONCE = 50
"""How many answers have the time of one; only steps about many customers have more."""

Command: TypeAlias = "tuple[Any, ...]"
"""The words of a command. Of a script's call the first is the script itself, and the server is asked by its hash."""


class Packer:
    """Writes commands as the wire has them. That of hiredis ends the process when an exception comes from outside."""

    def pack(self, *words: str | bytes | int) -> list[bytes]:
        coded = [
            word if isinstance(word, bytes) else str(word).encode("utf-8", errors="surrogatepass") for word in words
        ]
        parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in coded]
        return [b"*%d\r\n%b" % (len(parts), b"".join(parts))]


class _Connection(Protocol):
    """What is used of redis-py's connections, over TCP, TLS and Unix sockets."""

    socket_timeout: float | None

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def can_read(self) -> bool: ...
    def pack_commands(self, commands: Sequence[Command]) -> Sequence[bytes]: ...
    def send_packed_command(self, command: Sequence[bytes]) -> None: ...
    def read_response(self) -> Any: ...


class Unanswered(LedgerUnavailable):
    """The commands were sent, or some of them, and not all were answered: nobody knows which of them were carried
    out."""


class Server:
    """The connections of this process to the Redis at a URL.

    Thread-safe, safe across forks and with gevent, and under exceptions that come from outside at any moment: there is
    no lock, and a connection is among the idle ones only while nothing is under way on it. One that is interrupted is
    closed, and costs a new one.

    Raises:
        ConfigError: the URL is none of a Redis.
    """

    def __init__(self, url: str) -> None:
        made, fields = _connection_of(url)
        self._connect: Callable[[], _Connection] = partial(made, **fields, command_packer=Packer())
        self._address = fields.get("path") or f"{fields.get('host', 'localhost')}:{fields.get('port', 6379)}"
        self._seconds: float = fields["socket_timeout"]
        self._closed = False
        self._checked = False
        self._idle: tuple[int, deque[_Connection]] = (os.getpid(), deque())

    def ask(self, command: Command) -> Any:
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """Sends the commands in one go, in this order; their answers.

        Raises:
            LedgerUnavailable: one of them was answered with an error, or none was sent.
            Unanswered: not all of them were answered.
        """
        if self._closed:
            raise ClientClosed("the guard or its ledger is closed; make a new one")
        if not commands:
            return []
        self._check()
        answers = self._exchange(commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            repeated = [commands[i] for i in unknown]
            scripts = {command[0] for command in repeated}
            loads: list[Command] = [("SCRIPT", "LOAD", script.source) for script in scripts]
            loaded = self._exchange([*loads, *repeated])
            self._demand(loaded[: len(loads)])
            for i, answer in zip(unknown, loaded[len(loads) :], strict=True):
                answers[i] = answer
        self._demand(answers)
        return answers

    def close(self) -> None:
        self._closed = True
        self._disconnect()

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, errors among them. Each comes within the time for one, and so do all of a step."""
        idle = self._idle_ones()
        connection = self._connection(idle)
        deadline = monotonic() + self._seconds * (1 + len(commands) // ANSWERS_AT_ONCE)
        answers: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands([_words(command) for command in commands]))
            for _ in commands:
                answers.append(self._answer(connection))
                if monotonic() > deadline and len(answers) < len(commands):
                    raise NoAnswer(f"not all answers came within {self._seconds:g} s")
        except RedisError as error:
            connection.disconnect()
            raise self._unavailable(error, Unanswered) from error
        except BaseException:
            connection.disconnect()
            raise
        idle.append(connection)
        if self._closed:
            self._disconnect()
        return answers

    def _demand(self, answers: Sequence[Any]) -> None:
        for answer in answers:
            if isinstance(answer, RedisError):
                raise self._unavailable(answer)

    def _answer(self, connection: _Connection) -> Any:
        try:
            return connection.read_response()
        except ResponseError as error:
            return error

    def _connection(self, idle: deque[_Connection]) -> _Connection:
        """One on which nothing is under way: an idle one that the server has not closed, or a new one."""
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if not _is_stale(connection):
                return connection
            connection.disconnect()
        connection = self._connect()
        try:
            connection.connect()
        except RedisError as error:
            raise self._unavailable(error) from error
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _idle_ones(self) -> deque[_Connection]:
        """Those of this process; what it inherited from its parent is left to the parent."""
        pid, idle = self._idle
        if pid != os.getpid():
            idle = deque()
            self._idle = (os.getpid(), idle)
        return idle

    def _disconnect(self) -> None:
        idle = self._idle_ones()
        with suppress(IndexError):
            while True:
                idle.pop().disconnect()

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
        told, saves = self._exchange([("INFO", "persistence"), ("CONFIG", "GET", "save")])
        if isinstance(told, RedisError) or isinstance(saves, RedisError):  # hosted servers do not tell
            return False
        return "aof_enabled:1" not in told and not saves[1]

    def _unavailable(self, error: RedisError, kind: type[LedgerUnavailable] = LedgerUnavailable) -> LedgerUnavailable:
        return kind(f"the Redis ledger at {self._address} cannot be used: {error}")

    def __del__(self) -> None:
        if hasattr(self, "_idle"):
            self._disconnect()


def _connection_of(url: str) -> tuple[Callable[..., _Connection], dict[str, Any]]:
    """The class of the connections to the server at a URL, and what it is made with."""
    try:
        told = parse_url(url)
        made = told.pop("connection_class", Connection)
        fields = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            **told,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "decode_responses": True,
            "encoding_errors": "surrogatepass",
        }
        limit = fields.pop("max_connections", None)
        made(**fields)  # it does not connect yet, and refuses what it does not know
    except (ValueError, TypeError):  # their text may quote a piece of the password
        raise ConfigError(
            "LEDGER: expected redis://user:password@host:port/number, rediss://… or unix:///path?db=number, with what "
            "a URL cannot carry percent-encoded"
        ) from None
    if limit is not None:
        raise ConfigError("LEDGER: max_connections is for a cache; a ledger opens a connection for each step under way")
    return made, fields


def _words(command: Command) -> Command:
    first, *others = command
    return ("EVALSHA", first.sha, *others) if isinstance(first, Script) else command


def _is_stale(connection: _Connection) -> bool:
    """Whether the server has closed it; nothing else can have come on it."""
    try:
        return bool(connection.can_read())
    except RedisError:
        return True

"""The connections of a Redis ledger: what is sent on one is answered on it, whatever interrupts that."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypeAlias

from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable, MissingExtra
from stigg_guard.ledger.redis_scripts import Script
from stigg_guard.runtime.forks import PerProcess
from stigg_guard.runtime.log import logger

try:
    from redis.backoff import NoBackoff
    from redis.exceptions import ClusterDownError, MovedError, NoScriptError, RedisError, ResponseError
    from redis.exceptions import TimeoutError as NoAnswer
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra("redis", "A Redis ledger") from error

from stigg_guard.settings.redis_homes import Place, home_of  # it needs redis-py, too

_DEFAULTS = {"socket_connect_timeout": 0.25, "socket_timeout": 0.25}
_FIXED = {
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
    "decode_responses": True,
    "encoding_errors": "surrogatepass",
}
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


_Idle: TypeAlias = "defaultdict[Place, deque[_Connection]]"


class Unanswered(LedgerUnavailable):
    """The commands were sent, or some of them, and not all were answered: nobody knows which of them were carried
    out."""


class Server:
    """The connections of this process to the Redis at a URL: one server, the master of sentinels, nodes of a cluster.

    Thread-safe, safe across forks and with gevent, and under exceptions that come from outside at any moment: there is
    no lock, and a connection is among the idle ones only while nothing is under way on it. One that is interrupted is
    closed, and costs a new one. With ``?wait=`` in the URL each step is answered once so many replicas have it.

    Raises:
        ConfigError: the URL is none of a Redis.
    """

    def __init__(self, url: str) -> None:
        self._home = home_of(url, "LEDGER", _DEFAULTS, _FIXED, of_ledger=True)
        if "max_connections" in self._home.fields:
            raise ConfigError(
                "LEDGER: max_connections is for a cache; a ledger opens a connection for each step under way"
            )
        self._seconds: float = self._home.fields["socket_timeout"]
        self._replicas = self._home.url.wait
        self._closed = False
        self._checked: set[Place] = set()
        self._idle: PerProcess[_Idle] = PerProcess(partial(defaultdict, deque))

    def ask(self, command: Command) -> Any:
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """Sends the commands in one go, in this order; their answers. In a cluster that is so for each node.

        Raises:
            LedgerUnavailable: one of them was answered with an error, or none was sent.
            Unanswered: not all of them were answered.
        """
        answers = self.ask_each(commands)
        for answer in answers:
            if isinstance(answer, LedgerUnavailable):
                raise answer
        return answers

    def ask_each(self, commands: Sequence[Command]) -> list[Any]:
        """The same, with the error itself in the place of an answer."""
        if self._closed:
            raise ClientClosed("the guard or its ledger is closed; make a new one")
        answers = self._exchange(commands)
        moved = [i for i, answer in enumerate(answers) if isinstance(answer, MovedError) and self._home.follow(answer)]
        for i, answer in zip(moved, self._exchange([commands[i] for i in moved]), strict=True):
            answers[i] = answer
        if any(isinstance(answer, ClusterDownError) for answer in answers):
            self._home.forget()
        return [self._unavailable(answer) if isinstance(answer, RedisError) else answer for answer in answers]

    def close(self) -> None:
        self._closed = True
        self._disconnect()

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, errors among them; in the place of answers of a server that cannot be used is that."""
        answers: list[Any] = [None] * len(commands)
        for place, numbers in self._places(commands).items():
            answered: Sequence[Any]
            try:
                answered = self._exchange_at(place, [commands[i] for i in numbers])
            except LedgerUnavailable as error:
                answered = [error] * len(numbers)
            for i, answer in zip(numbers, answered, strict=True):
                answers[i] = answer
        return answers

    def _places(self, commands: Sequence[Command]) -> dict[Place, list[int]]:
        """The numbers of the commands by the place where their keys are."""
        places: defaultdict[Place, list[int]] = defaultdict(list)
        try:
            for i, command in enumerate(commands):
                places[self._home.place(_key_of(command))].append(i)
        except RedisError as error:
            raise self._unavailable(error) from error
        return places

    def _exchange_at(self, place: Place, commands: Sequence[Command]) -> list[Any]:
        if place not in self._checked:
            self._check(place)
        answers = self._sent(place, commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            repeated = [commands[i] for i in unknown]
            scripts = {command[0] for command in repeated}
            loads: list[Command] = [("SCRIPT", "LOAD", script.source) for script in scripts]
            loaded = self._sent(place, [*loads, *repeated])
            for answer in loaded[: len(loads)]:
                if isinstance(answer, RedisError):
                    raise self._unavailable(answer)
            for i, answer in zip(unknown, loaded[len(loads) :], strict=True):
                answers[i] = answer
        return answers

    def _sent(self, place: Place, commands: Sequence[Command]) -> list[Any]:
        """The answers, errors among them. Each comes within the time for one, and so do all of a step."""
        idle = self._idle.get()[place]
        connection = self._connection(place, idle)
        asked = [*commands, *self._waits()]
        deadline = monotonic() + self._seconds * (1 + len(asked) // ANSWERS_AT_ONCE)
        answers: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands([_words(command) for command in asked]))
            for _ in asked:
                answers.append(self._answer(connection))
                if monotonic() > deadline and len(answers) < len(asked):
                    raise NoAnswer(f"not all answers came within {self._seconds:g} s")
        except RedisError as error:
            connection.disconnect()
            _disconnect(idle)  # to a server that is gone, or is no master any more
            self._home.forget()
            raise self._unavailable(error, Unanswered) from error
        except BaseException:
            connection.disconnect()
            raise
        idle.append(connection)
        if self._closed:
            self._disconnect()
        self._require_replicas(answers[len(commands) :])
        return answers[: len(commands)]

    def _waits(self) -> list[Command]:
        return [("WAIT", self._replicas, max(1, int(self._seconds * 500)))] if self._replicas else []

    def _require_replicas(self, reached: Sequence[Any]) -> None:
        for number in reached:
            if not isinstance(number, int):
                raise self._unavailable(number)
            if number < self._replicas:
                raise Unanswered(
                    f"the Redis ledger at {self._home.address} cannot be used: {number} of {self._replicas} replicas "
                    "have the step; see wait in the URL"
                )

    def _answer(self, connection: _Connection) -> Any:
        try:
            return connection.read_response()
        except ResponseError as error:
            return error

    def _connection(self, place: Place, idle: deque[_Connection]) -> _Connection:
        """One on which nothing is under way: an idle one that the server has not closed, or a new one."""
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if not _is_stale(connection):
                return connection
            connection.disconnect()
        connection = self._home.connection(place, command_packer=Packer())
        try:
            connection.connect()
        except RedisError as error:
            self._home.forget()
            raise self._unavailable(error) from error
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _disconnect(self) -> None:
        for idle in [*self._idle.get().values()]:
            _disconnect(idle)

    def _check(self, place: Place) -> None:
        told, saves, nodes = self._sent(
            place, [("INFO", "persistence"), ("CONFIG", "GET", "save"), ("CLUSTER", "INFO")]
        )
        if not self._home.url.kind and _is_one_of_several(nodes):
            raise LedgerUnavailable(f"the Redis ledger at {self._home.address} cannot be used: {self._home.as_node}")
        if _keeps_nothing(told, saves):
            logger.warning(
                "the Redis ledger at %s writes nothing to disk: holds and unreported usage are lost when it stops; "
                "set appendonly yes",
                f"{place[0]}:{place[1]}" if place else self._home.address,
            )
        self._checked.add(place)

    def _unavailable(self, error: RedisError, kind: type[LedgerUnavailable] = LedgerUnavailable) -> LedgerUnavailable:
        return kind(f"the Redis ledger at {self._home.address} cannot be used: {self._home.explained(error)}")

    def __del__(self) -> None:
        if hasattr(self, "_idle"):
            self._disconnect()


class Part:
    """A part of a cluster: all keys of its commands get its hash tag, and so are in one slot."""

    def __init__(self, server: Server, tag: str) -> None:
        self._server = server
        self._tag = tag

    def placed(self, command: Command) -> Command:
        """The command with the keys of this part."""
        first = 2 if isinstance(command[0], Script) else 1
        last = first + command[1] if isinstance(command[0], Script) else 2
        return (*command[:first], *(self._key(key) for key in command[first:last]), *command[last:])

    def ask(self, command: Command) -> Any:
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """As that of the server."""
        return self._server.ask_all([self.placed(command) for command in commands])

    def close(self) -> None:
        self._server.close()

    def _key(self, key: str) -> str:
        before, _, rest = key.partition("{")
        own, _, after = rest.partition("}")
        return f"{before}{{{self._tag}}}:{own}{after}"


def _key_of(command: Command) -> str:
    """A key of a command; all that it has are in one place."""
    return str(command[2] if isinstance(command[0], Script) else command[1])


def _keeps_nothing(told: Any, saves: Any) -> bool:
    if isinstance(told, RedisError) or isinstance(saves, RedisError):  # hosted servers do not tell
        return False
    return "aof_enabled:1" not in told and not saves[1]


def _is_one_of_several(told: Any) -> bool:
    """Whether what a server told of its cluster, or that it has none, names other masters."""
    size = re.search(r"^cluster_size:(\d+)", told, re.MULTILINE) if isinstance(told, str) else None
    return size is not None and int(size[1]) > 1


def _disconnect(idle: deque[_Connection]) -> None:
    with suppress(IndexError):
        while True:
            idle.pop().disconnect()


def _words(command: Command) -> Command:
    first, *others = command
    return ("EVALSHA", first.sha, *others) if isinstance(first, Script) else command


def _is_stale(connection: _Connection) -> bool:
    """Whether the server has closed it; nothing else can have come on it."""
    try:
        return bool(connection.can_read())
    except RedisError:
        return True

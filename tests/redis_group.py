"""Several real redis-servers that belong together: nodes of a cluster, or a sentinel with a master and its replica."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis.crc import key_slot
from redis.exceptions import RedisError

from redis_server import RedisServer

SLOTS = 16_384
NODE_TIMEOUT = 1_000
SETTLE_SECONDS = 30.0
SERVICE = "shop"


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

    def master_of(self, key: str) -> RedisServer:
        return next(node for node in self.masters() if self._has(node, key_slot(key.encode())))

    def flush(self) -> None:
        """Empties the masters."""
        for node in self.masters():
            node.client.flushall()

    def names(self) -> list[str]:
        """All keys."""
        return [name for node in self.masters() for name in node.client.keys("*")]

    def masters(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.client.info("replication")["role"] == "master"]

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

    def form(self) -> None:
        self._follow()
        self.sentinel.client.sentinel_monitor(SERVICE, "127.0.0.1", self.master.port, 1)
        for name, value in (("down-after-milliseconds", 300), ("failover-timeout", 2_000)):
            self.sentinel.client.execute_command("SENTINEL", "SET", SERVICE, name, value)
        until(lambda: self.sentinel.client.sentinel_master(SERVICE)["num-slaves"] == 1)

    def fail_over(self) -> None:
        """Has the two change places once they have the same, and waits until the sentinel names the new master."""
        self.master.client.set("copied", 1)
        assert self.master.client.wait(1, int(1000 * SETTLE_SECONDS)) == 1
        self.sentinel.client.sentinel_failover(SERVICE)
        self.master, self.replica = self.replica, self.master
        until(lambda: self.sentinel.client.sentinel_master(SERVICE)["port"] == self.master.port)
        self._follow()

    def _follow(self) -> None:
        self.replica.client.replicaof("127.0.0.1", self.master.port)
        until(lambda: self.replica.client.info("replication")["master_link_status"] == "up")


@contextmanager
def redis_nodes(folder: Path, masters: int = 3, replicas: int = 0, *, durable: bool = False) -> Iterator[RedisNodes]:
    """A cluster that answers."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT))
    options = (*options, "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
    with ExitStack() as running:
        nodes = [_running(running, folder / str(i), options, durable=durable) for i in range(masters + replicas)]
        cluster = RedisNodes(nodes, masters)
        cluster.form()
        yield cluster


@contextmanager
def redis_sentinels(folder: Path) -> Iterator[RedisSentinels]:
    """A master, a replica, and a sentinel that knows both."""
    folder.mkdir(exist_ok=True)
    conf = folder / "sentinel.conf"
    conf.touch()
    with ExitStack() as running:
        fast = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
        master, replica = (_running(running, folder / name, fast) for name in ("master", "replica"))
        sentinel = running.enter_context(RedisServer(folder, durable=False, sentinel=conf))
        group = RedisSentinels(master, replica, sentinel)
        group.form()
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

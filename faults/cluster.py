"""A Redis Cluster and a Redis with sentinels, whose masters are killed while many processes use one limit.

Replication is asynchronous: what a master took and its replica had not yet is gone with the master, a hold as well as
usage. With ``?wait=1`` a step is answered once a replica has it, so that nothing is gone that anybody was told of.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from tests.redis_server import RedisNodes, RedisSentinels, redis_nodes, redis_sentinels, until

from faults.oversell import CUSTOMER, FEATURE, LIMIT, all_attempts, oversell_on
from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import drain

TIMES = 2
BETWEEN = 1.0
DEAD = 1.0
"""After how many seconds without an answer a replica takes over."""


def cluster(scale: Scale) -> Iterator[Promise]:
    """3 masters with 2 replicas each; and one with a replica and a sentinel."""
    yield from _on(scale, "cluster, its slot moved", "", _move)
    yield from _on(scale, "cluster, its master killed, wait=1", "?wait=1&socket_timeout=1", _kill)
    with redis_nodes(scale.folder / "cluster-lossy", replicas=6, durable=True, dead=DEAD) as nodes:
        yield from _without_wait(scale, nodes)
    with redis_sentinels(scale.folder / "sentinels", dead=DEAD) as group:
        url = f"{group.url}?wait=1&socket_timeout=1"
        yield from oversell_on(scale, "sentinel, its master killed, wait=1", url, partial(_kill_masters, group))


def _on(scale: Scale, home: str, options: str, meanwhile: Callable[[RedisNodes], None]) -> Iterator[Promise]:
    with redis_nodes(scale.folder / home, replicas=6, durable=True, dead=DEAD) as nodes:
        yield from oversell_on(scale, home, f"{nodes.url}{options}", partial(meanwhile, nodes))


def _without_wait(scale: Scale, nodes: RedisNodes) -> Iterator[Promise]:
    with LocalSidecar(scale.folder / "cluster-lossy-sidecar", {FEATURE: LIMIT}, [CUSTOMER]) as sidecar:
        attempts = all_attempts(sidecar.address, nodes.url, partial(_kill, nodes))
        amounts = Counter[str]()
        for attempt in attempts:
            amounts[attempt.outcome] += attempt.amount
        drain(sidecar.address, nodes.url)
        counted = sidecar.usage([CUSTOMER])[CUSTOMER, FEATURE]
    used, unknown = amounts["used"], amounts["unknown"]
    yield Promise(
        "cluster, its master killed, without wait: nothing is counted twice",
        f"{used} of {LIMIT} sold, {counted:g} counted, {unknown} tried without an answer",
        counted <= used + unknown,
    )


def _kill_masters(group: RedisSentinels) -> None:
    until(lambda: bool(group.master.client.keys(f"*customer/{CUSTOMER}*:book")))
    for _ in range(TIMES):
        time.sleep(BETWEEN)
        group.kill_master()


def _book(nodes: RedisNodes) -> str:
    """The key of the customer's book, once there is one."""
    ending = f"customer/{CUSTOMER}:book"
    until(lambda: any(name.endswith(ending) for name in nodes.names()))
    return next(name for name in nodes.names() if name.endswith(ending))


def _move(nodes: RedisNodes) -> None:
    book = _book(nodes)
    for _ in range(TIMES):
        time.sleep(BETWEEN)
        nodes.move_slot(book, next(node for node in nodes.masters() if node is not nodes.master_of(book)))


def _kill(nodes: RedisNodes) -> None:
    book = _book(nodes)
    for _ in range(TIMES):
        time.sleep(BETWEEN)
        killed = nodes.master_of(book)
        killed.kill()
        until(lambda killed=killed: nodes.has_taken_over(killed))  # type: ignore[misc] # the default binds the loop's node
        killed.start()
        until(nodes.is_ready)

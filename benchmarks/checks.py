"""``Guard.check`` from the cache and past it, and what the local sidecar can answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Lock
from timeit import Timer

import grpc
from cachetools import TTLCache

from benchmarks.measure import WITHIN_NOISE, Comparison, ratio_at_least, ratio_at_most
from benchmarks.servers import local_sidecar, noop_server
from stigg_guard import Config, Guard
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as wire

CUSTOMER = "customer-demo-01"
FEATURE = "feature-custom-domain"
METER = "feature-templates"
METHOD = "GetEntitlementsStateV2"
REQUEST = wire.GetEntitlementsStateV2Request(customer_id=CUSTOMER)

CLIENT_THREADS = 8
CALLS_OF_A_THREAD = 10


def control() -> Iterator[Comparison]:
    """A check beside itself: how far from 1 a ratio of this run can be for no reason."""
    with local_sidecar() as address, Guard(Config(sidecar=address)) as guard:
        check = partial(guard.check, FEATURE, customer=CUSTOMER)
        yield Comparison(name="control: cached check / itself", ours=Timer(check), floor=Timer(check), aim=WITHIN_NOISE)


def cached() -> Iterator[Comparison]:
    """A check that the cache answers, and the usual thread-safe cache."""
    with local_sidecar() as address, Guard(Config(sidecar=address)) as guard:
        cache: TTLCache[str, object] = TTLCache(10_000, ttl=3600)
        cache[CUSTOMER] = guard.check(FEATURE, customer=CUSTOMER)
        yield Comparison(
            name="cached check / TTLCache.get under a lock",
            ours=Timer(f"check({FEATURE!r}, customer={CUSTOMER!r})", globals={"check": guard.check}),
            floor=Timer(f"with lock: get({CUSTOMER!r})", globals={"lock": Lock(), "get": cache.get}),
            aim=ratio_at_most(0.9),
        )
        names = {"check": guard.check}
        yield Comparison(
            name="cached check with requested_usage / without",
            ours=Timer(f"check({METER!r}, customer={CUSTOMER!r}, requested_usage=2)", globals=names),
            floor=Timer(f"check({METER!r}, customer={CUSTOMER!r})", globals=names),
            aim=ratio_at_most(4),
        )


def uncached() -> Iterator[Comparison]:
    """A check that has to ask the sidecar, and the call alone."""
    with ExitStack() as open_:
        address = open_.enter_context(local_sidecar())
        guard = open_.enter_context(Guard(Config(sidecar=address, cache_ttl=1e-9)))
        channel = open_.enter_context(grpc.insecure_channel(address))
        method = METHODS[METHOD]
        call = channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        yield Comparison(
            name="uncached check / bare gRPC call",
            ours=Timer(lambda: guard.check(FEATURE, customer=CUSTOMER)),
            floor=Timer(lambda: call(REQUEST, timeout=1.0)),
            aim=ratio_at_most(1.15),
        )


def throughput() -> Iterator[Comparison]:
    """What the local sidecar answers to eight threads, and what a server does that only answers."""
    with ExitStack() as open_:
        ours = _call(open_, open_.enter_context(local_sidecar()))
        floor = _call(open_, open_.enter_context(noop_server(METHOD, ours(REQUEST.SerializeToString()))))
        threads = open_.enter_context(ThreadPoolExecutor(CLIENT_THREADS))
        yield Comparison(
            name=f"local sidecar / no-op gRPC server, {CLIENT_THREADS} threads",
            ours=Timer(lambda: _load(threads, ours)),
            floor=Timer(lambda: _load(threads, floor)),
            aim=ratio_at_least(0.95),
            calls=CLIENT_THREADS * CALLS_OF_A_THREAD,
            per_second=True,
        )


def _call(open_: ExitStack, address: str) -> Callable[[bytes], bytes]:
    """The call, bytes in and bytes out: the client's own work must not hide the server's."""
    channel = open_.enter_context(grpc.insecure_channel(address))
    return channel.unary_unary(METHODS[METHOD].path, None, None)


def _load(threads: ThreadPoolExecutor, call: Callable[[bytes], bytes]) -> None:
    request = REQUEST.SerializeToString()

    def one_thread(_number: int) -> None:
        for _ in range(CALLS_OF_A_THREAD):
            call(request)

    for _ in threads.map(one_thread, range(CLIENT_THREADS)):
        pass

"""A local sidecar that knows many customers: how soon it is ready, its memory, and what a check costs beside a server
that only answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from timeit import Timer

import grpc

from benchmarks.measure import Comparison
from benchmarks.servers import CORES, noop_server, pin
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as wire

CUSTOMERS = int(os.environ.get("BENCH_CUSTOMERS", "10000"))
"""Fewer are ready sooner."""
ENTITLEMENTS = 50
CALLS = 3_000
METHOD = "GetEntitlementsStateV2"


def catalog() -> Iterator[str]:
    """The lines of a catalog whose customers have a plan with ten features of each of five kinds."""
    kinds = {
        "boolean": "true",
        "numeric": "{ value = 100 }",
        "enum": '{ values = ["eu", "us"] }',
        "soft": "{ limit = 1000, soft = true }",
        "metered": '{ limit = 1000, reset = "month" }',
    }
    features = [(f"{kind}-{number}", kind, grant) for kind, grant in kinds.items() for number in range(10)]
    for name, kind, _ in features[:ENTITLEMENTS]:
        metered = kind in ("soft", "metered")
        yield f'[features.{name}]\ntype = "{"metered" if metered else kind}"'
        yield 'meter = "incremental"' if metered else ""
    yield "[plans.all.entitlements]"
    yield from (f"{name} = {grant}" for name, _, grant in features[:ENTITLEMENTS])
    for number in range(CUSTOMERS):
        yield f'[customers.customer-{number}]\nplan = "all"\nusage = {{ metered-0 = {number % 1000} }}'


def check() -> Iterator[Comparison]:
    """A check of one customer after the other, and the call alone with an answer of that size."""
    with ExitStack() as open_:
        file = Path(open_.enter_context(TemporaryDirectory())) / "catalog.toml"
        file.write_text("\n".join(catalog()), encoding="utf-8")
        began = perf_counter()
        pid, address = open_.enter_context(_sidecar(file))
        ready = perf_counter() - began
        step = max(1, CUSTOMERS // CALLS)
        asked = [wire.GetEntitlementsStateV2Request(customer_id=f"customer-{one}") for one in range(0, CUSTOMERS, step)]
        requests = [request.SerializeToString() for request in asked]
        ours = _call(open_, address, requests)
        floor = _call(open_, open_.enter_context(noop_server(METHOD, ours())), requests)
        yield Comparison(
            name=f"check among {CUSTOMERS:,} x {ENTITLEMENTS} / no-op gRPC server", ours=Timer(ours), floor=Timer(floor)
        )
        check_times, noop_times = _tails(ours, floor)
        print(f"  ready after {ready:.1f} s, {_megabytes(pid):.0f} MB;", end=" ")
        print(f"p50 and p99 of a check {check_times}, of the no-op server {noop_times}")


@contextmanager
def _sidecar(catalog_file: Path) -> Iterator[tuple[int, str]]:
    """The process id and the address of a sidecar with the catalog, once it is ready."""
    command = [sys.executable, "-m", "stigg_guard", "sidecar", "--catalog", str(catalog_file)]
    pin(CORES[:1])
    process = subprocess.Popen([*command, "--port", "0", "--http-port", "0"], stdout=subprocess.PIPE, text=True)
    pin(CORES[-1:])
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        yield process.pid, re.findall(r"grpc=(\S+)", ready)[0]
    finally:
        process.terminate()
        process.communicate()


def _call(open_: ExitStack, address: str, requests: list[bytes]) -> Callable[[], bytes]:
    """Asks about the next customer, bytes in and bytes out."""
    channel = open_.enter_context(grpc.insecure_channel(address))
    method: Callable[[bytes], bytes] = channel.unary_unary(METHODS[METHOD].path, None, None)
    following = cycle(requests)
    return lambda: method(next(following))


def _tails(*calls: Callable[[], bytes]) -> list[str]:
    """The median and the 99th percentile of each call; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(CALLS):
        for call, its_times in zip(calls, times, strict=True):
            began = perf_counter()
            call()
            its_times.append(perf_counter() - began)
    hundredths = (quantiles(its_times, n=100) for its_times in times)
    return [f"{found[49] * 1e6:.0f} us and {found[98] * 1e6:.0f} us" for found in hundredths]


def _megabytes(pid: int) -> float:
    """The resident memory of a process."""
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) / 1024

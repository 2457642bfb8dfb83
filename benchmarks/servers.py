"""The processes that answer: our local sidecar, and a gRPC server that does nothing but answer."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import grpc

from stigg_guard.sidecar.child import ChildSidecar
from stigg_guard.sidecar.server import WORKERS
from stigg_guard.wire import SERVICE

# The first core is for servers and the last for what is measured, where the system lets a process choose.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(cores: list[int]) -> None:
    """Keeps this thread, and the threads and processes that it starts from now on, on these cores."""
    if cores:
        os.sched_setaffinity(0, cores)


def free_port() -> int:
    """A port that nobody has, below those that a system hands out to clients."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


@contextmanager
def local_sidecar(catalog: Path | None = None) -> Iterator[str]:
    """The address of a local sidecar with a catalog, or the demonstration's, in a process of its own."""
    with _server_core():
        child = ChildSidecar(port=0, catalog=catalog, fallbacks={})
    try:
        yield f"127.0.0.1:{child.port}"
    finally:
        child.stop()


@contextmanager
def noop_server(method: str, answer: bytes) -> Iterator[str]:
    """The address of a server with as many threads as the sidecar, which gives one answer to all calls of a method."""
    spawn = get_context("spawn")
    ours, its = spawn.Pipe()
    process = spawn.Process(target=_answer_always, args=(method, answer, its), daemon=True)
    with _server_core():
        process.start()
    its.close()  # so that its death ends the wait
    try:
        yield f"127.0.0.1:{ours.recv()}"
    finally:
        ours.send("stop")
        process.join()


@contextmanager
def _server_core() -> Iterator[None]:
    pin(CORES[:1])
    try:
        yield
    finally:
        pin(CORES[-1:])


def answer_at(port: int, method: str, answer: bytes, parent: Connection) -> None:
    """Answers all calls of a method there, once the parent sends something, and tells it when that begins."""
    parent.send("ready")
    parent.recv()
    server = _answering(method, answer)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    parent.send("begun")
    server.wait_for_termination()


def _answer_always(method: str, answer: bytes, parent: Connection) -> None:
    server = _answering(method, answer)
    parent.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    parent.recv()
    server.stop(None).wait()


def _answering(method: str, answer: bytes) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(WORKERS))
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, {method: handler}),))
    return server

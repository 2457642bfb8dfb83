"""gRPC servers that answer as a test says, and the networks before them: a proxy that falls silent, one for HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from stigg_guard.wire import METHODS, SERVICE

Handler = Callable[[Any, grpc.ServicerContext], Any]


@contextmanager
def serving(
    handlers: Mapping[str, Handler],
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    tls: grpc.ServerCredentials | None = None,
) -> Iterator[int]:
    """The port of a server with these methods of the contract. What a handler returns is a message, or bytes as is."""
    server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
    methods = {
        name: grpc.unary_unary_rpc_method_handler(handler, METHODS[name].request.FromString, _serialized)
        for name, handler in handlers.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, methods),))
    place = host if host.startswith("unix:") else f"{host}:{port}"
    bound = server.add_insecure_port(place) if tls is None else server.add_secure_port(place, tls)
    server.start()
    try:
        yield bound
    finally:
        server.stop(0).wait()


def _serialized(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


class TcpProxy:
    """Forwards connections from ``port`` to ``target``, until it falls silent: then it accepts and forwards nothing.

    ``opened`` counts the connections that came, ``standing`` has those that are open.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._silent_beneath = 0  # connections of a lower number forward nothing
        self.opened = 0
        self.standing: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self, *, new_ones: bool = False) -> None:
        """The connections that there are forward nothing from now on; or all, those to come as well."""
        with self._lock:
            self._silent_beneath = 2**31 if new_ones else self.opened

    def hear_new_ones(self) -> None:
        """Connections that are opened from now on forward all."""
        with self._lock:
            self._silent_beneath = self.opened

    def end_connections(self) -> None:
        """Cuts the connections that there are; who comes next is served."""
        with self._lock:
            ends = [end for pair in self.standing.values() for end in pair]
        for end in ends:
            _end(end)

    def wait_for(self, opened: int, standing: int) -> bool:
        """Whether so many connections have come before long, and so many of them stand."""
        with self._changed:
            return self._changed.wait_for(lambda: (self.opened, len(self.standing)) == (opened, standing), 10)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._listener)
        self.end_connections()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._changed:
                    number, self.opened = self.opened, self.opened + 1
                    self.standing[number] = client, server
                    self._changed.notify_all()
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(number, source, sink), daemon=True).start()

    def _forward(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if number >= self._silent_beneath:
                    sink.sendall(data)
        for end in (source, sink):
            _end(end)
        with self._changed:
            self.standing.pop(number, None)
            self._changed.notify_all()


@contextmanager
def http_proxy(target: int | None) -> Iterator[tuple[int, list[str]]]:
    """The port of an HTTP proxy, and what it was asked for. It leads to ``target`` always, or refuses without one."""
    asked: list[str] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                asked.append(client.recv(65_536).decode().partition("\r\n")[0])
                if target is None:
                    client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    _end(client)
                    continue
                server = socket.create_connection(("127.0.0.1", target))
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield int(listener.getsockname()[1]), asked
        finally:
            _end(listener)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for end in (source, sink):
        _end(end)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
    end.close()

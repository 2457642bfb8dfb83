"""A TCP proxy that breaks what passes through it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from enum import Enum
from time import sleep


class Fault(Enum):
    """What happens to the connections."""

    NONE = "none"
    DELAY = "delayed"
    REFUSE = "connection refused"
    LOSE_REQUESTS = "request lost"
    LOSE_REPLIES = "reply lost"
    RESET = "reset instead of a reply"
    TRUNCATE = "reply cut short"


DELAY_SECONDS = 0.05
BYTES_LEFT = 5  # of a reply that is cut short; a frame of HTTP/2 begins with 9
RST_AT_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to ``target`` from ``address``; :meth:`set` breaks and mends it.

    What was broken is never mended in the middle of a connection: a new fault ends those that there are, unless they
    are to break when it shows on them.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._fault = Fault.NONE
        self._listener = _listen(("127.0.0.1", 0))
        self._place = self._listener.getsockname()
        self.address = f"127.0.0.1:{self._place[1]}"
        self._start(self._accept, self._listener)

    def set(self, fault: Fault) -> None:
        """From now on this is what happens."""
        before, self._fault = self._fault, fault
        if before not in (Fault.NONE, Fault.DELAY) or fault is Fault.REFUSE:
            self._end_connections()
        if fault is Fault.REFUSE:
            _end(self._listener)
        elif before is Fault.REFUSE:
            self._listener = _listen(self._place)
            self._start(self._accept, self._listener)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._listener)
        self._end_connections()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        threading.Thread(target=work, args=args, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            _end(client)
            return
        with self._lock:
            self._connections |= {client, server}
        self._start(self._forward, client, server, self._request_passes)
        self._start(self._forward, server, client, self._reply_passes)

    def _forward(
        self, source: socket.socket, sink: socket.socket, passes: Callable[[bytes, socket.socket], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self._fault is Fault.DELAY:
                    sleep(DELAY_SECONDS)
                if passes(data, sink):
                    sink.sendall(data)
        for end in (source, sink):
            _end(end)
        with self._lock:
            self._connections -= {source, sink}

    def _request_passes(self, _data: bytes, _server: socket.socket) -> bool:
        return self._fault is not Fault.LOSE_REQUESTS

    def _reply_passes(self, data: bytes, client: socket.socket) -> bool:
        if self._fault is Fault.RESET:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_AT_CLOSE)
            client.close()
        elif self._fault is Fault.TRUNCATE:
            client.sendall(data[:BYTES_LEFT])
            _end(client)
        return self._fault is not Fault.LOSE_REPLIES

    def _end_connections(self) -> None:
        with self._lock:
            ended, self._connections = self._connections, set()
        for connection in ended:
            _end(connection)


def _listen(place: tuple[str, int]) -> socket.socket:
    return socket.create_server(place, reuse_port=False)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
    connection.close()

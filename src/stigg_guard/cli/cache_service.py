"""The cache service as a process: its signals, and its probes and metrics over HTTP."""

from __future__ import annotations

import os
import signal
import socket
from argparse import Namespace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Thread
from typing import TYPE_CHECKING

from stigg_guard.api.event_queue import STIGG_EDGE, EventQueueAccess
from stigg_guard.cache.service import CONTENT_TYPE, CacheService
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.errors import ConfigError
from stigg_guard.runtime.threads import start

if TYPE_CHECKING:
    from stigg_guard.cache.sqs import QueueReader

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(options: Namespace, config: Config) -> int:
    """Keeps the cache fresh until SIGTERM or SIGINT; returns the exit status. For the main thread of a process.

    Raises:
        ConfigError: the configuration has no shared cache, the port cannot be had, the system is not POSIX, or there
            is a queue and no key for it.
        MissingExtra: there is a queue, and boto3 is not installed.
    """
    if not hasattr(signal, "pthread_sigmask"):
        raise ConfigError("the cache service waits for signals as POSIX has them: run it on Linux, macOS or in WSL")
    service = CacheService(config, keep=options.keep)
    reader = _queue_reader(options, config, service)
    try:
        http = _Probes(options.host, options.http_port, service)
    except OSError as error:
        raise ConfigError(f"--http-port: cannot listen on {options.host}:{options.http_port}: {error}") from None
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # before any thread exists, so that sigwait has them
    working = Thread(target=service.run, name="stigg-guard-cache-service")
    start(working)
    start(Thread(target=http.serve_forever, name="stigg-guard-probes", daemon=True))
    if reader is not None:
        start(reader)
    print(f"ready http={options.host}:{http.server_address[1]}", flush=True)
    signal.sigwait(STOP_SIGNALS)
    if reader is not None:
        reader.over.set()
    service.stop()
    working.join()
    http.shutdown()
    http.server_close()
    return 0


def _queue_reader(options: Namespace, config: Config, service: CacheService) -> QueueReader | None:
    """What reads Stigg's durable queue for the service; None where there is no queue."""
    url = options.queue_url or os.environ.get("QUEUE_URL")
    if not url:
        return None
    if config.api_key is None:
        raise ConfigError("API_KEY: Stigg's queue is read with a key that has the permission for it; set it")
    from stigg_guard.cache.sqs import Queue, QueueReader  # it needs an extra

    access = EventQueueAccess(config.api_key, os.environ.get("EDGE_API_URL") or STIGG_EDGE, url)
    queue = Queue(url, access, Clock(), os.environ.get("AWS_REGION"))
    return QueueReader(queue, service.take, service.figures.registry)


class _Probes(ThreadingHTTPServer):
    """``/livez``, ``/readyz`` and ``/metrics``. It listens as soon as it is made, or raises ``OSError``."""

    daemon_threads = True
    server_bind = TCPServer.server_bind  # HTTPServer's own asks the DNS for this host's name

    def __init__(self, host: str, port: int, service: CacheService) -> None:
        self.address_family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.service = service
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asked has hung up, or spoke no HTTP."""


class _Handler(BaseHTTPRequestHandler):
    server: _Probes
    timeout = 10

    def do_GET(self) -> None:
        service = self.server.service
        if self.path == "/metrics":
            self._reply(HTTPStatus.OK, service.figures.text(), CONTENT_TYPE)
        elif self.path in ("/livez", "/readyz"):
            is_up = service.is_alive if self.path == "/livez" else service.is_ready
            status = HTTPStatus.OK if is_up else HTTPStatus.SERVICE_UNAVAILABLE
            self._reply(status, b'{"status":"UP"}' if is_up else b'{"status":"DOWN"}', "application/json")
        else:
            self._reply(HTTPStatus.NOT_FOUND, b"here are /livez, /readyz and /metrics\n", "text/plain")

    def _reply(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        """Probes come all the time."""

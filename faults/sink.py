"""Where the peers' events arrive: an HTTP server that remembers each marker it is sent."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

MARKER = re.compile(rb"(?:<|\\u003c)(\w+-\d+)(?:>|\\u003e)")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed leaves a broken connection, and that is no news here."""


class Sink:
    """Answers 200 to everything, or 503 while ``away``; ``arrived`` counts what came while it was not."""

    def __init__(self) -> None:
        self.away = False
        self.arrived: Counter[bytes] = Counter()
        self._lock = Lock()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer(sink._taken(body, self.headers.get("Content-Encoding")))

            def do_GET(self) -> None:
                self._answer(not sink.away)

            def _answer(self, taken: bool) -> None:
                self.send_response(200 if taken else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Sink:
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _taken(self, body: bytes, encoding: str | None) -> bool:
        if self.away:
            return False
        text = gzip.decompress(body) if encoding == "gzip" else body
        with self._lock:
            self.arrived.update(MARKER.findall(text))
        return True

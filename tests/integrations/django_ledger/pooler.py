"""A real PgBouncer for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import psycopg
import pytest

from postgres_server import NOBODY, START_SECONDS, PostgresServer


@contextmanager
def pooler(server: PostgresServer, database: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Pools so many connections to a database, each given to a client for a transaction; Django's settings for it."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("no PgBouncer: apt-get install pgbouncer")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = server.folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{database['NAME']} = host={server.folder} user={database['USER']}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = {size}\n"
    )
    user = NOBODY if os.geteuid() == 0 else None  # PgBouncer does not run as root either
    with (server.folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([program, "-q", settings], user=user, stdout=log, stderr=log)
    try:
        _wait_for(process, port, database)
        yield {**database, "HOST": "127.0.0.1", "PORT": port}
    finally:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, database: Mapping[str, Any]) -> None:
    deadline = monotonic() + START_SECONDS
    while True:
        with suppress(psycopg.OperationalError):
            psycopg.connect(host="127.0.0.1", port=port, dbname=database["NAME"], user=database["USER"]).close()
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            raise RuntimeError("PgBouncer has ended")
        assert monotonic() < deadline

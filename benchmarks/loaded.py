"""``python -m benchmarks.loaded``: a Flask site under gunicorn, asked by wrk over eight connections. Its plain, guarded
and consuming views take turns, so that the ratios are of one time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

from tests.redis_server import RedisServer

from benchmarks.report import machine
from benchmarks.servers import CORES, free_port, local_sidecar, pin

ROUNDS, SECONDS = 5, 3
VIEWS = ("plain", "guarded", "consuming")
HOMES = ("memory", "sqlite", "redis")
ROW = "{:<20} {:>9} {:>9} {:>9} {:>15} {:>18} {:>21}"
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Load(NamedTuple):
    """What a view stood: requests per second, and the milliseconds within which 99 of 100 were answered."""

    rate: float
    p99: float


def main() -> None:
    """Prints a line for each home of the ledger, with one worker and with two."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not on the PATH; install it, then run this again")
    print(machine(), end="\n\n")
    print(
        ROW.format(
            "gunicorn sync",
            *(f"{view}/s" for view in VIEWS),
            "guarded/plain",
            "consuming/guarded",
            "p99 ms of the three",
        )
    )
    with ExitStack() as open_:
        folder = Path(open_.enter_context(TemporaryDirectory()))
        server = open_.enter_context(RedisServer(folder, durable=False))
        address = open_.enter_context(local_sidecar())
        pin(CORES)
        for home in HOMES:
            for workers in (1, 2):
                ledger = {"memory": "memory://", "redis": server.url}.get(home, f"sqlite:///{folder}/{workers}.sqlite3")
                with _site(address, ledger, workers) as site:
                    print(_row(f"{home}, {workers} workers", _loads(site)), flush=True)


@contextmanager
def _site(address: str, ledger: str, workers: int) -> Iterator[str]:
    """The address of the site, served by so many processes."""
    site = f"127.0.0.1:{free_port()}"
    environ = {**os.environ, "STIGG_GUARD_SIDECAR": address, "STIGG_GUARD_LEDGER": ledger}
    command = ["gunicorn", "--workers", str(workers), "--bind", site, "--no-control-socket", "--log-level", "error"]
    server = subprocess.Popen([sys.executable, "-m", *command, "benchmarks.site:make_app()"], env=environ)
    try:
        while not _answers(f"http://{site}/consuming"):
            time.sleep(0.1)
        yield f"http://{site}"
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url) as answer:
            return bool(answer.status == 200)
    except URLError:
        return False


def _loads(site: str) -> dict[str, Load]:
    for view in VIEWS:
        _load(f"{site}/{view}", 1)
    rounds = [{view: _load(f"{site}/{view}", SECONDS) for view in VIEWS} for _ in range(ROUNDS)]
    return {
        view: Load(*(median(figures) for figures in zip(*(one[view] for one in rounds), strict=True))) for view in VIEWS
    }


def _load(url: str, seconds: int) -> Load:
    command = ["wrk", "-t1", "-c8", f"-d{seconds}", "--latency", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told:
        raise RuntimeError(f"{url} answers with errors: {told}")
    rate, p99 = re.search(r"Requests/sec:\s+([\d.]+)", told), re.search(r"99%\s+([\d.]+)(us|ms|s)", told)
    assert rate is not None
    assert p99 is not None
    return Load(float(rate[1]), float(p99[1]) * _MILLISECONDS[p99[2]])


def _row(name: str, loads: dict[str, Load]) -> str:
    plain, guarded, consuming = (loads[view] for view in VIEWS)
    rates = (f"{load.rate:,.0f}" for load in loads.values())
    p99 = " ".join(f"{load.p99:.3g}" for load in loads.values())
    return ROW.format(name, *rates, f"{guarded.rate / plain.rate:.2f}", f"{consuming.rate / guarded.rate:.2f}", p99)


if __name__ == "__main__":
    main()

"""``python -m benchmarks.loaded``: sites under servers of many kinds, asked by wrk over eight connections. Their plain,
guarded and consuming views take turns, so that the ratios are of one time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.request import urlopen

from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

from benchmarks.report import machine, publish, table
from benchmarks.servers import CORES, free_port, local_sidecar, pin
from benchmarks.site import CONSUMED, CUSTOMERS, DATABASE, GUARDED

ROUNDS, SECONDS = 3, 3
VIEWS = ("plain", "guarded", "consuming")
MANY = 1_000
HEAD = (
    "server, ledger, customers",
    *(f"{view}/s" for view in VIEWS),
    "guarded / plain",
    "consuming / guarded",
    "p99 of the three, ms",
)
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_GUNICORN = ("gunicorn", "--no-control-socket", "--log-level", "error")
_SQLITE = json.dumps({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})


class Server(NamedTuple):
    """How a site is served: a command, with so many processes."""

    name: str
    command: tuple[str, ...]

    def at(self, port: int) -> list[str]:
        return [
            *self.command,
            *(("--bind", f"127.0.0.1:{port}") if "gunicorn" in self.command else ("--port", str(port))),
        ]


def _sync(workers: int, site: str = "make_flask") -> Server:
    return Server(f"gunicorn sync, {workers}", (*_GUNICORN, "--workers", str(workers), f"benchmarks.site:{site}()"))


THREADED = Server(
    "gunicorn gthread, 2 of 4 threads",
    (*_GUNICORN, "--workers", "2", "--threads", "4", "benchmarks.site:make_flask()"),
)
DJANGO = _sync(2, "make_django")._replace(name="gunicorn sync, 2, Django")
ASYNC = Server(
    "uvicorn, 2, Django async",
    ("uvicorn", "--workers", "2", "--log-level", "error", "--factory", "benchmarks.site:make_django_async"),
)
ROWS = (
    *((_sync(workers), home, 1) for home in ("memory", "SQLite", "Redis") for workers in (1, 2)),
    *((server, home, 1) for server in (THREADED, ASYNC) for home in ("SQLite", "Redis")),
    (DJANGO, "SQLite", 1),
    (DJANGO, "PostgreSQL", 1),
    *((_sync(2), home, MANY) for home in ("SQLite", "Redis")),
    (DJANGO, "PostgreSQL", MANY),
)


class Load(NamedTuple):
    """What a view stood: requests per second, and the milliseconds within which 99 of 100 were answered."""

    rate: float
    p99: float


class Site(NamedTuple):
    """Where a site's guard asks and counts, and Django's settings of its database."""

    ledger: str
    database: str = _SQLITE


def main() -> None:
    """Prints a line for each server, home of the ledger and number of customers."""
    parser = ArgumentParser(prog="python -m benchmarks.loaded", description=__doc__)
    parser.add_argument("--publish", action="store_true", help="puts the table into docs/performance.md")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not on the PATH; install it, then run this again")
    where = f"`make bench-loaded`, medians of {ROUNDS} rounds of {SECONDS} s: {machine()}:"
    print(where, end="\n\n", flush=True)
    lines = []
    with ExitStack() as open_:
        folder = Path(open_.enter_context(TemporaryDirectory()))
        homes = _homes(open_, folder)
        address = open_.enter_context(local_sidecar(_catalog(folder)))
        pin(CORES)
        for server, home, customers in ROWS:
            with _served(server, address, homes[home](), customers) as url:
                lines.append(_line(f"{server.name}, {home}, {customers:,}", _loads(url, warm=1 + customers // 200)))
            print(*lines[-1], sep="  ", flush=True)
    if given.publish:
        publish("loaded", f"{where}\n\n{table(HEAD, lines)}")


def _homes(open_: ExitStack, folder: Path) -> dict[str, Callable[[], Site]]:
    """How to get a new ledger of each kind."""
    redis = open_.enter_context(RedisServer(folder))
    postgres = open_.enter_context(PostgresServer())
    numbers = count(1)
    return {
        "memory": lambda: Site("memory://"),
        "SQLite": lambda: Site(f"sqlite:///{folder}/{next(numbers)}.sqlite3"),
        "Redis": lambda: Site(f"{redis.url.rpartition('/')[0]}/{next(numbers)}"),
        "PostgreSQL": lambda: _with_tables(postgres.database(f"site-{next(numbers)}")),
    }


def _with_tables(database: dict[str, object]) -> Site:
    site = Site("django://default", json.dumps({**database, "CONN_MAX_AGE": None}))
    program = (
        "import benchmarks.site as site; site.set_up_site(); "
        "from django.core.management import call_command; call_command('migrate', verbosity=0)"
    )
    environ = {
        **os.environ,
        DATABASE: site.database,
        "STIGG_GUARD_SIDECAR": "offline",
        "STIGG_GUARD_LEDGER": site.ledger,
    }
    subprocess.run([sys.executable, "-c", program], env=environ, check=True)
    return site


def _catalog(folder: Path) -> Path:
    lines = [
        f'[features.{GUARDED}]\ntype = "boolean"',
        f'[features.{CONSUMED}]\ntype = "metered"\nmeter = "fluctuating"',
    ]
    lines.append(f"[plans.p.entitlements]\n{GUARDED} = true\n{CONSUMED} = {{ unlimited = true }}")
    lines += [f'[customers.customer-{number}]\nplan = "p"' for number in range(MANY)]
    path = folder / "catalog.toml"
    path.write_text("\n".join(lines))
    return path


@contextmanager
def _served(server: Server, address: str, site: Site, customers: int) -> Iterator[str]:
    """The address of the site."""
    port = free_port()
    told = {CUSTOMERS: str(customers), DATABASE: site.database}
    told |= {"STIGG_GUARD_SIDECAR": address, "STIGG_GUARD_LEDGER": site.ledger}
    process = subprocess.Popen([sys.executable, "-m", *server.at(port)], env={**os.environ, **told})
    try:
        while not _answers(f"http://127.0.0.1:{port}/consuming"):
            if process.poll() is not None:
                raise RuntimeError(f"the site of {server.name} ended: {process.returncode}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _loads(site: str, warm: int) -> dict[str, Load]:
    """What the views of a site stand, once they were asked for so many seconds, in which all customers were."""
    for view in VIEWS:
        _load(f"{site}/{view}", warm)
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


def _line(name: str, loads: dict[str, Load]) -> list[str]:
    plain, guarded, consuming = (loads[view] for view in VIEWS)
    rates = [f"{load.rate:,.0f}" for load in loads.values()]
    p99 = ", ".join(f"{load.p99:.3g}" for load in loads.values())
    return [name, *rates, f"{guarded.rate / plain.rate:.2f}", f"{consuming.rate / guarded.rate:.2f}", p99]


if __name__ == "__main__":
    main()

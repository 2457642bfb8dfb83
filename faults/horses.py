"""Workers whose processes are gone right after each job: what they used is reported all the same, and soon."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from redis import Redis
from rq import Queue
from tests.redis_server import RedisServer

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar

CUSTOMER = "ann"
FEATURE = "templates"
APP = Path(__file__).parent.parent / "tests" / "integrations" / "job_app"
WORKERS = 4
JOBS = 4
"""How many jobs each round of the scale adds."""
SOON = 5.0
PATIENCE = 600.0


def horses(scale: Scale) -> Iterator[Promise]:
    """RQ's work-horses and Celery's recycled children, on a file and on Redis."""
    for home in ("sqlite", "redis"):
        for name, work in (("RQ", _rq), ("Celery", _celery)):
            folder = scale.folder / f"horses-{home}-{name}"
            folder.mkdir()
            with RedisServer(folder) as server:
                ledger = server.url if home == "redis" else f"sqlite:///{folder / 'ledger.sqlite3'}"
                yield _on(folder, f"{name}, {home}", server, ledger, JOBS * scale.rounds, work)


def _on(
    folder: Path, what: str, server: RedisServer, ledger: str, jobs: int, work: Callable[[dict[str, str], int], None]
) -> Promise:
    with LocalSidecar(folder / "sidecar", {FEATURE: None}, [CUSTOMER]) as sidecar:
        environ = {
            **os.environ,
            "SITE_SIDECAR": sidecar.address,
            "SITE_LEDGER": ledger,
            "JOBS_REDIS": server.url,
            "PYTHONPATH": str(APP),
        }
        work(environ, jobs)
        done = time.monotonic()
        while (counted := sidecar.usage([CUSTOMER])[CUSTOMER, FEATURE]) < jobs and time.monotonic() < done + SOON:
            time.sleep(0.1)
        took = time.monotonic() - done
    return Promise(
        f"{what}: what processes used that are gone at once is counted",
        f"{jobs} jobs, {counted:g} counted within {took:.1f} s of the last one, nobody else alive",
        counted == jobs,
    )


def _rq(environ: dict[str, str], jobs: int) -> None:
    with Redis.from_url(environ["JOBS_REDIS"]) as client:
        queue = Queue(connection=client)
        for _ in range(jobs):
            queue.enqueue("jobs.work")
    command = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--quiet", "--url", environ["JOBS_REDIS"]]
    workers = [subprocess.Popen(command, env=environ) for _ in range(WORKERS)]
    for worker in workers:
        worker.wait(PATIENCE)


def _celery(environ: dict[str, str], jobs: int) -> None:
    options = ["--pool", "prefork", "--concurrency", str(WORKERS), "--max-tasks-per-child", "1", "--loglevel", "ERROR"]
    client = (
        "import sys, jobs\n"
        "results = [jobs.task.delay() for _ in range(int(sys.argv[1]))]\n"
        "[result.get(timeout=600) for result in results]\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "celery", "--app", "jobs:app", "worker", *options], env=environ
    ) as worker:
        subprocess.run([sys.executable, "-c", client, str(jobs)], env=environ, check=True, timeout=PATIENCE)
        worker.terminate()

"""Jobs in real workers, whose processes are gone right after their work: what they used is reported all the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue

from conftest import exit_at_once
from integrations.servers import Shop, selling, use, use_a_new_guard
from redis_server import RedisServer
from stigg_guard import Config, GetMeteredEntitlementRequest, Guard
from stigg_guard.config import ReportMode

JOBS = 6
APP = Path(__file__).parent / "job_app"


def counted(shop: Shop) -> float:
    """What the sidecar has counted by now."""
    request = GetMeteredEntitlementRequest(customer_id="ann", feature_id="templates")
    answer: Any = shop.engine.answer("GetMeteredEntitlement", request)
    return float(answer.entitlement.current_usage)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, durable=False) as server:
        yield server


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with selling(tmp_path) as shop:
        yield shop


def environment(shop: Shop, redis: RedisServer) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return {**ours, **shop.environ, "JOBS_REDIS": redis.url, "PYTHONPATH": str(APP)}


def make(shop: Shop) -> Guard:
    return Guard(Config(sidecar=shop.environ["SITE_SIDECAR"], ledger=shop.environ["SITE_LEDGER"]))


def test_horses_of_rq_report_before_they_are_gone(shop: Shop, redis: RedisServer) -> None:
    with Redis.from_url(redis.url) as client:
        queue = Queue(connection=client)
        for _ in range(JOBS):
            queue.enqueue("jobs.work")
        worker = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--quiet", "--url", redis.url]
        subprocess.run(worker, env=environment(shop, redis), check=True, timeout=90)
        assert (counted(shop), queue.failed_job_registry.count) == (JOBS, 0)


def test_recycled_children_of_celery_report_before_they_are_gone(shop: Shop, redis: RedisServer) -> None:
    environ = environment(shop, redis)
    options = ["--pool", "prefork", "--concurrency", "2", "--max-tasks-per-child", "1", "--loglevel", "ERROR"]
    command = [sys.executable, "-m", "celery", "--app", "jobs:app", "worker", *options]
    client = (
        "import sys, jobs\n"
        "results = [jobs.task.delay() for _ in range(int(sys.argv[1]))]\n"
        "[result.get(timeout=60) for result in results]\n"
    )
    with subprocess.Popen(command, env=environ, cwd=shop.folder) as worker:
        try:
            subprocess.run([sys.executable, "-c", client, str(JOBS)], env=environ, check=True, timeout=90)
            assert counted(shop) == JOBS
        finally:
            worker.terminate()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the sidecar of this test has threads
def test_children_of_multiprocessing_report_before_they_are_gone(shop: Shop, method: str) -> None:
    context = multiprocessing.get_context(method)
    given = (shop.environ["SITE_SIDECAR"], shop.environ["SITE_LEDGER"])
    with context.Pool(2) as pool:  # it ends its children by SIGTERM
        pool.starmap(use_a_new_guard, [given] * JOBS)
    assert counted(shop) == JOBS


@pytest.mark.parametrize("whose", ["its own", "its parent's"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_that_exits_at_once_reports_with_a_guard_of(shop: Shop, whose: str) -> None:
    with make(shop) as guard:
        for _ in range(JOBS):
            exit_at_once(lambda: use(guard if whose == "its parent's" else make(shop)))
        assert counted(shop) == JOBS


def test_what_a_child_could_not_report_is_reported_by_whoever_lives(shop: Shop, tmp_path: Path) -> None:
    """The child meets no sidecar; the ledger has what it used, and the next process to use it sends it."""
    given = f"Guard(Config(sidecar='127.0.0.1:1', ledger={shop.environ['SITE_LEDGER']!r}))"
    program = (
        "import os; from stigg_guard import Config, Guard\n"
        f"{given}.report('templates', 2, customer='ann')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    with make(shop) as guard:
        use(guard)
        assert guard.flush(30) == 0
    assert counted(shop) == 3


def test_a_process_that_is_frozen_after_its_response_has_reported_inline(shop: Shop) -> None:
    program = (
        "import os, sys; from stigg_guard import Config, Guard\n"
        "guard = Guard(Config(sidecar=os.environ['SITE_SIDECAR'], ledger=os.environ['SITE_LEDGER'], report='inline'))\n"
        "with guard.consume('templates', customer='ann'): pass\n"
        "print('response', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **shop.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as function:
        assert function.stdout is not None
        assert function.stdout.readline() == "response\n"
        function.send_signal(signal.SIGSTOP)
        assert counted(shop) == 1
        function.kill()


def test_a_setting_says_otherwise(shop: Shop) -> None:
    config = Config(
        sidecar=shop.environ["SITE_SIDECAR"], ledger=shop.environ["SITE_LEDGER"], report=ReportMode.BACKGROUND
    )
    exit_at_once(lambda: Guard(config).report("templates", 1, customer="ann"))
    with make(shop) as guard:
        assert guard.stats()["unsent"] + guard.stats()["sending"] == 1
        assert guard.flush(60) == 0
    assert counted(shop) == 1

"""An application whose jobs use units, for workers that end their processes in their own ways."""

from __future__ import annotations

import os
from functools import lru_cache

from celery import Celery

from stigg_guard import Config, Guard

app = Celery("jobs", broker=os.environ.get("JOBS_REDIS"), backend=os.environ.get("JOBS_REDIS"))
app.conf.broker_connection_retry_on_startup = True


@lru_cache
def guard() -> Guard:
    return Guard(Config(sidecar=os.environ["SITE_SIDECAR"], ledger=os.environ["SITE_LEDGER"]))


def work() -> None:
    """A job that uses one unit."""
    with guard().consume("templates", customer="ann"):
        pass


@app.task
def task() -> None:
    """The same as a task of Celery."""
    work()

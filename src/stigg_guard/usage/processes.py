"""Tells whether this process may end right after its work, so that a background thread has no time to report."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from stigg_guard.runtime.forks import follow_forks

# Servers' workers live long and end in good order. Their masters fork them, or make them by ``multiprocessing``.
_FORKING_SERVERS = ("gunicorn", "uwsgi", "mod_wsgi", "uvicorn", "hypercorn", "granian")
_SPAWNING_SERVERS = ("uvicorn", "hypercorn", "granian")

_is_forked = False


def may_end_at_once() -> bool:
    """Whether this process may be ended right after its work, without a chance to report what it used: a job's own
    process (RQ), a worker that is recycled (Celery), a child of ``multiprocessing``, or any other fork that no web
    server made."""
    if _runs_rq_job() or _is_child_of_billiard():
        return True
    if multiprocessing.parent_process() is not None:
        return not any(server in sys.modules for server in _SPAWNING_SERVERS)
    return _is_forked and not any(server in sys.modules for server in _FORKING_SERVERS)


def _runs_rq_job() -> bool:
    rq: Any = sys.modules.get("rq.job")
    return rq is not None and rq.get_current_job() is not None


def _is_child_of_billiard() -> bool:
    """Celery's pool of processes."""
    billiard: Any = sys.modules.get("billiard.process")
    return billiard is not None and billiard.current_process().name != "MainProcess"


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


follow_forks(after_in_child=_note_fork)

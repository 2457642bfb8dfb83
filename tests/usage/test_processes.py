"""Which processes may end right after their work, and what is used while one ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stigg_guard import GetMeteredEntitlementRequest, Stigg
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

WAIT = 60

CHILDREN = """
import multiprocessing, os, sys
__import__(sys.argv[1])
from stigg_guard.usage.processes import may_end_at_once

def told(_):
    return may_end_at_once()

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
        print(may_end_at_once(), pool.map(told, [1])[0])
"""

USES_WHILE_IT_ENDS = """
import atexit, sys
from stigg_guard import Config, Guard

guard = Guard(Config(sidecar=sys.argv[1], ledger="memory://", report=sys.argv[2], timeout=20))
atexit.register(lambda: guard.report("feature-templates", 1, customer="customer-demo-02"))
with guard.consume("feature-templates", 1, customer="customer-demo-02"):
    pass
"""


def run(program: str, *arguments: str, folder: Path) -> str:
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=WAIT
    )
    return done.stdout.strip()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("server", "at_once"), [("json", True), ("waitress", True), ("gunicorn", True), ("uvicorn", False)]
)
def test_a_child_of_multiprocessing_ends_at_once_unless_a_server_makes_its_workers_so(
    server: str, at_once: bool, method: str, tmp_path: Path
) -> None:
    assert run(CHILDREN, server, method, folder=tmp_path) == f"False {at_once}"


@pytest.mark.parametrize("mode", ["auto", "background"])
def test_what_is_used_while_a_process_ends_is_reported(mode: str, tmp_path: Path) -> None:
    engine = Engine(demo_catalog(), Store(None))
    with Sidecar(engine) as sidecar, Stigg(answers=engine) as stigg:
        run(USES_WHILE_IT_ENDS, sidecar.address, mode, folder=tmp_path)
        request = GetMeteredEntitlementRequest(customer_id="customer-demo-02", feature_id="feature-templates")
        assert stigg.get_metered_entitlement(request).entitlement.current_usage == 14

"""Systems without POSIX: what needs it says so, and the rest works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# As on Windows. What the interpreter itself has loaded before stays.
WITHOUT_POSIX = """
import os, signal, sys
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource")))
del os.register_at_fork, os.fork, signal.pthread_sigmask
"""
DEMO = Path(__file__).parents[1] / "src" / "stigg_guard" / "sidecar" / "demo.toml"


def said(program: str) -> str:
    command = [sys.executable, "-c", WITHOUT_POSIX + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_checks_holds_and_reports_work() -> None:
    program = f"""
import stigg_guard as s
from stigg_guard.testing import override_entitlements
offline = s.Guard(s.Config(sidecar="offline", offline_file={str(DEMO)!r}))
print(offline.check("feature-templates", customer="customer-demo-01").remaining)
with override_entitlements({{"f": {{"limit": 3}}}}) as given, s.Guard(s.Config(ledger="memory://")) as guard:
    with guard.consume("f", 2, customer="c"):
        pass
    given.assert_usage_reported("f", 2)
    print(guard.check("f", customer="c").remaining)
"""
    assert said(program).split() == ["3.0", "1.0"]


@pytest.mark.parametrize("module", ["stigg_guard.django", "stigg_guard.flask", "stigg_guard.openfeature"])
def test_the_frameworks_can_be_imported(module: str) -> None:
    assert said(f"import {module}; print('here')") == "here\n"


@pytest.mark.parametrize("ledger", ["None", "'sqlite:///ledger.sqlite3'"])
def test_a_ledger_in_a_file_is_refused_with_the_remedy(ledger: str) -> None:
    program = f"""
import stigg_guard as s
try:
    s.Guard(s.Config(ledger={ledger})).report("f", 1, customer="c")
except s.ConfigError as error:
    print(error)
"""
    assert said(program).startswith("LEDGER: a ledger in a file needs a POSIX system")
    assert "memory://" in said(program)


def test_the_local_sidecar_is_refused_with_the_remedy() -> None:
    program = "from stigg_guard.__main__ import main; main(['sidecar', '--port', '0', '--http-port', '0'])"
    assert said(program).startswith("stigg-guard: the local sidecar waits for signals")

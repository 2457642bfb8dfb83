"""The command ``stigg-guard check``; ``stigg-guard sidecar`` is in ``tests/sidecar/test_process.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stigg_guard import __version__
from stigg_guard.__main__ import main
from stigg_guard.sidecar.server import Sidecar

CUSTOMER = "customer-demo-01"


@pytest.fixture(autouse=True)
def environment(sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIGG_GUARD_SIDECAR", sidecar.address)


def test_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"stigg-guard {__version__}\n"


def test_lists_what_a_plan_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", CUSTOMER]) == 0
    assert "feature-templates         yes  3 of 6 templates" in capsys.readouterr().out


def test_says_that_there_is_no_subscription(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "customer-demo-04"]) == 0
    assert capsys.readouterr().out == "nothing: there is no active subscription\n"


def test_a_denial_is_status_1_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", CUSTOMER, "feature-templates", "--requested-usage", "10"]) == 1
    expected = "feature-templates  no   REQUESTED_USAGE_EXCEEDING_LIMIT (3 of 6 templates used, 10 requested)\n"
    assert capsys.readouterr().out == expected


def test_asks_for_a_resource_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", CUSTOMER, "feature-templates", "--resource", "site-01", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["kind"], answer["current_usage"], answer["source"]) == ("metered", 0, "sidecar")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["check", CUSTOMER, "feature-templates", "--requested-usage", "10", "--json"], 1),
        (["schema"], 0),
        (["sidecar", "--print-config"], 0),
    ],
)
def test_who_reads_no_further_is_no_error(arguments: list[str], status: int) -> None:
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "stigg_guard", *arguments]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(written)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_question_makes_no_ledger_and_needs_no_place_for_one(
    state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", CUSTOMER, "feature-templates"]) == 0
    assert not state_folder.exists()
    monkeypatch.setenv("XDG_STATE_HOME", "~")
    assert main(["check", CUSTOMER, "feature-templates"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "knows no customer 'nobody'"),
        ([CUSTOMER, "--requested-usage", "2"], "name it"),
        (["a\udcff"], "valid Unicode"),
    ],
)
def test_a_question_that_cannot_be_answered_is_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("STIGG_GUARD_SIDECAR", "127.0.0.1:1", "failed with UNAVAILABLE"),
        ("STIGG_GUARD_TIMEOT", "1", "did you mean STIGG_GUARD_TIMEOUT?"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as end:
        main(["check", CUSTOMER])
    printed = capsys.readouterr().err
    assert (end.value.code, printed.count("\n")) == (2, 1)
    assert printed.startswith("stigg-guard: ")
    assert said in printed

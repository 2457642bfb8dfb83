"""The doctor: what it finds, over a real sidecar, its API and Redis."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from api_server import ApiServer
from redis_server import RedisServer
from stigg_guard.__main__ import main
from stigg_guard.cli.doctor import ASSUMPTIONS, Finding, Health, _clock, status_of
from stigg_guard.clock import Clock
from stigg_guard.ledger import UsageKey, Use, ledger_from_url
from stigg_guard.sidecar.server import Sidecar

Examine = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Examine:
    """The exit status of the doctor with these settings, and what it found by subject; the last of each."""

    def run(**settings: str) -> tuple[int, dict[str, Any]]:
        for name, value in {"TIMEOUT": "20", **settings}.items():
            monkeypatch.setenv(f"STIGG_GUARD_{name}", value)
        status = main(["doctor", "--json"])
        said = capsys.readouterr().out
        assert "secret" not in said
        return status, {each["subject"]: each for each in json.loads(said)}

    return run


def test_all_is_well(examine: Examine, sidecar: Sidecar, state_folder: Path) -> None:
    state_folder.mkdir()
    status, found = examine(SIDECAR=sidecar.address, API_KEY="secret", API_URL=f"http://{sidecar.http_address}")
    assert status == 0
    assert {each["health"] for each in found.values()} == {"ok"}
    assert found.keys() == {"SIDECAR", "API_KEY", "clock", "LEDGER", "CACHE", "CREDIT_RATES", "WEBHOOK_SECRET"}
    assert "asked about at each use" in found["CREDIT_RATES"]["remedy"]
    _, found = examine(CREDIT_RATES='{"feature-ai": {"currency": "api-credits", "rate": 2}}')
    assert found["CREDIT_RATES"]["found"].startswith("set for 1 features")


def test_it_is_a_table_for_people(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STIGG_GUARD_SIDECAR", sidecar.address)
    monkeypatch.setenv("STIGG_GUARD_LEDGER", "memory://")
    monkeypatch.setenv("STIGG_GUARD_TIMEOUT", "20")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("what            state  found")
    assert "in memory: what is unsent is lost with its process" in said


def test_the_cloud_works_and_is_not_verified(examine: Examine, sidecar: Sidecar, state_folder: Path) -> None:
    state_folder.mkdir()
    status, found = examine(SIDECAR="cloud", API_KEY="secret", API_URL=f"http://{sidecar.http_address}")
    assert status == 2
    assert found["SIDECAR"]["health"] == "ok"
    assert found["Stigg's API"]["found"] == f"assumed: {ASSUMPTIONS[-1]}"


def test_a_wrong_key_is_broken(examine: Examine) -> None:
    server = ApiServer()
    server.faults += [lambda handler: handler.send(401, b"{}")] * 2
    status, found = examine(SIDECAR="cloud", API_KEY="secret", API_URL=server.url, LEDGER="memory://")
    server.stop()
    assert status == 1
    assert (found["SIDECAR"]["health"], found["API_KEY"]["health"]) == ("broken", "broken")
    assert "API_KEY" in found["API_KEY"]["found"]
    assert "set API_KEY" in found["API_KEY"]["remedy"]


def test_an_api_out_of_reach_is_no_matter_of_the_key(examine: Examine) -> None:
    _, found = examine(SIDECAR="cloud", API_KEY="secret", API_URL="http://127.0.0.1:1", LEDGER="memory://")
    assert (found["API_KEY"]["health"], found["API_KEY"]["remedy"]) == ("broken", "let this host reach API_URL")


def test_what_does_not_answer_is_broken(examine: Examine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        status, found = examine(SIDECAR="127.0.0.1:1", CACHE="redis://127.0.0.1:1/0", LEDGER="redis://127.0.0.1:1/1")
    assert status == 1
    assert {found[name]["health"] for name in ("SIDECAR", "CACHE", "LEDGER")} == {"broken"}


def test_redis_is_asked(examine: Examine, sidecar: Sidecar, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        _, found = examine(SIDECAR=sidecar.address, CACHE=server.url, LEDGER=server.url)
    assert (found["CACHE"]["found"], found["LEDGER"]["found"]) == ("Redis answers", "it can be read: 0 on their way")


def test_what_waits_for_a_decision_is_to_be_decided(examine: Examine, sidecar: Sidecar, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    ledger = ledger_from_url(url, Clock())
    ledger.record(Use(UsageKey("c", "", "f"), 1))
    batch = ledger.take_batch(1, 30.0)
    assert batch is not None
    ledger.bury(batch.reports[0], "on purpose")
    ledger.close()
    status, found = examine(SIDECAR=sidecar.address, LEDGER=url)
    assert status == 1
    assert found["LEDGER"]["found"] == "1 reports wait for a decision, 0 on their way"


def test_a_ledger_that_is_not_there_yet_is_not_made(examine: Examine, sidecar: Sidecar, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    status, found = examine(SIDECAR=sidecar.address, LEDGER=url)
    assert (status, found["LEDGER"]["found"]) == (0, "there is none yet; the first use makes it")
    assert not (tmp_path / "ledger.sqlite3").exists()


def test_a_wrong_setting_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("STIGG_GUARD_SIDECAR", "cloud")
    with pytest.raises(SystemExit, match="1"):
        main(["doctor"])
    assert "API_KEY: SIDECAR is 'cloud'" in capsys.readouterr().err


def test_a_ledger_out_of_reach_is_broken(examine: Examine, sidecar: Sidecar, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "ledger.sqlite3").symlink_to(tmp_path / "file" / "ledger.sqlite3")
    status, found = examine(SIDECAR=sidecar.address, LEDGER=f"sqlite:///{tmp_path}/folder/ledger.sqlite3")
    assert (status, found["LEDGER"]["health"]) == (1, "broken")


def test_a_secret_can_only_be_seen_to_be_there(examine: Examine, sidecar: Sidecar) -> None:
    status, found = examine(SIDECAR=sidecar.address, LEDGER="memory://", WEBHOOK_SECRET="secret")
    assert (status, found["WEBHOOK_SECRET"]["health"]) == (2, "not verified")


def test_a_slow_sidecar_is_told(examine: Examine, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 11.0])
    monkeypatch.setattr("stigg_guard.cli.doctor.perf_counter", lambda: next(times))
    status, found = examine(SIDECAR=sidecar.address, LEDGER="memory://")
    assert (status, found["SIDECAR"]["remedy"]) == (2, "ask again, or raise TIMEOUT from 20 s")


def test_a_disabled_guard_is_disabled(examine: Examine) -> None:
    status, found = examine(ENABLED="false")
    assert (status, list(found)) == (0, ["ENABLED"])


@pytest.mark.parametrize(("seconds", "health"), [(59, Health.OK), (-59, Health.OK), (61, Health.BROKEN)])
def test_a_clock_may_differ_by_a_minute(seconds: int, health: Health) -> None:
    now = datetime(2026, 1, 15, tzinfo=timezone.utc)
    assert _clock(now, now + timedelta(seconds=seconds)).health is health


def test_the_worst_decides() -> None:
    ok, unverified, broken = (Finding("x", health, "") for health in Health)
    assert [status_of(each) for each in ([ok], [ok, unverified], [ok, unverified, broken])] == [0, 2, 1]

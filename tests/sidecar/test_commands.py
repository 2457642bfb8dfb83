"""The commands that change a running sidecar."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from sidecar.contract import DEMO, Client
from stigg_guard.__main__ import main
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar


@pytest.fixture
def guarded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sidecar]:
    """A sidecar whose token the environment has."""
    monkeypatch.setenv("STIGG_SIDECAR_TOKEN", "my-token")
    with Sidecar(engine, token="my-token") as sidecar:
        yield sidecar


def run(sidecar: Sidecar, command: str, *arguments: str) -> int:
    return main(["sidecar", command, "--http", sidecar.http_address, *arguments])


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["sidecar", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_each_change_is_a_command(guarded: Sidecar, engine: Engine) -> None:
    with grpc.insecure_channel(guarded.address) as channel:
        client = Client(channel)
        assert run(guarded, "usage", DEMO, "feature-templates", "6") == 0
        assert client.templates_used() == 6
        assert run(guarded, "promote", DEMO, "feature-templates", '{"limit": 9}', "--until", "2099-01-01") == 0
        assert run(guarded, "promote", DEMO, "feature-analytics") == 0
        ask = {"customer_id": DEMO, "feature_id": "feature-templates"}
        assert client("GetMeteredEntitlement", **ask).entitlement.usage_limit == 9
        assert client("GetBooleanEntitlement", customer_id=DEMO, feature_id="feature-analytics").has_access
        assert run(guarded, "promote", DEMO, "feature-analytics", "null") == 0
        assert not client("GetBooleanEntitlement", customer_id=DEMO, feature_id="feature-analytics").has_access
        assert run(guarded, "plan", DEMO, "growth") == 0
        assert client("GetMeteredEntitlement", **ask).entitlement.usage_limit == 50
        assert run(guarded, "plan", DEMO, "--resource", "site-01") == 0
    before = engine.now()
    assert run(guarded, "advance", "1.5h") == 0
    assert (engine.now() - before).total_seconds() == 5400


def test_a_change_that_is_wrong_is_told(guarded: Sidecar, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--http", guarded.http_address)
    assert "there is no 'nowhere'" in failed(capsys, "plan", *place, DEMO, "nowhere")
    assert "not JSON" in failed(capsys, "promote", *place, DEMO, "feature-analytics", "{")
    assert "'soon' is no time; write it as 90" in failed(capsys, "advance", *place, "soon")


def test_another_token_is_told(
    guarded: Sidecar, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGG_SIDECAR_TOKEN", "another")
    said = failed(capsys, "advance", "--http", guarded.http_address, "1d")
    assert "STIGG_SIDECAR_TOKEN: it must be that of the sidecar" in said
    assert "my-token" not in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_a_sidecar_that_is_not_there_is_told(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no sidecar answers at {address}" in failed(capsys, "advance", "--http", address, "1d")

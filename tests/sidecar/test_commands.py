"""The commands that change a running sidecar."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

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


def test_a_token_that_is_none_is_refused_and_not_repeated(
    guarded: Sidecar, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGG_SIDECAR_TOKEN", "secret\nline")
    said = failed(capsys, "advance", "--http", guarded.http_address, "1d")
    assert "STIGG_SIDECAR_TOKEN: expected a text of ASCII without spaces" in said
    assert "secret" not in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "a..b:80"])
def test_a_sidecar_that_is_not_there_is_told(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no sidecar answers at {address}" in failed(capsys, "advance", "--http", address, "1d")


@pytest.mark.parametrize("address", ["nowhere", "http://localhost:8080", "localhost:"])
def test_what_is_no_address_is_told(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = failed(capsys, "advance", "--http", address, "1d")
    assert f"expected HOST:PORT, as 127.0.0.1:8080, not {address!r}" in said


@pytest.mark.parametrize("status", [200, 404])
def test_another_server_at_the_address_is_no_sidecar(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.handle_request).start()
        address = f"127.0.0.1:{server.server_port}"
        assert f"what answers at {address} is no local sidecar" in failed(capsys, "advance", "--http", address, "1d")


def test_what_speaks_grpc_at_the_address_is_no_sidecar_either(
    guarded: Sidecar, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no sidecar answers at" in failed(capsys, "advance", "--http", guarded.address, "1d")

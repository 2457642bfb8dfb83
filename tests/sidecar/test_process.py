"""The local sidecar as a process: how it starts, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.processes import FREE_PORTS, ONE_TEMPLATE, READY, Start, call, templates_used
from stigg_guard.wire import METHODS
from stigg_guard.wire.sidecar_pb2 import ReportUsageRequest

KILLS = 6


def refused(*arguments: str, **environment: str) -> str:
    """What a command prints that must end with status 2, saying one clear thing on standard error only."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert not done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


# Starting


@pytest.mark.parametrize("module", [("stigg_guard.sidecar",), ("stigg_guard", "sidecar")], ids=["module", "command"])
def test_ready_line_comes_first_and_both_ports_answer(start: Start, module: tuple[str, ...]) -> None:
    sidecar = start(module=module)
    assert templates_used(sidecar.address) == 3
    assert requests.get(f"http://{sidecar.http_address}/readyz", timeout=10).json() == {"status": "UP"}


def test_the_address_of_the_status_page_comes_next(start: Start) -> None:
    sidecar = start()
    assert sidecar.process.stdout
    page = re.fullmatch(r"page (http://\S+/)#(\S+)\n", sidecar.process.stdout.readline())
    assert page
    assert page[1] == f"http://{sidecar.http_address}/"
    advance = {"json": {"seconds": 60}, "headers": {"X-Sidecar-Token": page[2]}, "timeout": 10}
    assert requests.post(f"{page[1]}changes/clock", **advance).status_code == 204


def test_a_token_that_was_given_is_not_printed(start: Start) -> None:
    sidecar = start(STIGG_SIDECAR_TOKEN="my-token")
    assert sidecar.process.stdout
    assert sidecar.process.stdout.readline() == f"page http://{sidecar.http_address}/\n"


def test_catalog_and_fallbacks_are_those_that_it_is_given(start: Start, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[features.f]\ntype = "boolean"\n[plans.p.entitlements]\nf = true\n[customers.c]\nplan = "p"\n')
    sidecar = start("--catalog", str(catalog), ENTITLEMENTS_FALLBACK='{"g": {"hasAccess": true}}')
    request = METHODS["GetBooleanEntitlement"].request
    with grpc.insecure_channel(sidecar.address) as channel:
        sold = call(channel, "GetBooleanEntitlement", request(customer_id="c", feature_id="f"))
        unknown = call(channel, "GetBooleanEntitlement", request(customer_id="c", feature_id="g"))
    assert (sold.has_access, sold.is_fallback) == (True, False)
    assert (unknown.has_access, unknown.is_fallback) == (True, True)


def test_a_catalog_that_changes_is_taken_in_when_asked(start: Start, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    sold = '[features.f]\ntype = "{}"\n[plans.p.entitlements]\nf = true\n[customers.c]\nplan = "p"\n'
    catalog.write_text(sold.format("boolean"))
    sidecar = start("--catalog", str(catalog), "--reload", stderr=subprocess.PIPE)
    assert sidecar.process.stderr
    catalog.write_text(sold.format("bolean"))
    told = sidecar.process.stderr.readline() + sidecar.process.stderr.readline()
    assert "stays in force" in told
    assert "line 2" in told
    catalog.write_text(sold.format("boolean") + "[customers.new]\nplan = 'p'\n")
    assert "has changed and is in force" in sidecar.process.stderr.readline()
    request = METHODS["GetBooleanEntitlement"].request
    with grpc.insecure_channel(sidecar.address) as channel:
        assert call(channel, "GetBooleanEntitlement", request(customer_id="new", feature_id="f")).has_access


def test_taken_port_is_refused_with_the_remedy(start: Start) -> None:
    address = start().address
    port = address.rpartition(":")[2]
    said = refused("-m", "stigg_guard.sidecar", *FREE_PORTS, "--port", port)
    assert f"cannot listen on {address}: Address already in use" in said
    assert "--port" in said


@pytest.mark.parametrize("module", [("stigg_guard.sidecar",), ("stigg_guard", "sidecar")], ids=["module", "command"])
def test_wrong_catalog_is_refused_with_line_and_remedy(tmp_path: Path, module: tuple[str, ...]) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[features.f]\ntype = "bolean"\n')
    said = refused("-m", *module, *FREE_PORTS, "--catalog", str(catalog))
    assert "line 2" in said
    assert "boolean" in said


def test_missing_catalog_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    assert missing in refused("-m", "stigg_guard.sidecar", *FREE_PORTS, "--catalog", missing)


def test_wrong_fallbacks_are_refused() -> None:
    assert "hasAccess" in refused(
        "-m", "stigg_guard.sidecar", *FREE_PORTS, ENTITLEMENTS_FALLBACK='{"f": {"hasAcess": true}}'
    )


def test_state_in_use_is_refused(start: Start, tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    start("--state", state)
    assert state in refused("-m", "stigg_guard.sidecar", *FREE_PORTS, "--state", state)


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_port_that_is_none_is_refused(port: str) -> None:
    assert "0 to 65535" in refused("-m", "stigg_guard.sidecar", f"--port={port}")


def test_a_wrong_variable_is_refused() -> None:
    assert "LOG_LEVEL: expected one of error" in refused("-m", "stigg_guard.sidecar", *FREE_PORTS, LOG_LEVEL="loud")


def test_the_configuration_is_printed_with_secrets_masked() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stigg_guard", "sidecar", "--print-config", "--host", "::1"],
        env={**os.environ, "SERVER_API_KEY": "server-1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "STIGG_SIDECAR_HOST=::1  # --host\n" in done.stdout
    assert "SERVER_API_KEY=********  # SERVER_API_KEY\n" in done.stdout


def test_variables_are_those_of_stigg_s_container(start: Start) -> None:
    said = start(
        "--log-format",
        "json",
        stderr=subprocess.PIPE,
        OFFLINE="TRUE",
        ENTITLEMENTS_FALLBACK='{"f": true}',
        WS_ENABLED="1",
    )
    request = METHODS["GetBooleanEntitlement"].request(customer_id="anybody", feature_id="f")
    with grpc.insecure_channel(said.address) as channel:
        assert call(channel, "GetBooleanEntitlement", request).is_fallback
    assert said.process.stderr
    told = json.loads(said.process.stderr.readline())
    assert (told["level"], told["message"].endswith("behind it: WS_ENABLED")) == ("warning", True)


@pytest.mark.parametrize("package", ["prometheus_client", "grpc_health", "grpc_reflection"])
def test_missing_extra_says_the_pip_line(package: str) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; from stigg_guard.__main__ import main; main(['sidecar'])"
    assert "pip install 'stigg-guard[sidecar]'" in refused("-c", script)


# Ending


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_status_0(start: Start, signal_number: signal.Signals) -> None:
    sidecar = start()
    sidecar.process.send_signal(signal_number)
    assert sidecar.end() == 0


def test_call_in_flight_is_finished_on_sigterm(start: Start) -> None:
    sidecar = start()
    with grpc.insecure_channel(sidecar.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        stopping = Event()

        def request_after_the_signal() -> Iterator[ReportUsageRequest]:
            assert stopping.wait(20)
            yield ONE_TEMPLATE

        # A stream of one message is a unary call on the wire, whose request can be held back.
        method = METHODS["ReportUsage"]
        in_flight = channel.stream_unary(
            method.path,
            request_serializer=ReportUsageRequest.SerializeToString,
            response_deserializer=method.response.FromString,
        ).future(request_after_the_signal(), timeout=20)
        # Calls of one connection are taken in order, so this answer means that the call above was taken.
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        sidecar.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        stopping.set()
        assert in_flight.result().current_usage == 4
    assert sidecar.end() == 0


def test_kill_9_in_a_loop_loses_nothing_and_counts_nothing_twice(start: Start, tmp_path: Path) -> None:
    """What was not acknowledged is sent again under its key to the next process, so that all is counted once."""
    state = str(tmp_path / "state.db")
    numbers = count(1)
    unanswered = [next(numbers) for _ in range(4)]

    def report_until_killed(channel: grpc.Channel, under_way: Event, number: int) -> int:
        """Returns the number of the report that was not answered."""
        for done in count():
            if done == 50:
                under_way.set()
            try:
                call(channel, "ReportUsage", ONE_TEMPLATE, f"report-{number}")
            except grpc.RpcError:
                break
            number = next(numbers)
        return number

    for _ in range(KILLS):
        under_way = Event()
        sidecar = start("--state", state)
        with grpc.insecure_channel(sidecar.address) as channel, ThreadPoolExecutor(4) as threads:
            ends = [threads.submit(report_until_killed, channel, under_way, number) for number in unanswered]
            assert under_way.wait(30)
            sidecar.process.kill()
            unanswered = [end.result() for end in ends]
    last = start("--state", state)
    with grpc.insecure_channel(last.address) as channel:
        for number in unanswered:
            call(channel, "ReportUsage", ONE_TEMPLATE, f"report-{number}")
    assert templates_used(last.address) == 3 + next(numbers) - 1


def test_closing_stdin_ends_it_when_asked(start: Start) -> None:
    sidecar = start("--exit-with-stdin")
    assert sidecar.process.stdin
    sidecar.process.stdin.write("what is written there is ignored\n")
    sidecar.process.stdin.close()
    assert sidecar.end() == 0


def test_it_ends_when_its_parent_is_killed() -> None:
    command = [sys.executable, "-m", "stigg_guard.sidecar", *FREE_PORTS, "--exit-with-stdin"]
    script = f"import subprocess; subprocess.Popen({command!r}, stdin=subprocess.PIPE).wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert READY.fullmatch(parent.stdout.readline())
        parent.kill()
        # Both write to this pipe: it ends when the sidecar has ended too.
        assert parent.stdout.read() == ""


def test_closed_stdin_is_no_matter_when_not_asked(start: Start) -> None:
    sidecar = start()
    assert sidecar.process.stdin
    sidecar.process.stdin.close()
    assert templates_used(sidecar.address) == 3

"""The blocking client: the documented snippets, deadlines, errors, the local sidecar, forks."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from time import monotonic

import grpc
import pytest
import trustme

import stigg_guard
from conftest import in_child
from stigg_guard import (
    ApiConfig,
    BooleanEntitlementFallback,
    BooleanEntitlementOptions,
    ClientClosed,
    ConfigError,
    EntitlementFallback,
    GetBooleanEntitlementRequest,
    GetEntitlementRequest,
    GetEntitlementsRequest,
    GetEntitlementsStateV2Request,
    GetEntitlementV2Request,
    GetEnumEntitlementRequest,
    GetMeteredEntitlementRequest,
    GetNumericEntitlementRequest,
    InvalidRequest,
    LocalSidecarConfig,
    MeteredEntitlementOptions,
    NotSupported,
    RedisOptions,
    ReloadEntitlementsRequest,
    ReportUsageBulkRequest,
    ReportUsageRequest,
    SidecarStartError,
    SidecarTimeout,
    SidecarUnauthenticated,
    SidecarUnavailable,
    Stigg,
    UsageUpdateBehavior,
)
from stigg_guard.channel import Channel
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.wire import METHODS, SERVICE

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"


@pytest.fixture
def stigg(sidecar: Sidecar) -> Iterator[Stigg]:
    host, _, port = sidecar.address.rpartition(":")
    with Stigg(ApiConfig(api_key="server-key"), remote_sidecar_host=host, remote_sidecar_port=int(port)) as client:
        yield client


def metered(requested: float | None = None) -> GetMeteredEntitlementRequest:
    return GetMeteredEntitlementRequest(
        customer_id=CUSTOMER, feature_id=TEMPLATES, options=MeteredEntitlementOptions(requested_usage=requested)
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestDocumentedSnippets:
    def test_metered(self, stigg: Stigg) -> None:
        answer = stigg.get_metered_entitlement(metered(10))
        assert (answer.has_access, answer.requested_usage) == (False, 10)
        assert (answer.entitlement.usage_limit, answer.entitlement.current_usage) == (6, 3)
        assert answer.access_denied_reason == (
            stigg_guard.AccessDeniedReason.ACCESS_DENIED_REASON_REQUESTED_USAGE_EXCEEDING_LIMIT
        )
        assert answer.entitlement.feature.units_plural == "templates"
        assert answer.entitlement.feature.meter_type == stigg_guard.MeterType.METER_TYPE_FLUCTUATING

    def test_boolean_numeric_and_enum(self, stigg: Stigg) -> None:
        ids = {"customer_id": CUSTOMER}
        domain = GetBooleanEntitlementRequest(feature_id="feature-custom-domain", **ids)
        assert stigg.get_boolean_entitlement(domain).has_access
        storage = stigg.get_numeric_entitlement(GetNumericEntitlementRequest(feature_id="feature-storage", **ids))
        assert storage.entitlement.value > 0
        regions = stigg.get_enum_entitlement(GetEnumEntitlementRequest(feature_id="feature-regions", **ids))
        assert regions.entitlement.enum_values

    def test_any_type_and_all_at_once(self, stigg: Stigg) -> None:
        ids = {"customer_id": CUSTOMER}
        assert stigg.get_entitlement(GetEntitlementRequest(feature_id=TEMPLATES, **ids)).metered.usage_limit == 6
        second = stigg.get_entitlement_v2(GetEntitlementV2Request(currency_id="api-credits", **ids))
        assert second.entitlement.credit.currency.currency_id == "api-credits"
        listed = stigg.get_entitlements(GetEntitlementsRequest(**ids)).entitlements
        state = stigg.get_entitlements_state_v2(GetEntitlementsStateV2Request(**ids)).entitlements
        assert len(state) > len(listed) > 0
        assert stigg.reload_entitlements(ReloadEntitlementsRequest(**ids)).entitled_entity_exists

    def test_reports(self, stigg: Stigg) -> None:
        once = stigg.report_usage(
            ReportUsageRequest(
                customer_id=CUSTOMER,
                feature_id=TEMPLATES,
                value=5,
                update_behavior=UsageUpdateBehavior.USAGE_UPDATE_BEHAVIOR_SET,
            )
        )
        assert once.current_usage == 5
        bulk = stigg.report_usage_bulk(
            ReportUsageBulkRequest(
                usages=[ReportUsageRequest(customer_id=CUSTOMER, feature_id=TEMPLATES, value=1) for _ in range(2)]
            )
        )
        assert [usage.current_usage for usage in bulk.usages] == [6, 7]

    def test_messages_can_be_pickled(self) -> None:
        assert pickle.loads(pickle.dumps(metered(2))) == metered(2)


class TestConstruction:
    def test_never_shows_a_secret(self) -> None:
        secret = "server-9f8e7d"
        shown = repr(ApiConfig(api_key=secret)) + repr(RedisOptions(environment_prefix="p", password=secret))
        assert secret not in shown
        assert "environment_prefix='p'" in shown

    def test_opens_nothing_before_the_first_call(self) -> None:
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        with Stigg(remote_sidecar_host="host.invalid"):
            assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)

    def test_asks_port_80_unless_told(self) -> None:
        with (
            Stigg(remote_sidecar_host="127.0.0.1") as client,
            pytest.raises(SidecarUnavailable, match=r"127\.0\.0\.1:80"),
        ):
            client.get_metered_entitlement(metered())


class TestFallbacks:
    def test_of_the_call_answers_when_nothing_else_does(self) -> None:
        options = BooleanEntitlementOptions(fallback=BooleanEntitlementFallback(has_access=True))
        request = GetBooleanEntitlementRequest(customer_id="c", feature_id="f", options=options)
        with Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=1) as client:
            answer = client.get_boolean_entitlement(request)
        assert (answer.has_access, answer.is_fallback) == (True, True)

    def test_of_the_feature_answers_otherwise(self) -> None:
        message = EntitlementFallback(boolean=BooleanEntitlementFallback(has_access=True))
        given = {"f": message, "g": {"hasAccess": True, "usageLimit": 7}}
        with Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=1, fallbacks=given) as client:
            assert client.get_entitlement(GetEntitlementRequest(customer_id="c", feature_id="f")).is_fallback
            limit = client.get_entitlement(GetEntitlementRequest(customer_id="c", feature_id="g")).metered.usage_limit
            assert limit == 7
            with pytest.raises(SidecarUnavailable):
                client.get_entitlement(GetEntitlementRequest(customer_id="c", feature_id="h"))

    def test_malformed_is_refused_at_once(self) -> None:
        with pytest.raises(ConfigError, match="hasAccess"):
            Stigg(remote_sidecar_host="127.0.0.1", fallbacks={"f": {"hasAcess": True}})


class TestErrors:
    def test_bad_input_names_the_field(self, stigg: Stigg) -> None:
        with pytest.raises(InvalidRequest) as error:
            stigg.report_usage_bulk(ReportUsageBulkRequest(usages=[ReportUsageRequest(feature_id=TEMPLATES, value=1)]))
        assert error.value.field == "usages[0].customer_id"

    def test_another_methods_message_is_refused(self, stigg: Stigg) -> None:
        with pytest.raises(InvalidRequest, match="GetEntitlement takes a GetEntitlementRequest, not a GetMetered"):
            stigg.get_entitlement(metered())

    def test_a_closed_client_says_so(self, stigg: Stigg) -> None:
        stigg.close()
        stigg.close()
        with pytest.raises(ClientClosed):
            stigg.get_metered_entitlement(metered())

    def test_a_closed_channel_says_so_before_and_after_its_first_call(self, sidecar: Sidecar) -> None:
        host, _, port = sidecar.address.rpartition(":")
        channel = Channel(host, int(port))
        channel.answer("GetMeteredEntitlement", metered(), timeout=5)
        channel.close()
        with pytest.raises(ClientClosed):
            channel.answer("GetMeteredEntitlement", metered(), timeout=5)

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (grpc.StatusCode.UNAUTHENTICATED, SidecarUnauthenticated),
            (grpc.StatusCode.PERMISSION_DENIED, SidecarUnauthenticated),
            (grpc.StatusCode.UNIMPLEMENTED, NotSupported),
            (grpc.StatusCode.UNAVAILABLE, SidecarUnavailable),
            (grpc.StatusCode.INTERNAL, stigg_guard.SidecarError),
        ],
    )
    def test_each_status_has_its_error(self, code: grpc.StatusCode, error: type[Exception]) -> None:
        with answering(lambda _request, context: context.abort(code, "because")) as channel:
            with pytest.raises(error, match="because") as raised:
                channel.answer("GetMeteredEntitlement", metered(), timeout=5)
            assert type(raised.value) is error
            assert raised.value.code == code.name

    def test_a_refused_connection_was_certainly_not_counted(self) -> None:
        channel = Channel("127.0.0.1", 1)
        with pytest.raises(SidecarUnavailable) as refused:
            channel.answer("ReportUsage", ReportUsageRequest(), timeout=5)
        assert refused.value.outcome_unknown is False
        channel.close()


class TestHungSidecar:
    def test_costs_only_the_first_deadlines_and_is_found_again(self) -> None:
        with Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=0, timeout=0.05) as client:
            client.get_metered_entitlement(metered(), timeout=5)
            process = client._answers._child._process
            process.send_signal(signal.SIGSTOP)
            try:
                for _ in range(3):
                    with pytest.raises(SidecarTimeout, match="DEADLINE_EXCEEDED"):
                        client.get_metered_entitlement(metered(), timeout=0.5)
                for _ in range(1_000):
                    with pytest.raises(SidecarUnavailable, match="is not asked until it answers again"):
                        client.get_metered_entitlement(metered(), timeout=60)
            finally:
                process.send_signal(signal.SIGCONT)
            begun = monotonic()
            while monotonic() - begun < 10:
                with suppress(SidecarUnavailable):
                    assert client.get_metered_entitlement(metered(), timeout=5).has_access
                    break
            else:
                pytest.fail("the sidecar was not found again")

    def test_that_is_slow_to_begin_has_until_the_deadline(self) -> None:
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen()
            with closing(Channel("127.0.0.1", busy.getsockname()[1])) as channel, pytest.raises(SidecarTimeout):
                channel.answer("GetMeteredEntitlement", metered(), timeout=0.7)


class TestLocalSidecar:
    def test_serves_the_documented_customer_and_ends_with_the_client(self) -> None:
        port = free_port()
        with Stigg(
            ApiConfig(api_key="k"), local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=port
        ) as client:
            assert client.get_metered_entitlement(metered(10)).entitlement.current_usage == 3
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0

    def test_is_started_again_when_it_was_killed(self) -> None:
        with Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=0) as client:
            process = client._answers._child._process
            process.kill()
            process.wait()
            begun = monotonic()
            while monotonic() - begun < 20:
                with suppress(SidecarUnavailable):
                    assert client.get_metered_entitlement(metered()).entitlement.current_usage == 3
                    break
            else:
                pytest.fail("it was not started again")

    def test_a_taken_port_is_a_clear_error(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(SidecarStartError, match=f"cannot listen on 127.0.0.1:{port}"):
                Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=port)

    def test_a_wrong_catalog_is_a_clear_error(self, tmp_path: Path) -> None:
        catalog = tmp_path / "catalog.toml"
        catalog.write_text('[features.f]\ntype = "boolen"\n')
        with pytest.raises(SidecarStartError, match="boolean"):
            Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=0, local_sidecar_catalog=catalog)

    def test_is_given_the_fallbacks(self) -> None:
        config = LocalSidecarConfig(entitlements_fallback={"feature-new": {"hasAccess": True, "value": 4}})
        with Stigg(local_sidecar_config=config, local_sidecar_port=0) as client:
            answer = client.get_entitlement(GetEntitlementRequest(customer_id=CUSTOMER, feature_id="feature-new"))
        assert (answer.is_fallback, answer.numeric.value) == (True, 4)

    @pytest.mark.parametrize("end", ["exit", "kill"])
    def test_ends_when_its_parent_does(self, end: str) -> None:
        program = (
            "import os, signal, sys; from stigg_guard import *\n"
            "client = Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=0)\n"
            "print(client._answers.address, flush=True)\n"
            "sys.stdin.read()\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert parent.stdin is not None
        assert parent.stdout is not None
        host, _, port = parent.stdout.readline().decode().strip().rpartition(":")
        with socket.create_connection((host, int(port))) as connection:
            if end == "kill":
                parent.send_signal(signal.SIGKILL)
            parent.stdin.close()
            parent.wait(10)
            parent.stdout.close()
            connection.settimeout(10)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass

    def test_is_left_alone_by_a_forked_child(self) -> None:
        with Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=0) as client:
            assert in_child(lambda: client.close() is None)
            assert client.get_metered_entitlement(metered()).has_access


class TestTls:
    def test_trusts_the_given_authority_and_no_other(self, tmp_path: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        certificate = authority.issue_cert("localhost")
        key, chain = certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes()
        server = served(lambda _request, _context: stigg_guard.GetMeteredEntitlementResponse(has_access=True))
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, chain)]))
        server.start()
        for name, ca in (("ours", authority), ("theirs", stranger)):
            ca.cert_pem.write_to_path(str(tmp_path / name))
        options = {"remote_sidecar_host": "localhost", "remote_sidecar_port": port, "timeout": 5.0}
        with Stigg(tls_ca_file=str(tmp_path / "ours"), **options) as client:
            assert client.get_metered_entitlement(metered()).has_access
        with Stigg(tls_ca_file=str(tmp_path / "theirs"), **options) as client, pytest.raises(SidecarUnavailable):
            client.get_metered_entitlement(metered())
        server.stop(0).wait()

    def test_a_file_that_cannot_be_read_is_a_wrong_setting(self) -> None:
        with pytest.raises(ConfigError, match="TLS_CA_FILE"):
            Stigg(remote_sidecar_host="localhost", tls_ca_file="/nowhere/ca.pem")


class TestForks:
    def test_warn_once_with_the_remedy(self, stigg: Stigg, caplog: pytest.LogCaptureFixture) -> None:
        stigg.get_metered_entitlement(metered())
        for _ in range(2):
            assert in_child(lambda: True)
        warnings = [record.message for record in caplog.records if "then forked" in record.message]
        assert len(warnings) == 1
        assert "post_fork" in warnings[0]

    def test_wait_for_calls_in_flight(self, sidecar: Sidecar) -> None:
        inside, leave = threading.Event(), threading.Event()

        def slow(_request: object, _context: object) -> stigg_guard.GetMeteredEntitlementResponse:
            inside.set()
            leave.wait(10)
            return stigg_guard.GetMeteredEntitlementResponse()

        with answering(slow) as channel:
            call = threading.Thread(
                target=channel.answer, args=("GetMeteredEntitlement", metered()), kwargs={"timeout": 10}
            )
            call.start()
            assert inside.wait(10)
            threading.Timer(0.05, leave.set).start()
            assert in_child(leave.is_set)
            call.join(10)


@contextmanager
def answering(handler: object) -> Iterator[Channel]:
    """A channel to a real gRPC server that answers metered checks with ``handler``."""
    server = served(handler)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = Channel("127.0.0.1", port)
    try:
        yield channel
    finally:
        channel.close()
        server.stop(0).wait()


def served(handler: object) -> grpc.Server:
    """A real gRPC server, not started, that answers metered checks with ``handler``."""
    method = METHODS["GetMeteredEntitlement"]
    rpc = grpc.unary_unary_rpc_method_handler(handler, method.request.FromString, method.response.SerializeToString)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, {"GetMeteredEntitlement": rpc}),)
    )
    return server

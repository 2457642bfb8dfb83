"""The way to the sidecar: what each status means, what is certain of a report, connections that die, exceptions from
outside, proxies and certificates."""

from __future__ import annotations

import datetime
import logging.handlers
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
import trustme

from conftest import in_child
from rpc_server import Handler, TcpProxy, http_proxy, serving
from stigg_guard import (
    ClientClosed,
    Clock,
    Config,
    ConfigError,
    GetMeteredEntitlementRequest,
    GetMeteredEntitlementResponse,
    Guard,
    InvalidRequest,
    LocalSidecarConfig,
    NotSupported,
    ReloadEntitlementsRequest,
    ReportUsageRequest,
    ReportUsageResponse,
    SidecarError,
    SidecarTimeout,
    SidecarUnauthenticated,
    SidecarUnavailable,
    Stigg,
)
from stigg_guard.channel import Channel
from stigg_guard.channel.callers import Callers
from stigg_guard.channel.target import Target
from stigg_guard.sidecar.child import ChildSidecar

CHECK = GetMeteredEntitlementRequest(customer_id="c", feature_id="f")
REPORT = ReportUsageRequest(customer_id="c", feature_id="f", value=1)
STATUSES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
WRONG = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE"}
KINDS = {
    "UNAVAILABLE": SidecarUnavailable,
    "DEADLINE_EXCEEDED": SidecarTimeout,
    "UNAUTHENTICATED": SidecarUnauthenticated,
    "PERMISSION_DENIED": SidecarUnauthenticated,
    "UNIMPLEMENTED": NotSupported,
}


class Books:
    """A sidecar's handlers that count reports. ``before`` and ``after`` counting something may happen."""

    def __init__(self) -> None:
        self.counted = 0
        self.peers: list[str] = []
        self.before: Callable[[grpc.ServicerContext], object] = lambda _context: None
        self.after: Callable[[grpc.ServicerContext], object] = lambda _context: None

    def report(self, _request: Any, context: grpc.ServicerContext) -> ReportUsageResponse:
        self.before(context)
        self.counted += 1
        self.peers.append(context.peer())
        self.after(context)
        return ReportUsageResponse(current_usage=self.counted)

    def check(self, _request: Any, context: grpc.ServicerContext) -> GetMeteredEntitlementResponse:
        self.peers.append(context.peer())
        return GetMeteredEntitlementResponse(has_access=True)

    @property
    def handlers(self) -> dict[str, Handler]:
        return {"ReportUsage": self.report, "GetMeteredEntitlement": self.check}


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def port(books: Books) -> Iterator[int]:
    with serving(books.handlers) as port:
        yield port


@pytest.fixture
def channel(port: int) -> Iterator[Channel]:
    with closing(Channel("127.0.0.1", port)) as channel:
        yield channel


def check(channel: Channel, timeout: float = 5) -> Any:
    return channel.answer("GetMeteredEntitlement", CHECK, timeout=timeout)


def report(channel: Channel, timeout: float = 5) -> Any:
    return channel.answer("ReportUsage", REPORT, timeout=timeout)


def aborting(code: grpc.StatusCode, details: str = "customer_id: on purpose") -> Handler:
    return lambda _request, context: context.abort(code, details)


def is_unknown(channel: Channel, timeout: float = 5) -> bool:
    """Whether a report that fails on the channel may have been counted."""
    with pytest.raises(SidecarError) as failed:
        report(channel, timeout)
    return failed.value.outcome_unknown


class TestStatuses:
    @pytest.mark.parametrize("code", STATUSES, ids=lambda code: code.name)
    def test_no_check_is_answered_by_any(self, code: grpc.StatusCode) -> None:
        names = ("GetMeteredEntitlement", "ReloadEntitlements")
        with serving(dict.fromkeys(names, aborting(code))) as port, closing(Channel("127.0.0.1", port)) as channel:
            for name, request in zip(names, (CHECK, ReloadEntitlementsRequest(customer_id="c")), strict=True):
                with pytest.raises(SidecarError, match="on purpose") as failed:
                    channel.answer(name, request, timeout=5)
                assert type(failed.value) is KINDS.get(code.name, SidecarError)
                assert (failed.value.code, failed.value.outcome_unknown) == (code.name, False)

    @pytest.mark.parametrize("code", STATUSES, ids=lambda code: code.name)
    def test_a_report_is_refused_or_unknown(self, code: grpc.StatusCode) -> None:
        with serving({"ReportUsage": aborting(code)}) as port, closing(Channel("127.0.0.1", port)) as channel:
            with pytest.raises((SidecarError, InvalidRequest), match="on purpose") as failed:
                report(channel)
            if code.name in WRONG:
                assert isinstance(failed.value, InvalidRequest)
                assert failed.value.field == "customer_id"
                return
            assert type(failed.value) is KINDS.get(code.name, SidecarError)
            turned_away = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"}
            assert failed.value.outcome_unknown is (code.name not in turned_away)

    @pytest.mark.parametrize("answer", [b"\xff", bytes(64 * 1024 * 1024 + 1)], ids=["unreadable", "too large"])
    def test_an_answer_that_cannot_be_taken_is_none(self, answer: bytes) -> None:
        handlers: dict[str, Handler] = dict.fromkeys(("ReportUsage", "GetMeteredEntitlement"), lambda *_: answer)
        with serving(handlers) as port, closing(Channel("127.0.0.1", port)) as channel:
            with pytest.raises(SidecarError, match="no answer that can be read") as failed:
                check(channel)
            assert failed.value.outcome_unknown is False
            assert is_unknown(channel)

    def test_a_request_that_is_too_large_is_not_sent(self, channel: Channel, books: Books) -> None:
        huge = ReportUsageRequest(customer_id="c" * (64 * 1024 * 1024), feature_id="f")
        with pytest.raises(InvalidRequest, match="send at most 67108864"):
            channel.answer("ReportUsage", huge, timeout=5)
        assert books.peers == []

    @pytest.mark.parametrize("code", STATUSES, ids=lambda code: code.name)
    def test_whatever_comes_the_fallback_answers(self, code: grpc.StatusCode) -> None:
        handlers = {"GetEntitlementsStateV2": aborting(code), "GetMeteredEntitlement": aborting(code)}
        given = {"f": {"hasAccess": True}}
        with serving(handlers) as port:
            with Guard(Config(sidecar=f"127.0.0.1:{port}", ledger="memory://", fallbacks=given)) as guard:
                assert guard.check("f", customer="c").is_fallback
            with Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=port, fallbacks=given) as client:
                assert client.get_metered_entitlement(CHECK).is_fallback

    def test_words_of_a_server_begin_no_line(self) -> None:
        handlers = {"GetMeteredEntitlement": aborting(grpc.StatusCode.INTERNAL, "one\nCRITICAL two")}
        with serving(handlers) as port, closing(Channel("127.0.0.1", port)) as channel:
            with pytest.raises(SidecarError, match="CRITICAL two") as failed:
                check(channel)
            assert "\n" not in str(failed.value)


@contextmanager
def never_accepting() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def hanging_up() -> Iterator[int]:
    def accept() -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


class TestAReportThatWasNotSent:
    """It was certainly not counted, however gRPC words it."""

    @pytest.mark.parametrize("there", [never_accepting, hanging_up])
    def test_for_no_connection_comes_of_what_listens(self, there: Callable[[], Any]) -> None:
        with there() as port, closing(Channel("127.0.0.1", port)) as channel:
            assert [is_unknown(channel, 0.3) for _ in range(2)] == [False, False]

    @pytest.mark.parametrize(("host", "port"), [("sidecar.invalid", 80), ("127.0.0.1", 1)])
    def test_for_there_is_no_such_place(self, host: str, port: int) -> None:
        with closing(Channel(host, port)) as channel:
            assert [is_unknown(channel) for _ in range(2)] == [False, False]

    def test_for_the_proxy_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with http_proxy(None) as (proxy, asked), closing(Channel("sidecar.example", 80)) as channel:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
            assert is_unknown(channel) is False
            assert set(asked) == {"CONNECT sidecar.example:80 HTTP/1.1"}

    def test_for_the_sidecar_has_stopped(self, books: Books) -> None:
        with serving(books.handlers) as port:
            pass
        with closing(Channel("127.0.0.1", port)) as channel:
            for counted in range(1, 6):
                with serving(books.handlers, port=port):
                    while books.counted < counted:
                        with suppress(SidecarUnavailable):  # gRPC waits a moment before it connects again
                            report(channel)
                assert is_unknown(channel) is False
            assert books.counted == 5

    def test_for_the_sidecar_hangs(self, books: Books) -> None:
        with (
            serving(books.handlers) as port,
            TcpProxy(port) as proxy,
            closing(Channel("127.0.0.1", proxy.port)) as channel,
        ):
            report(channel)
            proxy.silence(new_ones=True)
            assert is_unknown(channel, 0.3) is False
            assert books.counted == 1


class TestAReportThatWasSent:
    """It may have been counted, however gRPC words it."""

    def test_and_answered_in_grpcs_own_words(self, channel: Channel, books: Books) -> None:
        words = "failed to connect to all addresses"
        books.after = lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, words)
        with pytest.raises(SidecarUnavailable, match=words) as failed:
            report(channel)
        assert (failed.value.outcome_unknown, books.counted) == (True, 1)

    def test_and_not_answered_in_time(self, channel: Channel, books: Books) -> None:
        over = threading.Event()
        books.after = lambda _context: over.wait(10)
        assert is_unknown(channel, 0.2) is True
        over.set()

    def test_and_cut_off(self, books: Books) -> None:
        with (
            serving(books.handlers) as port,
            TcpProxy(port) as proxy,
            closing(Channel("127.0.0.1", proxy.port)) as channel,
        ):
            report(channel)
            books.after = lambda _context: proxy.end_connections()
            assert is_unknown(channel) is True
            assert books.counted == 2

    def test_on_a_new_connection_in_place_of_a_broken_one(self, books: Books) -> None:
        with (
            serving(books.handlers) as port,
            TcpProxy(port) as proxy,
            closing(Channel("127.0.0.1", proxy.port)) as channel,
        ):
            for counted in range(1, 6):
                report(channel)
                assert books.counted == counted
                proxy.end_connections()

    def test_on_a_new_connection_in_place_of_a_silent_one(self, books: Books) -> None:
        with (
            serving(books.handlers) as port,
            TcpProxy(port) as proxy,
            closing(Channel("127.0.0.1", proxy.port)) as channel,
        ):
            report(channel)
            proxy.silence()
            report(channel, 1)
            assert books.counted == 2
            assert proxy.wait_for(opened=2, standing=1)


class TestConnectionsThatFallSilent:
    def test_are_replaced_after_the_first_deadline(self, books: Books) -> None:
        with (
            serving(books.handlers) as port,
            TcpProxy(port) as proxy,
            closing(Channel("127.0.0.1", proxy.port)) as channel,
        ):
            check(channel)
            proxy.silence()
            with pytest.raises(SidecarTimeout):
                check(channel, 0.1)
            assert proxy.wait_for(opened=2, standing=1)  # the silent one is closed once the new one is in its place
            assert check(channel).has_access

    def test_are_replaced_when_the_sidecar_can_be_reached_again(self, books: Books) -> None:
        with (
            serving(books.handlers) as port,
            TcpProxy(port) as proxy,
            closing(Channel("127.0.0.1", proxy.port)) as channel,
        ):
            check(channel)
            proxy.silence(new_ones=True)
            for _ in range(3):
                with pytest.raises(SidecarTimeout):
                    check(channel, 0.05)
            with pytest.raises(SidecarUnavailable, match="3 deadlines pass in a row"):
                check(channel)
            proxy.hear_new_ones()
            assert self._seconds_until_answered(channel) < 3

    def test_are_no_reason_to_cut_off_who_is_still_served(self, channel: Channel, books: Books) -> None:
        inside, leave = threading.Event(), threading.Event()
        books.before = lambda _context: (inside.set(), leave.wait(10))
        answers: list[Any] = []
        slow = threading.Thread(target=lambda: answers.append(report(channel, 20)))
        slow.start()
        assert inside.wait(10)
        with pytest.raises(SidecarTimeout):
            report(channel, 0.1)
        while check(channel) and len(set(books.peers)) < 2:  # a new connection is in use
            pass
        leave.set()
        slow.join(10)
        assert len(answers) == 1

    @staticmethod
    def _seconds_until_answered(channel: Channel) -> float:
        begun = monotonic()
        while monotonic() - begun < 20:
            with suppress(SidecarUnavailable):
                check(channel, 1)
                break
        return monotonic() - begun


STRIKES = """
import ctypes, os, random, signal, sys, threading, time
from stigg_guard import GetMeteredEntitlementRequest, ReportUsageRequest, Stigg

class Strike(Exception):
    pass

def strike(*_):
    global armed
    if armed:
        armed = False
        raise Strike

check = GetMeteredEntitlementRequest(customer_id="c", feature_id="f")
report = ReportUsageRequest(customer_id="c", feature_id="f", value=1)
client = Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=int(sys.argv[1]), timeout=5)
client.get_metered_entitlement(check)
signal.signal(signal.SIGALRM, strike)
armed, struck, other = False, 0, []
while struck < 1_000:
    try:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 1.5e-3))
            client.get_metered_entitlement(check)
            client.report_usage(report)
        finally:
            armed = False
    except Strike:
        struck += 1
    except Exception as error:
        other.append(repr(error))
signal.setitimer(signal.ITIMER_REAL, 0)
threading.Thread(target=client.get_metered_entitlement, args=(check,), daemon=True).start()
answered = []
asking = threading.Thread(target=lambda: answered.append(client.get_metered_entitlement(check).has_access), daemon=True)
asking.start()
asking.join(10)
begun = time.monotonic()
if (child := os.fork()) == 0:
    os._exit(0)
os.waitpid(child, 0)
print(other, answered, time.monotonic() - begun < 1)
"""

GEVENT_STRIKES = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from stigg_guard import GetMeteredEntitlementRequest, ReportUsageRequest, Stigg

check = GetMeteredEntitlementRequest(customer_id="c", feature_id="f")
report = ReportUsageRequest(customer_id="c", feature_id="f", value=1)
client = Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=int(sys.argv[1]), report_timeout=5)
client.get_metered_entitlement(check, timeout=5)
struck = 0
for _ in range(20):
    try:
        with gevent.Timeout(0.01):
            client.report_usage(report)
    except gevent.Timeout:
        struck += 1
jobs = [gevent.spawn(client.get_metered_entitlement, check, timeout=5) for _ in range(5)]
gevent.joinall(jobs, timeout=20, raise_error=True)
print(struck, [job.value.has_access for job in jobs])
"""


def printed(program: str, port: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(port)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestExceptionsFromOutside:
    def test_strike_one_call_and_nothing_else(self, port: int) -> None:
        assert printed(STRIKES, port) == "[] [True] True"

    def test_of_gevent_strike_one_call_and_nothing_else(self, port: int, books: Books) -> None:
        over = threading.Event()
        books.before = lambda _context: over.wait(0.1)
        assert printed(GEVENT_STRIKES, port) == f"20 {[True] * 5}"


class TestThreads:
    def test_end_with_the_channel(self, port: int) -> None:
        for leave in (Channel.close, lambda _channel: None):
            channel: Channel | None = Channel("127.0.0.1", port)
            assert channel is not None
            check(channel)
            ours = [thread for thread in threading.enumerate() if thread.name == "stigg-calls"]
            assert ours
            leave(channel)
            channel = None
            for thread in ours:
                thread.join(10)
                assert not thread.is_alive()

    def test_work_in_the_context_of_who_calls(self) -> None:
        callers, traced = Callers(Clock()), ContextVar("traced", default="nothing")
        traced.set("a span")
        assert callers.run(lambda: (traced.get(), threading.current_thread().name)) == ("a span", "stigg-calls")
        callers.end(lambda: None)
        with pytest.raises(ClientClosed):
            callers.run(traced.get)

    def test_survive_what_goes_wrong_beside_the_calls(self) -> None:
        callers, logged = Callers(Clock()), logging.handlers.QueueHandler(queue.Queue())
        logger = logging.getLogger("stigg_guard")
        logger.addHandler(logged)
        try:
            assert callers.run(lambda: 1) == 1
            callers.post(lambda: 1 / 0)
            assert logged.queue.get(timeout=10).message.startswith("work beside the calls to the sidecar failed")
            assert callers.run(lambda: 2) == 2
        finally:
            logger.removeHandler(logged)
            callers.end(lambda: None)

    def test_are_not_needed_when_the_interpreter_ends(self, port: int) -> None:
        program = (
            "import atexit, sys; from stigg_guard import *\n"
            "client = Stigg(remote_sidecar_host='127.0.0.1', remote_sidecar_port=int(sys.argv[1]), timeout=5)\n"
            "request = GetMeteredEntitlementRequest(customer_id='c', feature_id='f')\n"
            "atexit.register(lambda: print(client.get_metered_entitlement(request).has_access))\n"
        )
        assert printed(program, port) == "True"

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_and_connections_of_a_child_are_its_own(self) -> None:
        sidecar = ChildSidecar(port=0, catalog=None, fallbacks={})  # gRPC's servers do not survive forks
        request = ReportUsageRequest(customer_id="customer-demo-01", feature_id="feature-templates", value=1)
        with TcpProxy(sidecar.port) as proxy, closing(Channel("127.0.0.1", proxy.port)) as channel:

            def used() -> float:
                answer: Any = channel.answer("ReportUsage", request, timeout=5)
                return float(answer.current_usage)

            assert used() == 4
            assert in_child(lambda: used() == 5)
            assert used() == 6
            assert proxy.opened == 2
        sidecar.stop()


class TestProxies:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)

    @pytest.mark.parametrize(
        "name", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"]
    )
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.5.6.7", "localhost", "LOCALHOST"])
    def test_have_no_part_in_what_is_on_this_machine(
        self, name: str, host: str, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        with serving(books.handlers, host="0.0.0.0") as port, closing(Channel(host, port)) as channel:
            assert check(channel).has_access

    @pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")
    @pytest.mark.parametrize("host", ["::1", "[::1]", "::ffff:127.0.0.1"])
    def test_have_no_part_in_what_is_on_this_machine_by_ipv6(
        self, host: str, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
        with serving(books.handlers, host="[::]") as port, closing(Channel(host, port)) as channel:
            assert check(channel).has_access

    def test_have_no_part_in_sockets_of_a_file_system(
        self, tmp_path: Path, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
        place = f"unix:{tmp_path}/sidecar.sock"
        with serving(books.handlers, host=place), closing(Channel(place, 80)) as channel:
            assert (check(channel).has_access, channel.address) == (True, place)

    def test_are_used_on_the_way_to_others(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        with http_proxy(port) as (proxy, asked), closing(Channel("sidecar.example", 80)) as channel:
            monkeypatch.setenv("https_proxy", f"http://somebody:secret@127.0.0.1:{proxy}")
            assert check(channel).has_access
            assert asked == ["CONNECT sidecar.example:80 HTTP/1.1"]

    def test_are_named_in_errors_without_their_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "http://somebody:secret@127.0.0.1:9")
        with closing(Channel("sidecar.example", 80)) as channel, pytest.raises(SidecarUnavailable) as failed:
            check(channel)
        assert "through the proxy 127.0.0.1:9 of the variable https_proxy" in str(failed.value)
        assert "secret" not in str(failed.value)

    @pytest.mark.parametrize(
        ("variables", "named"),
        [
            ({"grpc_proxy": "http://a:1", "https_proxy": "http://b:2"}, "a:1 of the variable grpc_proxy"),
            ({"http_proxy": "http://c:3"}, "c:3 of the variable http_proxy"),
            ({"http_proxy": "http://c:3", "no_proxy": "other.example, sidecar.example"}, ""),
            ({"http_proxy": "http://c:3", "no_proxy": ".example"}, ""),
            ({"http_proxy": "http://c:3", "no_proxy": "sidecar.example", "no_grpc_proxy": "x"}, "c:3 of the variable"),
            ({"grpc_proxy": "", "http_proxy": "http://c:3"}, ""),
            ({"http_proxy": "socks5://c:3"}, ""),
            ({"http_proxy": "http://[c"}, ""),
        ],
    )
    def test_are_chosen_as_grpc_does(
        self, variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert Target.of("sidecar.example", 80, None).proxy.startswith(named)
        assert bool(Target.of("sidecar.example", 80, None).proxy) is bool(named)

    def test_leave_out_networks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://c:3")
        monkeypatch.setenv("no_proxy", "10.0.0.0/8")
        assert Target.of("10.1.2.3", 80, None).proxy == ""
        assert Target.of("11.1.2.3", 80, None).proxy == "c:3 of the variable http_proxy"


class Certificates:
    """Authorities and what a server shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ours = trustme.CA()

    def server(self, name: str = "localhost", **options: Any) -> grpc.ServerCredentials:
        issued = self.ours.issue_cert(name, **options)
        return grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())])

    def file(self, authority: trustme.CA) -> Path:
        path = self._folder / "ca.pem"
        authority.cert_pem.write_to_path(str(path))
        return path


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


class TestCertificates:
    LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)

    def test_of_another_authority(self, certificates: Certificates, books: Books) -> None:
        self._is_told(
            books,
            certificates.server(),
            certificates.file(trustme.CA()),
            "is not accepted: .*; renew it, or look at TLS_CA_FILE",
        )

    def test_that_are_expired(self, certificates: Certificates, books: Books) -> None:
        shown = certificates.server(not_before=self.LONG_AGO, not_after=self.LONG_AGO + datetime.timedelta(days=1))
        self._is_told(books, shown, certificates.file(certificates.ours), "is not accepted: certificate has expired")

    def test_of_another_host(self, certificates: Certificates, books: Books) -> None:
        shown = certificates.server("other.example")
        self._is_told(books, shown, certificates.file(certificates.ours), "is not accepted: Hostname mismatch")

    def test_that_nobody_shows(self, certificates: Certificates, books: Books) -> None:
        self._is_told(books, None, certificates.file(certificates.ours), "does not answer as TLS does")

    def test_that_nobody_asks_for(self, certificates: Certificates, books: Books) -> None:
        self._is_told(books, certificates.server(), None, "speaks TLS; name the authority")

    def test_that_went_bad_meanwhile(self, certificates: Certificates, books: Books) -> None:
        trusted = certificates.file(certificates.ours)
        with serving(books.handlers, host="localhost", tls=certificates.server()) as port:
            channel = Channel("localhost", port, tls_ca_file=trusted)
            check(channel)
        certificates.ours = trustme.CA()
        with (
            serving(books.handlers, host="localhost", port=port, tls=certificates.server()),
            closing(channel),
            pytest.raises(SidecarUnavailable, match="is not accepted"),
        ):
            check(channel)

    @staticmethod
    def _is_told(books: Books, shown: grpc.ServerCredentials | None, trusted: Path | None, words: str) -> None:
        with (
            serving(books.handlers, host="localhost", tls=shown) as port,
            closing(Channel("localhost", port, tls_ca_file=trusted)) as channel,
        ):
            with pytest.raises(SidecarUnavailable, match=words) as failed:
                check(channel)
            assert "start it" not in str(failed.value)
            assert is_unknown(channel) is False


class TestSettings:
    @pytest.mark.parametrize(
        "host", ["", " ", "http://sidecar", "sidecar:80", "side car", "a/b", "u@h", "[::1", "::g", 5]
    )
    def test_a_host_that_is_none_is_told(self, host: Any) -> None:
        with pytest.raises(ConfigError, match=r"remote_sidecar_host: expected .*; its port is remote_sidecar_port"):
            Stigg(remote_sidecar_host=host)

    @pytest.mark.parametrize("port", [0, 65536, -1, "x", "", 80.0, True, None])
    def test_a_port_that_is_none_is_told(self, port: Any) -> None:
        with pytest.raises(ConfigError, match="remote_sidecar_port: expected a whole number from 1 to 65535, not"):
            Stigg(remote_sidecar_host="sidecar", remote_sidecar_port=port)
        with pytest.raises(ConfigError, match="local_sidecar_port: expected"):
            Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=port or "0x")

    @pytest.mark.parametrize("name", ["timeout", "report_timeout"])
    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e300, "1", None, True])
    def test_a_timeout_that_is_none_is_told(self, name: str, seconds: Any) -> None:
        with pytest.raises(ConfigError, match=f"^{name}: expected a number of seconds above 0 and up to a year, not"):
            Stigg(remote_sidecar_host="sidecar", **{name: seconds})

    def test_ports_of_the_environment_are_texts(self, port: int) -> None:
        with Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=str(port)) as client:
            assert client.get_metered_entitlement(CHECK).has_access

    @pytest.mark.parametrize(
        "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"]
    )
    def test_a_file_without_certificates_is_told(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text(text)
        with pytest.raises(ConfigError, match=r"TLS_CA_FILE: .*ca\.pem holds no certificate"):
            Stigg(remote_sidecar_host="sidecar", tls_ca_file=tmp_path / "ca.pem")

    @pytest.mark.parametrize("file", ["nowhere.pem", "."])
    def test_a_file_that_cannot_be_read_is_told(self, file: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"TLS_CA_FILE: .* cannot be read"):
            Stigg(remote_sidecar_host="sidecar", tls_ca_file=tmp_path / file)

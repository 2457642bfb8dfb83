"""What each status means, and what is certain of a report."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import grpc
import pytest

from channel.books import CHECK, Books, aborting, check, is_unknown, report
from rpc_server import Handler, TcpProxy, http_proxy, serving
from stigg_guard import (
    Config,
    Guard,
    InvalidRequest,
    NotSupported,
    ReloadEntitlementsRequest,
    ReportUsageRequest,
    SidecarError,
    SidecarTimeout,
    SidecarUnauthenticated,
    SidecarUnavailable,
    Stigg,
)
from stigg_guard.channel import Channel

STATUSES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
WRONG = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE"}
KINDS = {
    "UNAVAILABLE": SidecarUnavailable,
    "DEADLINE_EXCEEDED": SidecarTimeout,
    "UNAUTHENTICATED": SidecarUnauthenticated,
    "PERMISSION_DENIED": SidecarUnauthenticated,
    "UNIMPLEMENTED": NotSupported,
}


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

    def test_for_the_sidecar_hangs(self, proxy: TcpProxy, proxied: Channel, books: Books) -> None:
        report(proxied)
        proxy.silence(new_ones=True)
        assert is_unknown(proxied, 0.3) is False
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

    def test_and_cut_off(self, proxy: TcpProxy, proxied: Channel, books: Books) -> None:
        report(proxied)
        books.after = lambda _context: proxy.end_connections()
        assert is_unknown(proxied) is True
        assert books.counted == 2

    def test_on_a_new_connection_in_place_of_a_broken_one(
        self, proxy: TcpProxy, proxied: Channel, books: Books
    ) -> None:
        for counted in range(1, 6):
            report(proxied)
            assert books.counted == counted
            proxy.end_connections()

    def test_on_a_new_connection_in_place_of_a_silent_one(
        self, proxy: TcpProxy, proxied: Channel, books: Books
    ) -> None:
        report(proxied)
        proxy.silence()
        report(proxied, 1)
        assert books.counted == 2
        assert proxy.wait_for(opened=2, standing=1)

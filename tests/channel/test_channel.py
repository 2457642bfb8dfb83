"""Connections that die, exceptions from outside, and threads."""

from __future__ import annotations

import logging.handlers
import os
import queue
import subprocess
import sys
import threading
from contextlib import closing, suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any

import pytest

from channel.books import Books, check, report
from conftest import in_child
from rpc_server import TcpProxy
from stigg_guard import ClientClosed, Clock, ReportUsageRequest, SidecarTimeout, SidecarUnavailable
from stigg_guard.channel import Channel
from stigg_guard.channel.callers import Callers
from stigg_guard.sidecar.child import ChildSidecar


class TestConnectionsThatFallSilent:
    def test_are_replaced_after_the_first_deadline(self, proxy: TcpProxy, proxied: Channel) -> None:
        check(proxied)
        proxy.silence()
        with pytest.raises(SidecarTimeout):
            check(proxied, 0.1)
        assert proxy.wait_for(opened=2, standing=1)  # the silent one is closed once the new one is in its place
        assert check(proxied).has_access

    def test_are_replaced_when_the_sidecar_can_be_reached_again(self, proxy: TcpProxy, proxied: Channel) -> None:
        check(proxied)
        proxy.silence(new_ones=True)
        for _ in range(3):
            with pytest.raises(SidecarTimeout):
                check(proxied, 0.05)
        with pytest.raises(SidecarUnavailable, match="3 deadlines pass in a row"):
            check(proxied)
        proxy.hear_new_ones()
        assert self._seconds_until_answered(proxied) < 3

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
while struck < 300:
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
    """What the program prints, without a measurement of its coverage: that has a lock, which a strike leaves taken."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", program, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
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
            others = set(threading.enumerate())
            channel: Channel | None = Channel("127.0.0.1", port)
            assert channel is not None
            check(channel)
            ours = [thread for thread in {*threading.enumerate()} - others if thread.name == "stigg-calls"]
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

"""``python -m benchmarks.recovery``: how soon answers are fresh again after an outage, and what a sidecar that hangs
costs, beside a channel of grpcio as it comes. Both ask at the same time, again and again."""

from __future__ import annotations

import os
import signal
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import get_context
from statistics import median
from typing import NamedTuple

import grpc

from benchmarks.report import machine, publish, table
from benchmarks.servers import answer_at, free_port
from stigg_guard import SidecarError, Stigg
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as wire

OUTAGES = (2, 10, 30)
HANG = 30
ROUNDS = 3
TIMEOUT = 1.0
PAUSE = 0.01
METHOD = "GetBooleanEntitlement"
REQUEST = wire.GetBooleanEntitlementRequest(customer_id="customer", feature_id="feature")
ANSWER = wire.GetBooleanEntitlementResponse(has_access=True).SerializeToString()
HEAD = ("what happens", "what is measured, in seconds", "stigg-guard", "a channel of grpcio")
_CONTEXT = get_context("spawn")


class Asked(NamedTuple):
    """One call, on the monotonic clock."""

    begun: float
    ended: float
    is_answered: bool


class Asker(threading.Thread):
    """Asks by ``ask``, which returns or raises, until it is ended."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._is_over = threading.Event()
        self.calls: list[Asked] = []

    def run(self) -> None:
        while not self._is_over.wait(PAUSE):
            begun, is_answered = time.monotonic(), False
            with suppress(SidecarError, grpc.RpcError):
                self._ask()
                is_answered = True
            self.calls.append(Asked(begun, time.monotonic(), is_answered))

    def end(self) -> None:
        self._is_over.set()
        self.join()

    def first_answer(self, since: float) -> float:
        """Waits for it; the seconds since then until it came."""
        while True:
            for call in tuple(self.calls):
                if call.is_answered and call.ended > since:
                    return call.ended - since
            time.sleep(PAUSE)

    def lost(self, since: float, until: float) -> float:
        """The seconds that calls begun between the two, and not answered, took."""
        calls = (call for call in self.calls if since <= call.begun < until)
        return sum(call.ended - call.begun for call in calls if not call.is_answered)


class Sidecar:
    """A process that answers all calls at the port, once it is told to begin."""

    def __init__(self, port: int) -> None:
        self._ours, its = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=answer_at, args=(port, METHOD, ANSWER, its), daemon=True)
        self._process.start()
        self._ours.recv()

    def begin(self) -> float:
        """When it listened, on the monotonic clock."""
        self._ours.send("begin")
        self._ours.recv()
        return time.monotonic()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def send(self, sign: signal.Signals) -> None:
        os.kill(self._process.pid or 0, sign)


@contextmanager
def _both_asking(port: int) -> Iterator[tuple[Asker, Asker]]:
    """Ours and the channel's, each on a connection that has been used."""
    with (
        closing(Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=port, timeout=TIMEOUT)) as client,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        method = METHODS[METHOD]
        call = channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        askers = Asker(lambda: client.get_boolean_entitlement(REQUEST)), Asker(lambda: call(REQUEST, timeout=TIMEOUT))
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.first_answer(0)
        try:
            yield askers
        finally:
            for asker in askers:
                asker.end()


def outage(seconds: float) -> list[float]:
    """How soon both have a fresh answer once a sidecar that was killed listens again."""
    port = free_port()
    before, after = Sidecar(port), Sidecar(port)
    before.begin()
    try:
        with _both_asking(port) as askers:
            before.kill()
            time.sleep(seconds)
            back = after.begin()
            return [asker.first_answer(back) for asker in askers]
    finally:
        after.kill()


def hang(seconds: float) -> tuple[list[float], list[float]]:
    """The seconds that both lose while a sidecar is stopped, and how soon they have a fresh answer when it goes on."""
    port = free_port()
    sidecar = Sidecar(port)
    sidecar.begin()
    try:
        with _both_asking(port) as askers:
            stopped = time.monotonic()
            sidecar.send(signal.SIGSTOP)
            time.sleep(seconds)
            sidecar.send(signal.SIGCONT)
            back = time.monotonic()
            answered = [asker.first_answer(back) for asker in askers]
            return [asker.lost(stopped, back) for asker in askers], answered
    finally:
        sidecar.kill()


def main() -> None:
    """Prints the table, and with ``--publish`` puts it into docs/performance.md."""
    parser = ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--publish", action="store_true", help="puts the table into docs/performance.md")
    given = parser.parse_args()
    where = f"`make bench-recovery`, medians of {ROUNDS}, and the longest: {machine()}:"
    print(where, end="\n\n")
    lines = []
    for seconds in OUTAGES:
        found = [outage(seconds) for _ in range(ROUNDS)]
        lines.append((f"killed, and back after {seconds} s", "until the first fresh answer", *_figures(found)))
    hangs = [hang(HANG) for _ in range(ROUNDS)]
    lines.append((f"stopped for {HANG} s", "spent waiting, by a thread", *_figures([lost for lost, _ in hangs])))
    lines.append(("", "until the first fresh answer", *_figures([answered for _, answered in hangs])))
    text = table(HEAD, lines)
    print(text)
    if given.publish:
        publish("recovery", f"{where}\n\n{text}")


def _figures(rounds: list[list[float]]) -> list[str]:
    return [f"{median(column):.2f}, {max(column):.2f}" for column in zip(*rounds, strict=True)]


if __name__ == "__main__":
    main()

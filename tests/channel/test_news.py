"""Changes that a local sidecar tells: heard by every guard, through restarts and forks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from queue import Queue

import grpc
import pytest

from conftest import in_child
from rpc_server import serving
from stigg_guard import Config, Guard
from stigg_guard.channel import Channel
from stigg_guard.channel.news import Listener
from stigg_guard.channel.target import Target
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.news import MOST_NAMED
from stigg_guard.sidecar.server import WORKERS, Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import WATCH
from stigg_guard.wire.sidecar_pb2 import ReloadEntitlementsRequest

DEMO = "customer-demo-01"


class Ear:
    """Keeps what is heard."""

    def __init__(self) -> None:
        self.heard: Queue[str | None] = Queue()

    def hear(self, customer: str | None) -> None:
        self.heard.put(customer)

    def next(self) -> str | None:
        return self.heard.get(timeout=20)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with closing(Engine(demo_catalog(), Store(None))) as engine:
        yield engine


def channel_to(address: str) -> Channel:
    host, _, port = address.rpartition(":")
    return Channel(host, port)


def listening(channel: Channel, ear: Ear, engine: Engine) -> None:
    """Watches, and returns when the stream is open: a change is heard."""
    channel.answer("ReloadEntitlements", ReloadEntitlementsRequest(customer_id=DEMO), timeout=10)
    channel.watch(ear.hear)
    while ear.heard.empty():
        engine.tell("probe")
        threading.Event().wait(0.01)
    while not ear.heard.empty():
        ear.heard.get()


def drained(ear: Ear) -> str | None:
    """The next that is not an echo of looking for the stream."""
    while (customer := ear.next()) == "probe":
        pass
    return customer


def test_changes_are_heard_by_their_customers(engine: Engine) -> None:
    ear = Ear()
    with Sidecar(engine) as sidecar, closing(channel_to(sidecar.address)) as channel:
        listening(channel, ear, engine)
        engine.assign_plan(DEMO, "growth")
        assert drained(ear) == DEMO
        engine.tell("ada")
        assert drained(ear) == "ada"
        engine.replace_catalog(demo_catalog())
        assert drained(ear) is None


def test_a_change_of_very_many_is_one_of_everybody(engine: Engine) -> None:
    ear = Ear()
    with Sidecar(engine) as sidecar, closing(channel_to(sidecar.address)) as channel:
        listening(channel, ear, engine)
        engine.on_change(frozenset(str(number) for number in range(MOST_NAMED + 1)))
        assert drained(ear) is None


def test_a_guard_sees_a_change_of_plan_without_reading_again(engine: Engine) -> None:
    with Sidecar(engine) as sidecar, Guard(Config(sidecar=sidecar.address, ledger="memory://", timeout=5)) as guard:
        assert guard.check("feature-exports", customer=DEMO)
        cached = guard._workings.lookup.cache.snapshots[DEMO]
        engine.assign_plan(DEMO, "free")
        while guard._workings.lookup.cache.snapshots[DEMO] is cached and guard.check("feature-exports", customer=DEMO):
            engine.tell(DEMO)  # until the stream is open
            threading.Event().wait(0.01)
        assert not guard.check("feature-exports", customer=DEMO)


def test_watchers_take_no_thread_of_the_server(engine: Engine) -> None:
    def sending() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "stigg-sidecar-news"}

    before = sending()
    ears = [Ear() for _ in range(WORKERS + 4)]
    with Sidecar(engine) as sidecar:
        channels = [channel_to(sidecar.address) for _ in ears]
        for channel, ear in zip(channels, ears, strict=True):
            listening(channel, ear, engine)
        engine.assign_plan(DEMO, "growth")
        assert [drained(ear) for ear in ears] == [DEMO] * len(ears)
        senders = sending() - before
        assert len(senders) == len(ears)
        for channel in channels:
            channel.close()
        for sender in senders:
            sender.join(20)
        assert not any(sender.is_alive() for sender in senders)


def test_who_reads_nothing_keeps_nobody_waiting(engine: Engine) -> None:
    ear = Ear()
    with (
        Sidecar(engine) as sidecar,
        closing(channel_to(sidecar.address)) as channel,
        grpc.insecure_channel(sidecar.address) as idle,
    ):
        unread = idle.unary_stream(WATCH)(b"", timeout=100)
        unread.initial_metadata()
        listening(channel, ear, engine)
        for number in range(300):  # far more than the buffers on the way take
            told = f"{number}-{'x' * 30_000}"
            engine.tell(told)
            assert drained(ear) == told


def test_a_stream_that_broke_is_made_up_for(engine: Engine) -> None:
    ear = Ear()
    with Sidecar(engine) as sidecar:
        channel = channel_to(sidecar.address)
        listening(channel, ear, engine)
    port = int(sidecar.address.rpartition(":")[2])
    with Sidecar(engine, port=port):
        assert drained(ear) is None
    channel.close()


def test_a_sidecar_that_does_not_know_it_is_not_asked_again() -> None:
    with serving({}) as port:
        listener = Listener(Target.of("127.0.0.1", port), Ear().hear, is_again=False)
        listener._thread.join(20)
        assert not listener._thread.is_alive()
        listener.stop()


def test_who_has_not_the_key_hears_nothing(engine: Engine) -> None:
    with (
        Sidecar(engine, api_key="key", require_api_key=True) as sidecar,
        grpc.insecure_channel(sidecar.address) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        next(channel.unary_stream(WATCH)(b"", timeout=20))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_it_ends_before_a_fork_and_begins_again_with_the_next_fetch(engine: Engine) -> None:
    ear = Ear()
    with Sidecar(engine) as sidecar, closing(channel_to(sidecar.address)) as channel:
        listening(channel, ear, engine)

        def names() -> list[str]:
            return [thread.name for thread in threading.enumerate() if thread.name == "stigg-guard-news"]

        assert names()
        assert in_child(lambda: not names())
        assert not names()
        channel.watch(ear.hear)
        assert drained(ear) is None  # what was missed meanwhile
        engine.assign_plan(DEMO, "growth")
        assert drained(ear) == DEMO


def test_a_guard_that_nobody_has_any_more_ends_its_thread(engine: Engine) -> None:
    with Sidecar(engine) as sidecar:
        channel, ear = channel_to(sidecar.address), Ear()
        listening(channel, ear, engine)
        thread = channel._process.listener._thread if channel._process and channel._process.listener else None
        assert thread is not None
        del channel
        thread.join(20)
        assert not thread.is_alive()

"""Stigg's durable queue beside the cache service: changes are seen by all, nothing is lost, and nothing is told."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from cache.workers import PATIENCE
from conftest import ManualClock
from queue_server import KEY, REGION, SECRET, TOKEN, Edge, QueueServer
from redis_server import RedisServer
from stigg_guard import Clock, Config, ConfigError, Guard
from stigg_guard.api.event_queue import EventQueueAccess
from stigg_guard.cache import redis as shared_cache
from stigg_guard.cache import service as cache_service
from stigg_guard.cache import sqs
from stigg_guard.cache.service import CacheService
from stigg_guard.cache.sqs import Queue, QueueReader
from stigg_guard.cli.cache_service import serve
from stigg_guard.errors import ApiError, ApiUnauthenticated, ApiUnreadable
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"


def until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    pytest.fail("it never came")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqs, "POLL_SECONDS", 0)
    monkeypatch.setattr(sqs, "RETRY_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(cache_service, "PASS_SECONDS", 0.02)
    monkeypatch.setattr(shared_cache, "ANSWER_SECONDS", PATIENCE)
    for name in ("AWS_PROFILE", "AWS_REGION", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def running_server() -> Iterator[QueueServer]:
    running = QueueServer()
    yield running
    running.stop()


@pytest.fixture
def server(running_server: QueueServer) -> QueueServer:
    running_server.empty()
    return running_server


@pytest.fixture
def edge() -> Iterator[Edge]:
    running = Edge()
    yield running
    running.stop()


def queue_of(server: QueueServer, edge: Edge, clock: Clock | None = None, key: str = KEY) -> Queue:
    return Queue(server.url, EventQueueAccess(key, edge.url, server.url), clock or Clock(), REGION)


class Read:
    """A reader at work, and what it has told: ``taken`` are the customers; those of ``fails`` are not done."""

    def __init__(self, queue: Queue) -> None:
        self.taken: list[Collection[str]] = []
        self.fails: set[str] = set()
        self.fault: Exception | None = None
        self.registry = CollectorRegistry()
        self.reader = QueueReader(queue, self._take, self.registry)
        self.reader.start()

    def _take(self, customers: Collection[str]) -> Collection[str]:
        if customers and self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.taken += [customers] if customers else []
        return set(customers) - self.fails

    def figure(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"stigg_guard_cache_queue_{name}", labels)

    def end(self) -> None:
        self.reader.over.set()
        self.reader.join(PATIENCE)
        assert not self.reader.is_alive()


@pytest.fixture
def read(server: QueueServer, edge: Edge) -> Iterator[Read]:
    reading = Read(queue_of(server, edge))
    yield reading
    reading.end()


class TestReader:
    def test_messages_are_read_as_webhooks_are_and_deleted_when_they_were_applied(
        self, server: QueueServer, read: Read
    ) -> None:
        server.send(type="entitlements.updated", messageId="1", customer={"id": "a"})
        until(lambda: read.figure("messages_total", outcome="applied") == 1)
        server.send(type="subscription.created", data={"customerId": "b", "resourceId": "r"})
        server.send(type="nobody.knows")
        until(lambda: read.figure("messages_total", outcome="applied") == 3)
        assert read.taken == [{"a"}, {"b"}]
        assert server.left() == (0, 0)
        assert read.figure("up") == 1

    def test_what_was_not_applied_is_not_deleted(self, server: QueueServer, read: Read) -> None:
        read.fails = {"a"}
        for customer in ("b", "a", "c"):
            server.send(customerId=customer)
        until(lambda: read.figure("messages_total", outcome="applied") == 2)
        until(lambda: {"a"} <= set().union(*read.taken))
        read.end()
        assert server.left() == (0, 1)

    def test_what_cannot_be_read_is_told_once_and_deleted(
        self, server: QueueServer, read: Read, caplog: pytest.LogCaptureFixture
    ) -> None:
        for text in ("[]", "{", '{"customerId": 7}'):
            server.send_text(text)
        server.send(customerId="a")
        until(lambda: read.figure("messages_total", outcome="unreadable") == 3 and bool(read.taken))
        until(lambda: server.left() == (0, 0))
        said = [line for line in caplog.messages if line.startswith("a message of Stigg's queue is deleted unread: ")]
        assert len(said) == 3

    def test_a_queue_that_is_away_is_said_once_and_comes_back_by_itself(
        self, server: QueueServer, edge: Edge, caplog: pytest.LogCaptureFixture
    ) -> None:
        reading = Read(queue_of(server, edge))
        until(lambda: reading.figure("up") == 1)
        server.stop()
        until(lambda: reading.figure("up") == 0)
        server.start()
        server.send(customerId="a")
        until(lambda: reading.taken == [{"a"}])
        reading.end()
        assert [line.partition(",")[0] for line in caplog.messages if "queue" in line] == [
            "Stigg's queue is not read",
            "Stigg's queue is read again",
        ]
        assert len(edge.asked) == 1

    def test_a_fault_that_nobody_foresaw_is_said_once_and_does_not_end_it(
        self, server: QueueServer, read: Read, caplog: pytest.LogCaptureFixture
    ) -> None:
        read.fault = OSError("too many open files")
        server.send(customerId="a")
        until(lambda: read.fault is None)
        server.send(customerId="b")
        until(lambda: read.taken == [{"b"}])
        assert [line.partition(": ")[2] for line in caplog.messages if "not read" in line] == [
            "OSError: too many open files"
        ]


class TestCredentials:
    def test_they_are_asked_for_once_and_replaced_before_they_expire(
        self, server: QueueServer, edge: Edge, clock: ManualClock
    ) -> None:
        queue = queue_of(server, edge, clock.clock)
        for _ in range(2):
            queue.receive()
        assert edge.asked == [{"queueUrl": [server.url], "durationSeconds": ["3600"]}]
        clock.advance(3290)
        queue.receive()
        clock.advance(11)
        queue.receive()
        assert len(edge.asked) == 2
        queue.close()

    def test_a_short_life_is_no_reason_to_ask_at_each_request(
        self, server: QueueServer, edge: Edge, clock: ManualClock
    ) -> None:
        edge.lifetime = timedelta(hours=-1)
        queue = queue_of(server, edge, clock.clock)
        for _ in range(3):
            queue.receive()
        assert len(edge.asked) == 1
        clock.advance(61)
        queue.receive()
        assert len(edge.asked) == 2
        queue.close()

    def test_those_that_are_refused_are_replaced(self, server: QueueServer, edge: Edge) -> None:
        queue = queue_of(server, edge)
        queue._url += "-that-is-not-there"
        for _ in range(2):
            with pytest.raises(sqs.ClientError):
                queue.receive()
        assert len(edge.asked) == 2
        queue.close()

    def test_connections_with_those_that_are_replaced_are_closed(
        self, server: QueueServer, edge: Edge, clock: ManualClock
    ) -> None:
        queue = queue_of(server, edge, clock.clock)
        queue.receive()
        pools = queue._client._endpoint.http_session._manager.pools
        assert len(pools) == 1
        clock.advance(3301)
        queue.receive()
        assert len(pools) == 0
        queue.close()

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            ((200, b'{"accessKeyId": "id"}'), ApiUnreadable),
            ((200, b"[]"), ApiUnreadable),
            ((200, f'{{"accessKeyId": "id", "secretAccessKey": "{SECRET}"}}'.encode()), ApiUnreadable),
            ((404, b"{}"), ApiUnreadable),
            ((302, b"{}"), ApiUnreadable),
            ((403, b"{}"), ApiUnauthenticated),
        ],
    )
    def test_an_answer_without_them_is_an_error_that_gives_nothing_away(
        self, answer: tuple[int, bytes], kind: type[ApiError], edge: Edge
    ) -> None:
        edge.answers.append(answer)
        access = EventQueueAccess(KEY, edge.url, "https://sqs.eu-west-1.amazonaws.com/1/q")
        with pytest.raises(kind) as caught:
            access.credentials()
        shown = "".join(traceback.format_exception(caught.value))
        assert KEY not in shown
        assert SECRET not in shown
        access.close()

    def test_the_log_has_no_secret_at_any_level(
        self, server: QueueServer, edge: Edge, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            reading = Read(queue_of(server, edge))
            server.send(customerId="a")
            until(lambda: reading.figure("messages_total", outcome="applied") == 1)
            reading.end()
        for secret in (KEY, SECRET, TOKEN):
            assert secret not in caplog.text
        assert SECRET not in repr(EventQueueAccess(KEY, edge.url, server.url).credentials())


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/customer-events", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
        ("https://vpce-0a.sqs.us-east-2.vpce.amazonaws.com/1/q", "us-east-2"),
        ("https://us-west-2.queue.amazonaws.com/1/q", "us-west-2"),
        ("http://localhost:4566/1/q", "of-the-environment"),
    ],
)
def test_the_region_is_that_of_the_url(url: str, region: str) -> None:
    access = EventQueueAccess(KEY, "https://edge.api.stigg.io", url)
    assert Queue(url, access, Clock(), "of-the-environment")._region == region


@pytest.mark.parametrize(("url", "said"), [("customer-events", "expected the URL"), ("http://q/1/q", "set AWS_REGION")])
def test_a_url_of_no_queue_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^QUEUE_URL: .*{said}"):
        Queue(url, EventQueueAccess(KEY, "https://edge.api.stigg.io", url), Clock())


def test_a_change_is_applied_when_the_sidecar_is_back_and_its_message_deleted_then(
    redis: RedisServer, server: QueueServer, edge: Edge
) -> None:
    engine = Engine(demo_catalog(), Store(None))
    engine.on_change = lambda _: None  # as Stigg's sidecar, which tells nothing
    with Sidecar(engine) as sidecar:
        port = int(sidecar.address.rpartition(":")[2])
        config = Config.from_mapping(
            {"SIDECAR": sidecar.address, "CACHE": redis.url, "LEDGER": "memory://", "TIMEOUT": 5, "CACHE_TTL": 2}
        )
        guard = Guard(config)
        assert guard.peek(TEMPLATES, customer=CUSTOMER).usage_limit == 6
        service = CacheService(config, keep=600)
        working = threading.Thread(target=service.run)
        working.start()
        until(lambda: service.is_ready)
    reader = QueueReader(queue_of(server, edge), service.take, service.figures.registry)
    reader.start()
    engine.assign_plan(CUSTOMER, "free")
    server.send(type="subscription.updated", customerId=CUSTOMER)
    until(lambda: server.left() == (0, 1) and bool(service._told) and not service.is_ready)
    assert guard.peek(TEMPLATES, customer=CUSTOMER).usage_limit == 6
    with Sidecar(engine, port=port):
        until(lambda: guard.peek(TEMPLATES, customer=CUSTOMER).usage_limit == 2)
        until(lambda: server.left() == (0, 0))
        assert b'stigg_guard_cache_queue_messages_total{outcome="applied"} 1.0' in service.figures.text()
        reader.over.set()
        service.stop()
        working.join(PATIENCE)
        reader.join(PATIENCE)
        assert not working.is_alive()
        assert not reader.is_alive()
        guard.close()


class Command:
    """``stigg-guard cache-service`` with these variables."""

    def __init__(self, **environment: str) -> None:
        command = [sys.executable, "-m", "stigg_guard", "cache-service", "--http-port", "0", "--log-level", "debug"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, log


def test_the_command_reads_the_queue_ends_in_the_middle_of_a_poll_and_logs_no_secret(
    redis: RedisServer, server: QueueServer, edge: Edge
) -> None:
    with Sidecar(Engine(demo_catalog(), Store(None))) as sidecar:
        command = Command(
            STIGG_GUARD_SIDECAR=sidecar.address,
            STIGG_GUARD_CACHE=redis.url,
            STIGG_GUARD_API_KEY=KEY,
            QUEUE_URL=server.url,
            EDGE_API_URL=edge.url,
            AWS_REGION=REGION,
        )
        server.send(customerId=CUSTOMER)
        until(lambda: bool(edge.asked) and server.left() == (0, 0))
        status, log = command.end()  # it has begun to wait for twenty seconds
    assert status == 0
    assert "the ledger is in memory" not in log
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in log


def test_a_queue_without_a_key_is_an_error() -> None:
    config = Config.from_mapping({"CACHE": "redis://127.0.0.1:1"})
    options = Namespace(keep=600.0, queue_url="https://sqs.eu-west-1.amazonaws.com/1/q")
    with pytest.raises(ConfigError, match=r"^API_KEY: "):
        serve(options, config)

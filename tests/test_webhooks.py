"""Stigg's webhooks: which are believed, and that the customer in one is asked about again in all processes."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from redis_server import RedisServer
from stigg_guard import Config, Customer, Entitlement, Guard, InvalidRequest, Reason, SidecarUnavailable, Stigg
from stigg_guard.entitlements import Source
from stigg_guard.observer import Observer
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.webhooks import MAX_BYTES, MESSAGES_KEPT, receive

SECRET = "a-shared-secret"
DEMO = "customer-demo-01"
SITE = Customer(DEMO, "site-01")
TEMPLATES = "feature-templates"
UPDATED = {"type": "entitlements.updated", "messageId": "m1", "customer": {"id": DEMO}, "resource": None}
ATTEMPTS = 200
ATTEMPT_SECONDS = 0.05

MakeGuard = Callable[..., Guard]


class Line:
    """The way to an engine; it can be cut, and held up with the answer on its way."""

    honours_keys = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_cut = False
        self.asked = threading.Semaphore(0)
        self.clear = threading.Event()
        self.clear.set()

    def answer(self, method: str, request: Message, **options: Any) -> Message:
        if self.is_cut:
            raise SidecarUnavailable("the line is cut")
        answer = self._engine.answer(method, request, **options)
        self.asked.release()
        self.clear.wait()
        return answer

    def close(self) -> None:
        """The engine is the test's."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(demo_catalog(), Store(None))
    yield engine
    engine.close()


@pytest.fixture
def line(engine: Engine) -> Line:
    return Line(engine)


@pytest.fixture
def make(line: Line) -> Iterator[MakeGuard]:
    made: list[Guard] = []

    def make(**settings: object) -> Guard:
        config = Config.from_mapping({"LEDGER": "memory://", "WEBHOOK_SECRET": SECRET, **settings})
        made.append(Guard(config, stigg=Stigg(answers=line)))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


@pytest.fixture
def guard(make: MakeGuard) -> Guard:
    return make()


def post(guard: Guard, message: object, secret: str | None = SECRET) -> HTTPStatus:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return receive(guard, secret, BytesIO(body).read)


def limit(guard: Guard, customer: str | Customer = DEMO) -> float | None:
    return guard.check(TEMPLATES, customer=customer).usage_limit


@pytest.mark.parametrize(
    "message",
    [
        UPDATED,
        {"type": "entitlements.updated", "messageId": "m1", "data": {"customer": {"id": DEMO}, "resource": None}},
        {"data": {"type": "customer.updated", "messageId": "m1", "id": DEMO}},
        {"id": "event-1", "type": "customer.updated", "data": {"id": DEMO}},
        {"type": "automatic_recharge.operation.attempted", "customerId": DEMO},
        {"type": "something.of.tomorrow", "customer": {"id": DEMO}},
        {"type": "entitlements.updated", "customerId": DEMO, "resourceId": ""},
    ],
)
def test_the_customer_of_a_webhook_is_asked_about_again(guard: Guard, engine: Engine, message: object) -> None:
    assert limit(guard) == 6
    engine.assign_plan(DEMO, "growth")
    assert limit(guard) == 6
    assert post(guard, message) == HTTPStatus.NO_CONTENT
    assert limit(guard) == 50


EXCEEDED = {
    "type": "entitlement.usage_exceeded",
    "messageId": "m2",
    "thresholdPercentage": 80,
    "usageUsedPercentage": 83,
    "currentUsage": 5,
    "hasUnlimitedUsage": False,
    "hasSoftLimit": False,
    "usageLimit": 6,
    "feature": {"id": TEMPLATES, "name": "Templates", "meterType": "FLUCTUATING"},
    "customer": {"id": DEMO, "email": None},
    "resource": None,
}


class Watcher(Observer):
    """Remembers the thresholds that it is told of."""

    def __init__(self) -> None:
        self.told: list[tuple[Customer, str, float, Entitlement]] = []

    def threshold_reached(self, customer: Customer, feature: str, part: float, entitlement: Entitlement) -> None:
        self.told.append((customer, feature, part, entitlement))


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


class TestThreshold:
    @pytest.mark.parametrize("part", [0.5, 0.8])
    def test_of_no_customer_is_refused(self, make: MakeGuard, part: float) -> None:
        guard = make(THRESHOLDS=[0.8])
        with pytest.raises(InvalidRequest, match="customer_id"):
            guard.tell_of_threshold(part, Entitlement(feature_id=TEMPLATES, has_access=True), customer="")

    def test_that_stigg_watches_is_told_to_observers_once(self, guard: Guard, watcher: Watcher) -> None:
        guard.observe(watcher)
        assert [post(guard, EXCEEDED), post(guard, EXCEEDED)] == [HTTPStatus.NO_CONTENT] * 2
        ((customer, feature, part, entitlement),) = watcher.told
        assert (customer, feature, part) == (Customer(DEMO), TEMPLATES, 0.8)
        assert (entitlement.current_usage, entitlement.usage_limit, entitlement.has_access) == (5, 6, True)

    @pytest.mark.parametrize(("soft", "reason"), [(False, Reason.REQUESTED_USAGE_EXCEEDING_LIMIT), (True, None)])
    def test_of_the_whole_limit_says_that_nothing_is_left(
        self, guard: Guard, watcher: Watcher, soft: bool, reason: Reason | None
    ) -> None:
        guard.observe(watcher)
        whole = {"thresholdPercentage": 100, "currentUsage": 6.0, "hasSoftLimit": soft, "resource": {"id": "site-01"}}
        post(guard, {**EXCEEDED, **whole})
        ((customer, _, part, entitlement),) = watcher.told
        assert (customer, part, entitlement.has_access, entitlement.reason) == (SITE, 1.0, soft, reason)

    def test_that_the_guard_watches_itself_is_told_by_the_report_alone(self, make: MakeGuard, watcher: Watcher) -> None:
        guard = make(THRESHOLDS=[0.8], REPORT="inline")
        guard.observe(watcher)
        guard.report(TEMPLATES, 2, customer=DEMO)
        post(guard, EXCEEDED)
        assert [(part, entitlement.current_usage) for _, _, part, entitlement in watcher.told] == [(0.8, 5)]

    @pytest.mark.parametrize(
        "odd",
        [
            {"thresholdPercentage": None},
            {"thresholdPercentage": "80"},
            {"thresholdPercentage": True},
            {"thresholdPercentage": -80},
            {"currentUsage": [5]},
            {"usageLimit": None, "hasUnlimitedUsage": True},
            {"feature": None},
            {"feature": {"id": 7}},
            {"type": "entitlement.usage_exceeded.of.tomorrow"},
        ],
    )
    def test_that_is_not_told_whole_is_a_message_like_any_other(
        self, guard: Guard, watcher: Watcher, engine: Engine, odd: dict[str, object]
    ) -> None:
        guard.observe(watcher)
        assert limit(guard) == 6
        engine.assign_plan(DEMO, "growth")
        assert post(guard, {**EXCEEDED, **odd}) == HTTPStatus.NO_CONTENT
        assert (limit(guard), watcher.told) == (50, [])


@pytest.mark.parametrize("named", [{"resource": {"id": "site-01"}}, {"resourceId": "site-01"}])
def test_a_resource_is_asked_about_again_alone(guard: Guard, engine: Engine, named: dict[str, Any]) -> None:
    before = limit(guard), limit(guard, SITE)
    engine.assign_plan(DEMO, "growth")
    engine.assign_plan(DEMO, "growth", "site-01")
    post(guard, {**UPDATED, **named})
    assert (limit(guard), limit(guard, SITE)) == (before[0], 50)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "plan.updated", "messageId": "m1", "id": "growth"},
        {"type": "something.of.tomorrow"},
        {"customer": {"name": "nobody"}},
        {"customer": "an old format"},
        {},
    ],
)
def test_what_names_no_customer_is_acknowledged(guard: Guard, message: object) -> None:
    assert post(guard, message) == HTTPStatus.NO_CONTENT


def test_a_message_that_comes_again_changes_nothing(guard: Guard, engine: Engine) -> None:
    post(guard, UPDATED)
    assert limit(guard) == 6
    engine.assign_plan(DEMO, "growth")
    assert post(guard, UPDATED) == HTTPStatus.NO_CONTENT
    assert limit(guard) == 6
    post(guard, {**UPDATED, "messageId": "m2"})
    assert limit(guard) == 50


def test_a_message_without_an_id_counts_each_time(guard: Guard, engine: Engine) -> None:
    message = {"customer": {"id": DEMO}}
    post(guard, message)
    limit(guard)
    engine.assign_plan(DEMO, "growth")
    post(guard, message)
    assert limit(guard) == 50


def test_two_guards_take_the_same_message_each(make: MakeGuard, engine: Engine) -> None:
    one, other = make(), make()
    assert limit(one) == limit(other) == 6
    engine.assign_plan(DEMO, "growth")
    post(one, UPDATED)
    post(other, UPDATED)
    assert limit(one) == limit(other) == 50


def test_the_ids_that_are_remembered_are_bounded(guard: Guard, engine: Engine) -> None:
    for number in range(MESSAGES_KEPT + 1):
        post(guard, {**UPDATED, "messageId": str(number)})
    limit(guard)
    engine.assign_plan(DEMO, "growth")
    post(guard, {**UPDATED, "messageId": "0"})
    assert limit(guard) == 50


@pytest.mark.parametrize("secret", [None, "", "another", SECRET.upper(), SECRET + "é"])
def test_without_the_right_secret_nothing_is_read(
    guard: Guard, secret: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def read(size: int) -> bytes:
        raise AssertionError("the body must not be read")

    assert receive(guard, secret, read) == HTTPStatus.FORBIDDEN
    assert "WEBHOOK_SECRET" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("secret", [None, "", SECRET])
def test_no_webhook_is_believed_while_no_secret_is_set(
    make: MakeGuard, secret: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert post(make(WEBHOOK_SECRET=None), UPDATED, secret) == HTTPStatus.FORBIDDEN
    assert "set WEBHOOK_SECRET" in caplog.text


def test_a_secret_need_not_be_ascii(make: MakeGuard) -> None:
    assert post(make(WEBHOOK_SECRET="clé"), UPDATED, "clé") == HTTPStatus.NO_CONTENT


def test_a_body_of_more_than_the_bound_is_refused_and_not_read_to_its_end(guard: Guard) -> None:
    body = BytesIO(b" " * (3 * MAX_BYTES))
    assert receive(guard, SECRET, body.read) == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert body.tell() == MAX_BYTES + 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"customer=customer-demo-01",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"customer": {"id": 5}}',
        b'{"customer": {"id": "\\ud800"}}',
        b'{"customer": {"id": "a"}, "resource": {"id": ["b"]}}',
    ],
)
def test_what_stigg_would_not_send_is_refused(guard: Guard, body: bytes) -> None:
    assert post(guard, body) == HTTPStatus.BAD_REQUEST


def test_neither_secret_nor_message_is_logged(guard: Guard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    post(guard, {**UPDATED, "customer": {"id": DEMO, "email": "someone@example.com"}})
    post(guard, b'{"email": "someone@example.com"')
    post(guard, UPDATED, "a wrong one")
    assert not [said for said in (SECRET, "a wrong one", "someone") if said in caplog.text]


def test_while_the_sidecar_is_away_a_webhook_is_taken_and_the_customer_keeps_what_is_known(
    guard: Guard, line: Line
) -> None:
    assert limit(guard) == 6
    line.is_cut = True
    assert post(guard, UPDATED) == HTTPStatus.NO_CONTENT
    answer = guard.check(TEMPLATES, customer=DEMO)
    assert (answer.usage_limit, answer.source) == (6, Source.STALE)


def test_a_guard_that_is_switched_off_takes_webhooks_too(make: MakeGuard) -> None:
    assert post(make(ENABLED=False), UPDATED) == HTTPStatus.NO_CONTENT


def test_an_answer_that_was_on_its_way_is_not_kept(guard: Guard, engine: Engine, line: Line) -> None:
    line.clear.clear()
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(limit, guard)
        line.asked.acquire()
        engine.assign_plan(DEMO, "growth")
        post(guard, UPDATED)
        line.clear.set()
        assert slow.result() == 6
    assert limit(guard) == 50


def test_processes_that_share_a_cache_all_ask_again(make: MakeGuard, engine: Engine, tmp_path: Path) -> None:
    with RedisServer(tmp_path, durable=False) as redis, make(CACHE=redis.url) as taker, make(CACHE=redis.url) as other:
        assert limit(taker) == limit(other) == 6
        engine.assign_plan(DEMO, "growth")
        # Nobody hears of it who does not listen yet, so it is told until the other one does.
        for number in range(ATTEMPTS):
            assert post(taker, {**UPDATED, "messageId": str(number)}) == HTTPStatus.NO_CONTENT
            assert limit(taker) == 50
            if limit(other) == 50:
                return
            threading.Event().wait(ATTEMPT_SECONDS)
    pytest.fail("the other one never heard of it")


def test_while_redis_is_away_a_webhook_is_taken_here(make: MakeGuard, engine: Engine, tmp_path: Path) -> None:
    with RedisServer(tmp_path, durable=False) as redis, make(CACHE=redis.url) as guard:
        assert limit(guard) == 6
        redis.stop()
        engine.assign_plan(DEMO, "growth")
        assert post(guard, UPDATED) == HTTPStatus.NO_CONTENT
        assert limit(guard) == 50

"""How reports are delivered between a real ledger and a real sidecar, with faults on the way between them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat

import pytest
from grpc import ServicerContext, StatusCode

from conftest import ManualClock
from faulty_sidecar import FaultySidecar, abort, no_fault
from stigg_guard import Clock, Config, Fallback, ReportUsageRequest, SidecarError, SidecarUnavailable, Stigg
from stigg_guard.ledger import Acknowledged, Event, Ledger, State, UsageKey, Use, ledger_from_url
from stigg_guard.usage.delivery import Delivery
from stigg_guard.usage.sender import Sender
from stigg_guard.wire import sidecar_pb2 as wire

KEY = UsageKey("c", "", "f")
SECONDS = 5.0


@pytest.fixture
def ledger(clock: ManualClock) -> Iterator[Ledger]:
    made = ledger_from_url("memory://", clock.clock, settle_grace=15)
    yield made
    made.close()


@pytest.fixture
def stigg(faulty: FaultySidecar) -> Iterator[Stigg]:
    with faulty.client() as client:
        yield client


@pytest.fixture
def told() -> list[Acknowledged]:
    return []


@pytest.fixture
def make(ledger: Ledger, stigg: Stigg, told: list[Acknowledged], clock: ManualClock) -> Callable[..., Delivery]:
    def make(stigg: Stigg = stigg, **settings: str) -> Delivery:
        config = Config.from_mapping(settings)
        return Delivery(ledger, Sender(lambda: stigg, config.on_uncertain), config, clock.clock, told.append)

    return make


@pytest.fixture
def delivery(make: Callable[..., Delivery]) -> Delivery:
    return make()


def deliver(delivery: Delivery) -> None:
    """Sends and decides all that is there, until the sidecar fails."""
    failed: set[str] = set()
    with suppress(SidecarError):
        for _ in range(20):
            batch, error = delivery.send_batch(SECONDS)
            if batch is None or batch.reports[0].id in failed:
                break
            failed |= {batch.reports[0].id} if error else set()
        delivery.decide_uncertain()


def test_nothing_is_sent_when_there_is_nothing(delivery: Delivery, faulty: FaultySidecar) -> None:
    assert delivery.send_batch(SECONDS) == (None, None)
    assert faulty.asked == []


def test_many_uses_are_sent_in_one_bulk(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, told: list[Acknowledged]
) -> None:
    for feature in ("f", "g", "f", "g"):
        ledger.record(Use(UsageKey("c", "", feature), 1))
    deliver(delivery)
    assert (faulty.used("f"), faulty.used("g")) == (2, 2)
    assert [name for name, _ in faulty.asked] == ["ReportUsageBulk"]
    assert {(answer.report.key.feature_id, answer.current_usage) for answer in told} == {("f", 2), ("g", 2)}
    assert delivery.counts["acknowledged"] == 2


def test_events_count_once_however_often_they_are_sent(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.honours_keys = False
    faulty.after = abort(StatusCode.INTERNAL)
    ledger.record(Use(KEY, 1, event=Event("answered", "key-01", {"tokens": 5})))
    deliver(delivery)
    faulty.after = no_fault
    clock.advance(60)
    deliver(delivery)
    assert [name for name, _ in faulty.asked] == ["ReportEvents", "ReportEvents"]
    assert (delivery.counts["acknowledged"], ledger.counts()["sending"]) == (1, 0)


def test_a_report_that_was_counted_but_not_answered_counts_once(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.after = abort(StatusCode.INTERNAL)
    ledger.record(Use(KEY, 3))
    deliver(delivery)
    assert faulty.used() == 3
    faulty.after = no_fault
    clock.advance(60)
    deliver(delivery)
    assert faulty.used() == 3
    assert len({key for _, key in faulty.asked}) == 1
    assert len(faulty.asked) == 2


def test_a_report_whose_sending_was_interrupted_from_outside_is_sent_again_at_once(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, told: list[Acknowledged]
) -> None:
    class Struck(Exception):
        pass

    def strike(*_: object) -> None:
        raise Struck

    def interrupt(_context: ServicerContext) -> None:
        faulty.before = no_fault
        os.kill(os.getpid(), signal.SIGUSR1)

    ledger.record(Use(KEY, 2))
    faulty.before = interrupt
    handled = signal.signal(signal.SIGUSR1, strike)
    try:
        with pytest.raises(Struck):
            delivery.send_batch(SECONDS)
    finally:
        signal.signal(signal.SIGUSR1, handled)
    deliver(delivery)
    assert [answer.report.amount for answer in told] == [2]
    assert faulty.used() == 2


@pytest.mark.parametrize("days", [1.1, -1.1])
def test_a_key_is_not_relied_on_for_longer_than_a_day_nor_by_a_clock_that_was_wrong(
    ledger: Ledger, faulty: FaultySidecar, stigg: Stigg, clock: ManualClock, days: float
) -> None:
    config = Config()
    sender = Sender(lambda: stigg, config.on_uncertain, clock.now)
    delivery = Delivery(ledger, sender, config, clock.clock, lambda _: None)
    faulty.after = abort(StatusCode.INTERNAL)
    ledger.record(Use(KEY, 3))
    deliver(delivery)
    faulty.after = no_fault
    clock.set_forward(days * 86_400)
    clock.advance(60)
    deliver(delivery)
    assert [name for name, _ in faulty.asked] == ["ReportUsage"]
    assert delivery.counts["doubted"] == 1
    assert (faulty.used(), ledger.counts()["uncertain"]) == (3, 1)  # nobody can tell, and nothing is counted twice


def test_a_report_that_was_certainly_not_counted_is_sent_again(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar
) -> None:
    faulty.before = abort(StatusCode.PERMISSION_DENIED)
    ledger.record(Use(KEY, 3))
    _, error = delivery.send_batch(SECONDS)
    assert error is not None
    assert error.code == "PERMISSION_DENIED"
    assert ledger.counts()["unsent"] == 1
    faulty.before = no_fault
    deliver(delivery)
    assert faulty.used() == 3


def test_reports_go_one_by_one_to_a_sidecar_that_knows_no_bulk(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar
) -> None:
    faulty.without = {"ReportUsageBulk"}
    for feature in ("f", "g"):
        ledger.record(Use(UsageKey("c", "", feature), 2))
    deliver(delivery)
    assert (faulty.used("f"), faulty.used("g")) == (2, 2)
    assert {name for name, _ in faulty.asked} == {"ReportUsage"}


def test_a_report_that_is_refused_alone_is_set_aside(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, caplog: pytest.LogCaptureFixture
) -> None:
    for feature in ("f", "unheard-of"):
        ledger.record(Use(UsageKey("c", "", feature), 2))
    deliver(delivery)
    assert (faulty.used(), delivery.counts["rejected"], ledger.counts()["dead"]) == (2, 1, 1)
    assert "the sidecar rejects usage of 'c unheard-of'" in caplog.text


def test_a_report_that_is_never_answered_keeps_no_other_waiting(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.honours_keys = False

    for fault in (no_fault, faulty.abort_for("g", StatusCode.INTERNAL)):
        faulty.before = fault
        for feature in ("g", "f"):
            ledger.record(Use(UsageKey("c", "", feature), 1))
        for _ in range(5):
            deliver(delivery)
            clock.advance(60)
    assert (faulty.used("f"), faulty.used("g"), ledger.outstanding(KEY)) == (2, 1, 0)


@pytest.mark.parametrize("code", [StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED])
def test_a_report_that_is_always_turned_away_keeps_no_other_waiting(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock, code: StatusCode
) -> None:
    faulty.before = faulty.abort_for("g", code)
    for feature in ("g", "f"):
        ledger.record(Use(UsageKey("c", "", feature), 1))
    for _ in range(3):
        deliver(delivery)
    assert (faulty.used("f"), faulty.used("g"), ledger.counts()["unsent"]) == (1, 0, 1)
    faulty.before = no_fault
    clock.advance(60)
    deliver(delivery)
    assert (faulty.used("g"), ledger.counts()["unsent"]) == (1, 0)


def test_a_batch_that_is_always_unavailable_while_others_are_answered_is_decided_one_by_one(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    for fault in (no_fault, faulty.abort_for("g", StatusCode.UNAVAILABLE)):
        faulty.before = fault
        for feature in ("g", "f"):
            ledger.record(Use(UsageKey("c", "", feature), 1))
        deliver(delivery)
    for _ in range(10):
        deliver(delivery)
        ledger.record(Use(UsageKey("d", "", "f"), 1))
        deliver(delivery)
        clock.advance(60)
    assert (faulty.used("f"), faulty.used("g"), ledger.outstanding(KEY)) == (2, 1, 0)


def test_a_batch_that_is_always_unavailable_alone_is_decided_one_by_one_where_questions_are_answered(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    for fault in (no_fault, faulty.abort_for("g", StatusCode.UNAVAILABLE)):
        faulty.before = fault
        for feature in ("g", "f"):
            ledger.record(Use(UsageKey("c", "", feature), 1))
        deliver(delivery)
    for _ in range(30):
        clock.advance(60)
        deliver(delivery)
    assert (faulty.used("f"), faulty.used("g"), ledger.outstanding(KEY)) == (2, 1, 0)


def test_an_outage_sends_no_report_to_a_person(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.before, faulty.unanswered = abort(StatusCode.UNAVAILABLE), {"c"}
    for feature in ("g", "f"):
        ledger.record(Use(UsageKey("c", "", feature), 1))
    for _ in range(30):
        deliver(delivery)
        clock.advance(60)
    faulty.before, faulty.unanswered = no_fault, set()
    deliver(delivery)
    assert (faulty.used("f"), faulty.used("g"), delivery.counts["doubted"]) == (1, 1, 0)


def test_a_customer_about_whom_nothing_is_answered_keeps_no_other_waiting(
    make: Callable[..., Delivery], ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.honours_keys = False
    delivery = make()
    with faulty.client() as of_another_process:
        for sends, fault in ((make(of_another_process), no_fault), (delivery, abort(StatusCode.UNAVAILABLE))):
            faulty.before = fault
            for customer in ("d", "c"):
                ledger.record(Use(UsageKey(customer, "", "f"), 1))
            deliver(sends)
            clock.advance(60)
    faulty.before, faulty.unanswered = no_fault, {"d"}
    for _ in range(5):
        clock.advance(60)
        deliver(delivery)
    assert (faulty.used(), ledger.outstanding(KEY)) == (2, 0)
    assert ledger.counts()["uncertain"] == 1


def test_who_is_turned_away_for_a_night_keeps_no_other_waiting(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.before = faulty.abort_for("g", StatusCode.PERMISSION_DENIED)
    ledger.record(Use(UsageKey("c", "", "g"), 1))
    for _ in range(1_100):
        delivery.send_batch(SECONDS)
        clock.advance(10)
    ledger.record(Use(KEY, 1))
    deliver(delivery)
    assert (faulty.used("f"), ledger.counts()["unsent"]) == (1, 1)


def test_reports_that_fail_slowly_leave_half_of_the_time_to_others(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    slow = 6

    def fail_slowly_for_some(context: ServicerContext) -> None:
        if faulty.reported != {"answered"}:
            clock.advance(SECONDS)
            context.abort(StatusCode.UNAVAILABLE, "on purpose")

    faulty.before = fail_slowly_for_some
    for number in range(slow):
        ledger.record(Use(KEY, 1, event=Event(f"slow-{number}", f"key-{number}", {})))
    for number in range(100):
        ledger.record(Use(KEY, 1, event=Event("answered", f"other-{number}", {})))
        delivery.send_batch(SECONDS)
        clock.advance(1)
    assert delivery.counts["acknowledged"] == 100


def test_what_failed_slowly_and_was_sent_by_another_process_makes_nothing_wait_later(
    make: Callable[..., Delivery], ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    def fail_slowly(context: ServicerContext) -> None:
        clock.advance(20)
        context.abort(StatusCode.UNAVAILABLE, "on purpose")

    one, other = make(), make()
    faulty.before = fail_slowly
    ledger.record(Use(KEY, 1))
    one.send_batch(SECONDS)
    faulty.before = no_fault
    clock.advance(60)
    deliver(other)
    clock.advance(120)
    faulty.before = abort(StatusCode.UNAVAILABLE)
    ledger.record(Use(KEY, 1))
    one.send_batch(SECONDS)
    faulty.before = no_fault
    clock.advance(1)
    deliver(one)
    assert faulty.used() == 2


def test_read_backs_that_fail_in_a_row_end_the_look(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def fail(_sender: Sender, key: UsageKey) -> None:
        looks.append(key.customer_id)
        raise SidecarUnavailable("on purpose")

    monkeypatch.setattr(Sender, "read_back", fail)
    ids = [f"customer-{number}" for number in range(6)]
    for customer in ids:
        ledger.record(Use(UsageKey(customer, "", "f"), 1))
    batch = ledger.take_batch(100, 30)
    assert batch is not None
    ledger.doubt(batch.reports, 0, "it was sent and not answered")
    delivery.decide_uncertain()
    assert looks == ids[:4]
    delivery.decide_uncertain()
    assert looks == ids
    clock.advance(1)
    delivery.decide_uncertain()
    assert looks == [*ids, *ids[:4]]
    clock.advance(1)
    delivery.decide_uncertain()
    assert looks == [*ids, *ids[:4], *ids[4:]]


@pytest.mark.parametrize("code", [StatusCode.PERMISSION_DENIED, StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED])
def test_an_event_that_always_fails_keeps_no_other_waiting(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock, code: StatusCode
) -> None:
    faulty.before = faulty.abort_for("g", code)
    for number in range(25):
        ledger.record(Use(KEY, 1, event=Event("g" if number == 3 else "answered", f"key-{number}", {})))
    for _ in range(60):
        delivery.send_batch(SECONDS)
    assert (delivery.counts["acknowledged"], ledger.counts()["unsent"] + ledger.counts()["sending"]) == (24, 1)
    faulty.before = no_fault
    clock.advance(60)
    deliver(delivery)
    assert (delivery.counts["acknowledged"], set(ledger.counts().values())) == (25, {0})


@pytest.mark.parametrize("without", [{"ReportUsage", "ReportUsageBulk"}, {"ReportUsageBulk"}])
def test_what_a_sidecar_does_not_implement_now_waits_until_it_does(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock, without: set[str]
) -> None:
    faulty.without = without
    for feature in ("f", "g"):
        ledger.record(Use(UsageKey("c", "", feature), 2))
    for _ in range(5):
        deliver(delivery)
        clock.advance(60)
    assert (ledger.counts()["dead"], ledger.counts()["uncertain"]) == (0, 0)
    faulty.without = set()
    deliver(delivery)
    assert (faulty.used("f"), faulty.used("g"), set(ledger.counts().values())) == (2, 2, {0})


class TestUncertainReports:
    """Against a sidecar that, like Stigg's own, knows no idempotency key."""

    @pytest.fixture(params=["before", "after"], ids=["lost", "counted"])
    def lose_answers(self, request: pytest.FixtureRequest, faulty: FaultySidecar) -> Callable[[], None]:
        """From now on the sidecar answers no report, which it has counted, or has not."""
        faulty.honours_keys = False
        return lambda: setattr(faulty, request.param, abort(StatusCode.INTERNAL))

    @pytest.fixture
    def doubtful(
        self,
        make: Callable[..., Delivery],
        ledger: Ledger,
        faulty: FaultySidecar,
        lose_answers: Callable[[], None],
    ) -> Callable[..., Delivery]:
        """Makes a delivery that reported 2 units, after 1 that the sidecar told of, and got no answer."""

        def doubtful(**settings: str) -> Delivery:
            delivery = make(**settings)
            ledger.record(Use(KEY, 1))
            deliver(delivery)
            lose_answers()
            ledger.record(Use(KEY, 2))
            deliver(delivery)
            faulty.before = faulty.after = no_fault
            return delivery

        return doubtful

    def deliver_later(self, delivery: Delivery, clock: ManualClock) -> None:
        for _ in range(3):
            clock.advance(60)
            deliver(delivery)

    def test_are_reconciled_by_reading_the_usage_back(
        self, doubtful: Callable[..., Delivery], faulty: FaultySidecar, ledger: Ledger, clock: ManualClock
    ) -> None:
        delivery = doubtful()
        self.deliver_later(delivery, clock)
        assert (faulty.used(), delivery.counts["doubted"]) == (3, 1)
        assert not any(ledger.counts().values())

    def test_stay_visible_when_the_figures_do_not_tell(
        self,
        doubtful: Callable[..., Delivery],
        faulty: FaultySidecar,
        ledger: Ledger,
        clock: ManualClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        delivery = doubtful()
        other = ReportUsageRequest(customer_id="c", feature_id="f", value=10)
        faulty.engine.answer("ReportUsage", other)
        self.deliver_later(delivery, clock)
        assert ledger.counts()["uncertain"] == 1
        assert "waits for a decision" in caplog.text
        before = faulty.used()
        ledger.record(Use(KEY, 1))
        deliver(delivery)
        assert faulty.used() == before + 1

    def test_are_sent_again_if_told_so(
        self, doubtful: Callable[..., Delivery], faulty: FaultySidecar, clock: ManualClock
    ) -> None:
        delivery = doubtful(ON_UNCERTAIN="resend")
        before = faulty.used()
        self.deliver_later(delivery, clock)
        assert faulty.used() == before + 2

    def test_are_dropped_if_told_so(
        self,
        doubtful: Callable[..., Delivery],
        faulty: FaultySidecar,
        ledger: Ledger,
        clock: ManualClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        delivery = doubtful(ON_UNCERTAIN="drop")
        before = faulty.used()
        self.deliver_later(delivery, clock)
        assert faulty.used() == before
        assert not any(ledger.counts().values())
        assert "are dropped" in caplog.text

    def test_are_not_decided_by_a_fallback(
        self,
        doubtful: Callable[..., Delivery],
        make: Callable[..., Delivery],
        faulty: FaultySidecar,
        ledger: Ledger,
        clock: ManualClock,
    ) -> None:
        doubtful()
        clock.advance(60)
        faulty.without = {"GetMeteredEntitlement"}
        with faulty.client(fallbacks={"f": Fallback(has_access=True)}) as stigg:
            blind = make(stigg)
            assert blind.send_batch(SECONDS)[1] is None
            clock.advance(60)
            blind.decide_uncertain()
        assert ledger.counts()["uncertain"] == 1

    def test_no_look_is_begun_after_the_time_is_up_and_the_others_come_again_at_once(
        self,
        delivery: Delivery,
        faulty: FaultySidecar,
        ledger: Ledger,
        clock: ManualClock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        looks: list[str] = []
        read_back = Sender.read_back

        def slow(sender: Sender, key: UsageKey) -> wire.MeteredEntitlement | None:
            clock.advance(1)
            looks.append(key.customer_id)
            return read_back(sender, key)

        monkeypatch.setattr(Sender, "read_back", slow)
        ids = [f"customer-{number}" for number in range(8)]
        for customer in ids:
            ledger.record(Use(UsageKey(customer, "", "f"), 1))
        batch = ledger.take_batch(100, 30)
        assert batch is not None
        ledger.doubt(batch.reports, 0, "it was sent and not answered")
        delivery.decide_uncertain(2.5)
        assert looks == ids[:3]
        delivery.decide_uncertain(2.5)
        assert looks == ids[:6]

    def test_that_are_totals_are_sent_again(
        self,
        make: Callable[..., Delivery],
        faulty: FaultySidecar,
        lose_answers: Callable[[], None],
        ledger: Ledger,
        clock: ManualClock,
    ) -> None:
        delivery = make()
        lose_answers()
        ledger.record(Use(KEY, 7, is_set=True))
        ledger.record(Use(UsageKey("c", "", "g"), 2))
        deliver(delivery)
        faulty.before = faulty.after = no_fault
        self.deliver_later(delivery, clock)
        assert (faulty.used("f"), delivery.counts["doubted"]) == (7, 1)

    def test_of_a_sidecar_that_cannot_tell_of_its_keys_are_not_sent_again(
        self,
        make: Callable[..., Delivery],
        faulty: FaultySidecar,
        lose_answers: Callable[[], None],
        ledger: Ledger,
        clock: ManualClock,
    ) -> None:
        faulty.without = {"ReloadEntitlements"}
        delivery = make()
        lose_answers()
        ledger.record(Use(KEY, 3))
        deliver(delivery)
        faulty.before = faulty.after = no_fault
        clock.advance(60)
        deliver(delivery)
        assert (len(faulty.asked), delivery.counts["doubted"], ledger.counts()["uncertain"]) == (1, 1, 1)

    def test_one_that_cannot_be_read_back_stops_neither_others_nor_for_long_its_own_key(
        self,
        make: Callable[..., Delivery],
        faulty: FaultySidecar,
        lose_answers: Callable[[], None],
        ledger: Ledger,
        clock: ManualClock,
    ) -> None:
        delivery = make()
        for feature in ("f", "g"):
            ledger.record(Use(UsageKey("c", "", feature), 1))
        deliver(delivery)
        lose_answers()
        for feature in ("f", "g"):
            ledger.record(Use(UsageKey("c", "", feature), 2))
        deliver(delivery)
        faulty.before = faulty.after = no_fault
        faulty.unreadable = {"f"}
        clock.advance(60)
        deliver(delivery)
        clock.advance(60)
        deliver(delivery)
        assert (ledger.counts()["uncertain"], ledger.counts()["waiting"]) == (1, 0)
        clock.advance(60)
        deliver(delivery)
        assert faulty.used("g") == 3
        assert (ledger.counts()["uncertain"], ledger.counts()["waiting"]) == (1, 1)
        counted = faulty.used("f")
        ledger.record(Use(KEY, 5))
        deliver(delivery)
        assert faulty.used("f") == counted + 5


@pytest.mark.parametrize("status", [StatusCode.INVALID_ARGUMENT, StatusCode.UNIMPLEMENTED])
def test_reports_in_doubt_that_are_turned_away_when_they_come_again_count_once(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock, status: StatusCode
) -> None:
    for feature in ("f", "g"):
        ledger.record(Use(UsageKey("c", "", feature), 1))
    deliver(delivery)
    faulty.after = abort(StatusCode.INTERNAL)
    for feature in ("f", "g"):
        ledger.record(Use(UsageKey("c", "", feature), 2))
    deliver(delivery)
    faulty.before, faulty.after = abort(status), no_fault
    clock.advance(60)
    deliver(delivery)
    faulty.before = no_fault
    for _ in range(3):
        clock.advance(60)
        deliver(delivery)
    assert (faulty.used("f"), faulty.used("g")) == (3, 3)
    assert (delivery.counts["acknowledged"], delivery.counts["rejected"]) == (4, 0)
    assert set(ledger.counts().values()) == {0}


def test_a_report_in_doubt_waits_for_as_long_as_the_key_is_not_accepted(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.after = abort(StatusCode.INTERNAL)
    ledger.record(Use(KEY, 3))
    deliver(delivery)
    faulty.before, faulty.after = abort(StatusCode.UNAUTHENTICATED), no_fault
    for _ in range(10):
        clock.advance(60)
        deliver(delivery)
    assert (ledger.counts()["sending"], delivery.counts["doubted"]) == (1, 0)
    faulty.before = no_fault
    clock.advance(60)
    deliver(delivery)
    assert (faulty.used(), delivery.counts["acknowledged"]) == (3, 1)


def test_a_report_that_reaches_the_sidecar_and_is_never_answered_stops_no_other(
    delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
) -> None:
    def poison(context: ServicerContext) -> None:
        if faulty.reported == {"f"}:
            context.abort(StatusCode.INTERNAL, "on purpose")

    faulty.before = poison
    ledger.record(Use(KEY, 1))
    deliver(delivery)
    ledger.record(Use(UsageKey("c", "", "g"), 2))
    deliver(delivery)
    assert faulty.used("g") == 2
    for _ in range(10):
        clock.advance(60)
        deliver(delivery)
    assert (ledger.counts()["sending"], delivery.counts["doubted"]) == (
        1,
        0,
    )  # with its key it may always be sent again
    faulty.before = no_fault
    clock.advance(60)
    deliver(delivery)
    assert (faulty.used("f"), ledger.counts()["sending"]) == (1, 0)


def test_who_was_paused_for_longer_than_the_lease_sends_nothing(
    ledger: Ledger, stigg: Stigg, faulty: FaultySidecar, clock: ManualClock
) -> None:
    instants = chain([0.0, 31.0, 31.0, 31.1], repeat(31.2))
    paused = Clock(monotonic=lambda: next(instants), now=clock.now)
    config = Config()
    delivery = Delivery(ledger, Sender(lambda: stigg, config.on_uncertain), config, paused, lambda _: None)
    ledger.record(Use(KEY, 1))
    batch, _ = delivery.send_batch(SECONDS)
    assert batch is not None
    assert (faulty.asked, ledger.counts()["sending"]) == ([], 1)
    clock.advance(31)
    delivery.send_batch(SECONDS)
    assert faulty.used() == 1


class TestTimes:
    """A host whose clock was ahead: the sidecar refuses reports from the future."""

    @pytest.fixture(autouse=True)
    def strict(self, faulty: FaultySidecar, clock: ManualClock) -> None:
        begun = clock.now().timestamp()

        def refuse(context: ServicerContext) -> None:
            if faulty.reported_at > begun + 300:
                context.abort(StatusCode.INVALID_ARGUMENT, "timestamp: it lies in the future")

        faulty.before = refuse

    @pytest.fixture
    def ahead(self, clock: ManualClock, ledger: Ledger) -> None:
        clock.advance(3_600)
        ledger.record(Use(KEY, 3))

    @pytest.mark.usefixtures("ahead")
    def test_is_corrected_before_it_is_sent_if_the_clock_is_right_again(
        self, delivery: Delivery, faulty: FaultySidecar, clock: ManualClock
    ) -> None:
        clock.advance(-3_600)
        deliver(delivery)
        assert faulty.used() == 3

    @pytest.mark.usefixtures("ahead")
    def test_that_is_refused_is_corrected_once_the_clock_is_right(
        self, delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
    ) -> None:
        deliver(delivery)
        assert (faulty.used(), ledger.counts()["unsent"]) == (0, 1)
        clock.advance(-3_600)
        deliver(delivery)
        clock.advance(6)
        deliver(delivery)
        assert (faulty.used(), ledger.counts()["unsent"]) == (3, 0)

    @pytest.mark.usefixtures("ahead")
    def test_that_is_refused_twice_waits_for_a_person_whose_retry_corrects_it(
        self, delivery: Delivery, ledger: Ledger, faulty: FaultySidecar, clock: ManualClock
    ) -> None:
        deliver(delivery)
        clock.advance(6)
        deliver(delivery)
        assert ledger.counts()["dead"] == 1
        clock.advance(-3_606)
        ledger.retry([entry.id for entry in ledger.entries([State.DEAD], 1)])
        deliver(delivery)
        assert faulty.used() == 3

"""What an observer of a guard is told, and that it cannot do harm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import ManualClock
from stigg_guard import Config, FeatureDenied, Guard, SidecarUnavailable, StiggGuardError
from stigg_guard.entitlements import Customer, Entitlement, Source
from stigg_guard.ledger import Acknowledged, Use
from stigg_guard.observer import Observer, Step
from stigg_guard.sidecar.server import Sidecar

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"  # 3 of 6 are used
NOBODY_LISTENS = "127.0.0.1:1"


class Witness(Observer):
    def __init__(self) -> None:
        self.denials: list[FeatureDenied] = []
        self.reports: list[Acknowledged] = []
        self.losses: list[StiggGuardError] = []
        self.lost = threading.Event()

    def denied(self, error: FeatureDenied) -> None:
        self.denials.append(error)

    def reported(self, answer: Acknowledged) -> None:
        self.reports.append(answer)

    def lost_contact(self, error: StiggGuardError) -> None:
        self.losses.append(error)
        self.lost.set()


class Broken(Observer):
    def denied(self, error: FeatureDenied) -> None:
        raise RuntimeError("the observer's own fault")

    def reported(self, answer: Acknowledged) -> None:
        raise RuntimeError("the observer's own fault")


@pytest.fixture
def watched(sidecar: Sidecar, clock: ManualClock) -> Iterator[Callable[..., Guard]]:
    made: list[Guard] = []

    def make(observer: Observer, **settings: object) -> Guard:
        config = Config.from_mapping({"SIDECAR": sidecar.address, "LEDGER": "memory://", **settings})
        made.append(Guard(config, clock=clock.clock, observer=observer))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


def test_denials_are_told_of_and_mere_checks_are_not(watched: Callable[..., Guard]) -> None:
    guard = watched(witness := Witness())
    assert not guard.check("feature-analytics", customer=CUSTOMER)
    assert witness.denials == []
    with pytest.raises(FeatureDenied):
        guard.require("feature-analytics", customer=CUSTOMER)
    with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 4, customer=CUSTOMER):
        pytest.fail("oversold")
    assert [denial.entitlement.feature_id for denial in witness.denials] == ["feature-analytics", TEMPLATES]


def test_counted_reports_are_told_of(watched: Callable[..., Guard]) -> None:
    guard = watched(witness := Witness(), REPORT="inline")
    with guard.consume(TEMPLATES, 2, customer=CUSTOMER):
        pass
    (answer,) = witness.reports
    assert (answer.report.key.customer_id, answer.report.amount, answer.current_usage) == (CUSTOMER, 2, 5)


def test_lost_contact_is_told_of_once(watched: Callable[..., Guard]) -> None:
    guard = watched(witness := Witness(), SIDECAR=NOBODY_LISTENS)
    guard.report(TEMPLATES, 1, customer=CUSTOMER)
    assert witness.lost.wait(10)
    assert guard.flush(timeout=0.1) == 1
    assert len(witness.losses) == 1


def test_what_an_observer_raises_is_logged_and_changes_nothing(
    watched: Callable[..., Guard], caplog: pytest.LogCaptureFixture
) -> None:
    guard = watched(Broken(), REPORT="inline")
    with guard.consume(TEMPLATES, 2, customer=CUSTOMER):
        pass
    with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 2, customer=CUSTOMER):
        pytest.fail("oversold")
    assert guard.stats()["acknowledged"] == 1
    assert caplog.text.count("an observer of the guard failed") == 2


class Diary(Observer):
    """Writes down all that happens, with its figures."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []

    def checked(self, answer: Entitlement, customer: Customer) -> None:
        self.lines.append(("checked", answer.feature_id, str(customer), answer.has_access, answer.source))

    def unanswered(self, feature: str, customer: Customer, error: StiggGuardError) -> None:
        self.lines.append(("unanswered", feature, str(customer), type(error)))

    def fetched(self, step: Step) -> None:
        self.lines.append(("fetched", *self._of(step)))

    def held(self, step: Step) -> None:
        self.lines.append(("held", *self._of(step)))

    def used(self, use: Use) -> None:
        self.lines.append(("used", use.key.feature_id, use.amount))

    def sent(self, step: Step) -> None:
        self.lines.append(("sent", *self._of(step)))

    def invalidated(self, customer: Customer | None) -> None:
        self.lines.append(("invalidated", str(customer)))

    def _of(self, step: Step) -> tuple[object, ...]:
        return str(step.customer), step.features, None if step.error is None else type(step.error)


def test_each_check_is_told_of_with_its_source_and_each_fetch(watched: Callable[..., Guard]) -> None:
    guard = watched(diary := Diary())
    for _ in range(2):
        assert guard.check(TEMPLATES, customer=CUSTOMER)
    assert not guard.check("feature-analytics", customer=CUSTOMER)
    assert diary.lines == [
        ("fetched", CUSTOMER, (), None),
        ("checked", TEMPLATES, CUSTOMER, True, Source.SIDECAR),
        ("checked", TEMPLATES, CUSTOMER, True, Source.CACHE),
        ("fetched", CUSTOMER, ("feature-analytics",), None),
        ("checked", "feature-analytics", CUSTOMER, False, Source.CACHE),
    ]


def test_a_hold_its_usage_and_its_report_are_told_of(watched: Callable[..., Guard]) -> None:
    guard = watched(diary := Diary(), REPORT="inline")
    guard.check(TEMPLATES, customer=CUSTOMER)
    diary.lines.clear()
    with guard.consume(TEMPLATES, 2, customer=CUSTOMER):
        pass
    assert diary.lines == [
        ("held", CUSTOMER, (TEMPLATES,), None),
        ("checked", TEMPLATES, CUSTOMER, True, Source.CACHE),
        ("used", TEMPLATES, 2),
        ("sent", "None", (TEMPLATES,), None),
    ]


def test_a_denied_hold_is_told_of_with_its_error(watched: Callable[..., Guard]) -> None:
    guard = watched(diary := Diary())
    with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 4, customer=CUSTOMER):
        pytest.fail("oversold")
    assert diary.lines[-2:] == [
        ("held", CUSTOMER, (TEMPLATES,), FeatureDenied),
        ("checked", TEMPLATES, CUSTOMER, False, Source.SIDECAR),
    ]


def test_a_check_without_an_answer_is_told_of(watched: Callable[..., Guard]) -> None:
    guard = watched(diary := Diary(), SIDECAR=NOBODY_LISTENS)
    with pytest.raises(SidecarUnavailable):
        guard.check(TEMPLATES, customer=CUSTOMER)
    assert diary.lines == [
        ("fetched", CUSTOMER, (), SidecarUnavailable),
        ("unanswered", TEMPLATES, CUSTOMER, SidecarUnavailable),
    ]


def test_what_is_outdated_is_told_of(watched: Callable[..., Guard]) -> None:
    guard = watched(diary := Diary())
    guard.forget(CUSTOMER)
    guard.reload(Customer(CUSTOMER, "site-01"))
    guard._changed(frozenset({CUSTOMER}))
    guard._changed(None)
    told = [line[1] for line in diary.lines if line[0] == "invalidated"]
    assert told == [CUSTOMER, f"{CUSTOMER}/site-01", CUSTOMER, "None"]


def test_an_observer_comes_later_and_goes(watched: Callable[..., Guard]) -> None:
    guard = watched(first := Diary())
    leave = guard.observe(second := Diary())
    guard.check(TEMPLATES, customer=CUSTOMER)
    assert first.lines == second.lines
    leave()
    leave()
    guard.check(TEMPLATES, customer=CUSTOMER)
    assert (len(first.lines), len(second.lines)) == (3, 2)


def test_a_step_has_the_time_that_it_took(watched: Callable[..., Guard], clock: ManualClock) -> None:
    class Slow(Observer):
        steps: list[Step]

        def fetched(self, step: Step) -> None:
            self.steps = [step]

    guard, began_at = watched(slow := Slow()), clock.now()
    ask = guard.stigg.get_entitlements_state_v2

    def takes_long(request: Any, **options: Any) -> Any:
        clock.advance(2)
        return ask(request, **options)

    guard.stigg.get_entitlements_state_v2 = takes_long  # type: ignore[method-assign] # it really takes long
    guard.check(TEMPLATES, customer=CUSTOMER)
    assert [(step.began_at, step.seconds) for step in slow.steps] == [(began_at, 2.0)]

"""What an observer of a guard is told, and that it cannot do harm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from conftest import ManualClock
from stigg_guard import Config, FeatureDenied, Guard, StiggGuardError
from stigg_guard.ledger import Acknowledged
from stigg_guard.observer import Observer
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

"""The signals: who is told what, and that receivers that raise change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from queue import Queue
from typing import Any

import pytest
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from stigg_guard import Customer, Guard, Reason
from stigg_guard.django import (
    consumes_usage,
    feature_denied,
    get_guard,
    requires_feature,
    usage_lost_contact,
    usage_reported,
)
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # essentials: no analytics

Told = list["dict[str, Any]"]


def create(request: HttpRequest) -> HttpResponse:
    return HttpResponse("created")


urlpatterns = [
    path("create", consumes_usage(2, TEMPLATES)(create)),
    path("analytics", requires_feature("feature-analytics")(create)),
]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar and has but one customer."""
    settings.STIGG_GUARD = {"SIDECAR": sidecar.address, "TIMEOUT": 20, "CUSTOMER": lambda _: DEMO, "REPORT": "inline"}
    return settings


@pytest.fixture
def hear() -> Iterator[Callable[[Signal], Told]]:
    """Connects to a signal, and has what it is told."""
    connected: list[Callable[[], object]] = []

    def hear(signal: Signal) -> Told:
        told: Told = []

        def receive(**told_of: Any) -> None:
            told.append(told_of)

        signal.connect(receive, sender=Guard, weak=False)
        connected.append(lambda: signal.disconnect(receive, sender=Guard))
        return told

    yield hear
    for disconnect in connected:
        disconnect()


def fail(**_: Any) -> None:
    raise RuntimeError("out of paper")


def test_a_denial_is_told(hear: Callable[[Signal], Told], client: Client) -> None:
    told = hear(feature_denied)
    client.get("/analytics")
    [denied] = told
    assert (denied["using"], denied["customer"], denied["feature"]) == ("default", Customer(DEMO), "feature-analytics")
    assert denied["entitlement"].reason is Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION


def test_a_report_is_told(hear: Callable[[Signal], Told], client: Client) -> None:
    told = hear(usage_reported)
    client.get("/create")
    get_guard().report(TEMPLATES, 1, customer=Customer(DEMO, "site-01"), set_total=True)
    first, second = told
    assert (first["customer"], first["feature"], first["amount"]) == (Customer(DEMO), TEMPLATES, 2)
    assert (first["is_set"], first["current_usage"]) == (False, 5)
    assert (second["customer"], second["is_set"]) == (Customer(DEMO, "site-01"), True)


def test_an_outage_is_told(sidecar: Sidecar) -> None:
    told: Queue[Mapping[str, Any]] = Queue()

    def receive(**told_of: Any) -> None:
        told.put(told_of)

    usage_lost_contact.connect(receive)
    sidecar.stop()
    get_guard().report(TEMPLATES, 1, customer=DEMO)
    lost = told.get(timeout=30)  # of the thread that reports
    assert (lost["using"], "sidecar" in str(lost["error"])) == ("default", True)


@pytest.mark.parametrize(
    ("signal", "url", "status"), [(feature_denied, "/analytics", 402), (usage_reported, "/create", 200)]
)
def test_a_receiver_that_raises_is_logged_and_changes_nothing(
    client: Client, caplog: pytest.LogCaptureFixture, signal: Signal, url: str, status: int
) -> None:
    signal.connect(fail)
    try:
        assert client.get(url).status_code == status
    finally:
        signal.disconnect(fail)
    assert get_guard().stats()["unsent"] == 0
    assert any("out of paper" in message for message in caplog.messages)

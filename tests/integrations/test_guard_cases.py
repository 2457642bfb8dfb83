"""The table of guarded views over each framework, with synchronous and with asynchronous views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pytest_django.plugin import DjangoDbBlocker

from integrations.guard_cases import CASES, ESSENTIALS, KEY, TEMPLATES, Answer, Case, Skin, consuming, keyed
from integrations.guard_skins import (
    AsyncDjangoSite,
    AsyncFlaskSite,
    DjangoSite,
    FlaskSite,
    Site,
    signed_in,
    signed_in_later,
)
from stigg_guard import PER_DOWNLOAD, Guard
from stigg_guard.sidecar.server import Sidecar

Serve = Callable[[Case], Site]

PATIENT = {"TIMEOUT": 20}  # a busy machine is no outage


@pytest.fixture(params=["flask", "flask async", "django", "django async"])
def serve(
    request: pytest.FixtureRequest,
    sidecar: Sidecar,
    settings: Any,
    tmp_path: Path,
    django_db_blocker: DjangoDbBlocker,
) -> Iterator[Serve]:
    """Has a case's view served by a framework. At a request's end Django looks after connections of earlier tests."""
    sites: list[Site] = []

    def serve(case: Case) -> Site:
        is_async = request.param.endswith("async")
        customer = signed_in_later if is_async else signed_in
        given = {"SIDECAR": sidecar.address, "CUSTOMER": customer, "LEDGER": "memory://", **PATIENT, **case.settings}
        if "flask" in request.param:
            sites.append((AsyncFlaskSite if is_async else FlaskSite)(case, given, tmp_path))
        else:
            sites.append((AsyncDjangoSite if is_async else DjangoSite)(case, given, settings))
        return sites[-1]

    with django_db_blocker.unblock():
        yield serve
    for site in sites:
        site.close()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_framework_does_what_the_table_says(case: Case, serve: Serve, make_guard: Callable[..., Guard]) -> None:
    guard = make_guard(**PATIENT)
    before = counted(guard)
    site = serve(case)
    assert [site.ask(**differently).status for differently, _ in case.before] == [status for _, status in case.before]
    answer = site.ask()
    assert answer.status == case.status
    assert {name: answer.headers.get(name) for name in case.told} == case.told
    assert case.body in (None, answer.body)
    assert (len(site.runs), answer.held) == (case.runs, case.held)
    site.guard.flush()
    assert site.guard.stats()["held"] == 0
    after = counted(guard)
    assert {name: after[name] - usage for name, usage in before.items() if after[name] != usage} == case.used


def counted(guard: Guard) -> Mapping[str, float]:
    """What the sidecar has counted for the customer of the table."""
    guard.reload(ESSENTIALS)
    return {name: answer.current_usage for name, answer in guard.entitlements(ESSENTIALS).items()}


def test_a_request_that_goes_on_is_in_progress(serve: Serve) -> None:
    """The client asks again while the view runs."""
    others: list[Answer] = []

    def answer(skin: Skin) -> Any:
        with ThreadPoolExecutor(1) as client:
            others.append(client.submit(site.ask).result())
        return skin.text()

    site = serve(Case(guards=keyed(), headers=KEY, answers=answer))
    assert site.ask().status == 200
    assert [(other.status, other.headers["Retry-After"]) for other in others] == [(409, "1")]
    assert len(site.runs) == 1


def test_ranges_of_a_file_that_are_sent_at_once_are_one_use(serve: Serve, make_guard: Callable[..., Guard]) -> None:
    """The client asks for a second range while the first is sent, and for a third when both were."""
    guard = make_guard(**PATIENT)
    before = counted(guard)[TEMPLATES]
    others: list[Answer] = []

    def parts() -> Iterator[str]:
        yield "one "
        if len(site.runs) == 1:
            with ThreadPoolExecutor(1) as client:
                others.append(client.submit(site.ask).result())
        yield "two"

    case = Case(guards=consuming(3, key=PER_DOWNLOAD), answers=lambda skin: skin.part('"1"', parts()), method="GET")
    site = serve(case)
    answers = [site.ask(), *others, site.ask()]
    assert [(answer.status, answer.body) for answer in answers] == [(206, "one two")] * 3
    site.guard.flush()
    assert counted(guard)[TEMPLATES] - before == 3


def test_a_file_that_is_denied_is_closed(serve: Serve) -> None:
    """The view has opened it already."""
    files: list[BytesIO] = []

    def answer(skin: Skin) -> Any:
        files.append(BytesIO(b"one two"))
        return skin.file('"1"', files[-1])

    site = serve(Case(guards=consuming(4, key=PER_DOWNLOAD), answers=answer, method="GET"))
    assert site.ask().status == 402
    assert [file.closed for file in files] == [True]

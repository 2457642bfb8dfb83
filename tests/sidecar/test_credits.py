"""Wallets of the local sidecar: credits that are granted, bought, used and voided, and what usage costs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import ManualClock
from stigg_guard import ApiRejected, ConfigError, Guard, Reason
from stigg_guard.api import Api
from stigg_guard.sidecar.catalog import CreditRate, parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

CATALOG = """
[currencies.credits]
display_name = "Credits"
[currencies.others]
[features.tokens]
type = "metered"
meter = "incremental"
credit_rate = { currency = "credits", amount = 0.1 }
[plans.metered.entitlements]
tokens = {}
[plans.metered.credits]
credits = { amount = 10, reset = "month" }
[plans.wallet.entitlements]
tokens = {}
[plans.included.entitlements]
tokens = { limit = 5 }
[plans.soft.entitlements]
tokens = {}
[plans.soft.credits]
credits = { amount = 1, soft = true }
[customers.m]
plan = "metered"
[customers.m.resources.r]
plan = "wallet"
[customers.w]
plan = "wallet"
[customers.i]
plan = "included"
[customers.s]
plan = "soft"
[meters.spoke]
feature = "tokens"
aggregation = "sum"
dimension = "n"
"""


@pytest.fixture
def sidecar(clock: ManualClock, tmp_path: Path) -> Iterator[Sidecar]:
    with started(clock, tmp_path) as running:
        yield running


@contextmanager
def started(clock: ManualClock, folder: Path) -> Iterator[Sidecar]:
    engine = Engine(parse_catalog(CATALOG), Store(folder / "state.sqlite3"), now=clock.now)
    with closing(engine), Sidecar(engine) as running:
        yield running


@pytest.fixture
def guard(sidecar: Sidecar, make_guard: Callable[..., Guard]) -> Guard:
    return make_guard(API_KEY="any", API_URL=f"http://{sidecar.http_address}", LEDGER="memory://")


@pytest.fixture
def api(guard: Guard) -> Api:
    return guard.api


def give(api: Api, amount: float, customer: str = "w", **more: Any) -> str:
    """The id of a new grant."""
    given = {"customer_id": customer, "currency_id": "credits", "display_name": "G", "grant_type": "PROMOTIONAL"}
    return api.grant_credits({**given, "amount": amount, **more}).create_credit_grant.grant_id


def used(api: Api, customer: str = "w") -> dict[str, float]:
    """What was used of each grant, in the order of their use."""
    edges = api.get_credit_grants({"customer_id": customer}).credit_grants.edges
    return {one.node.grant_id: one.node.consumed_amount for one in edges}


def balance(api: Api, customer: str = "w") -> tuple[float, float, float]:
    """What is left, what was used, what was given."""
    (one,) = api.get_credit_balance({"customer_id": customer}).credit_balance_summary.balances
    return one.current_balance, one.total_consumed, one.total_granted


def consume(api: Api, amount: float, key: str = "k", customer: str = "w", **more: Any) -> None:
    api.consume_credits(
        {"customer_id": customer, "currency_id": "credits", "amount": amount, "idempotency_key": key, **more}
    )


def report(api: Api, value: float, customer: str = "w", **more: Any) -> None:
    api.report_usage({"customer_id": customer, "feature_id": "tokens", "value": value, **more})


def ledger(api: Api, customer: str = "w") -> list[tuple[str, float, str]]:
    """What happened, to how many credits, of which grant; the newest first."""
    return [
        (str(one.event_type).removeprefix("CREDITS_"), one.amount, one.credit_grant_id)
        for one in api.iter_credit_ledger({"customer_id": customer})
    ]


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ApiRejected) as caught:
        call()
    return caught.value.code


def test_credits_that_are_granted_are_there_at_once(guard: Guard, api: Api) -> None:
    assert guard.peek("credits", customer="w").reason is Reason.FEATURE_NOT_FOUND
    assert guard.check("tokens", customer="w").reason is Reason.INSUFFICIENT_CREDITS
    given = {"amount": 25, "currency": "EUR"}
    answer = api.grant_credits(
        {
            "customer_id": "w",
            "currency_id": "credits",
            "amount": 12.5,
            "grant_type": "PAID",
            "display_name": "Top-up",
            "cost": given,
            "comment": "thanks",
            "additional_meta_data": {"order": 7},
        }
    ).create_credit_grant
    assert (str(answer.status), str(answer.grant_type), answer.amount, answer.consumed_amount) == (
        "ACTIVE",
        "PAID",
        12.5,
        0,
    )
    assert (str(answer.cost.currency), answer.cost.amount, answer.comment) == ("EUR", 25, "thanks")
    assert (answer.display_name, answer.additional_meta_data, answer.resource_id) == ("Top-up", {"order": 7}, None)
    told = guard.peek("credits", customer="w")
    assert (told.usage_limit, told.current_usage, told.has_access) == (12.5, 0, True)
    assert guard.check("tokens", customer="w", requested_usage=125)
    assert not guard.check("tokens", customer="w", requested_usage=126)


def test_they_are_used_by_priority_then_by_expiry_then_as_they_were_given(api: Api, clock: ManualClock) -> None:
    soon, late = ((clock.now() + timedelta(days=days)).isoformat() for days in (1, 9))
    paid = give(api, 1, grant_type="PAID")
    last = give(api, 1, priority=2, expire_at=soon)
    late_ = give(api, 1, expire_at=late)
    promotion = give(api, 1)
    younger = give(api, 1, effective_at=clock.now().isoformat())
    soon_ = give(api, 1, expire_at=soon)
    assert list(used(api)) == [soon_, late_, promotion, younger, paid, last]
    consume(api, 2.25)
    assert list(used(api).values()) == [1, 1, 0.25, 0, 0, 0]
    assert ledger(api)[:3] == [("CONSUMED", 0.25, promotion), ("CONSUMED", 1, late_), ("CONSUMED", 1, soon_)]
    assert balance(api) == (3.75, 2.25, 6)


def test_the_plans_credits_are_one_of_them(api: Api, clock: ManualClock) -> None:
    clock.set_forward(
        (clock.now().replace(day=1, hour=0, minute=0, second=0) + timedelta(days=40) - clock.now()).total_seconds()
    )
    first = give(api, 3, "m", expire_at=(clock.now() + timedelta(days=1)).isoformat())
    second = give(api, 3, "m", grant_type="PAID")
    consume(api, 14, customer="m")
    assert used(api, "m") == {first: 3, "recurring-m-credits": 10, second: 1}
    assert balance(api, "m") == (2, 14, 16)
    clock.advance(32 * 86_400)
    assert balance(api, "m") == (12, 1, 13)


def test_credits_come_expire_and_are_voided(guard: Guard, api: Api, clock: ManualClock) -> None:
    day = 86_400.0
    later = give(api, 5, effective_at=(clock.now() + timedelta(days=1)).isoformat())
    short = give(api, 2, expire_at=(clock.now() + timedelta(days=2)).isoformat())
    consume(api, 0.5)
    assert balance(api) == (1.5, 0.5, 2)
    clock.advance(day)
    assert balance(api) == (6.5, 0.5, 7)
    clock.advance(day)
    assert balance(api) == (5, 0, 5)
    statuses = {
        one.node.grant_id: str(one.node.status)
        for one in api.get_credit_grants({"customer_id": "w"}).credit_grants.edges
    }
    assert statuses == {later: "ACTIVE", short: "EXPIRED"}
    clock.advance(1)
    voided = api.void_credit_grant({"id": later}).void_credit_grant
    assert (str(voided.status), voided.voided_at) == ("VOIDED", clock.now())
    assert not guard.check("tokens", customer="w")
    assert ledger(api) == [
        ("VOIDED", 5, later),
        ("EXPIRED", 1.5, short),
        ("CONSUMED", 0.5, short),
        ("GRANTED", 2, short),
        ("GRANTED", 5, later),
    ]
    for id_ in (later, short, "nothing"):
        assert refused(lambda id_=id_: api.void_credit_grant({"id": id_})) == "VALIDATION_ERROR"


def test_usage_is_paid_from_credits_however_it_is_reported(guard: Guard, api: Api) -> None:
    id_ = give(api, 1)
    report(api, 3)
    report(api, 5, update_behavior="SET")
    report(api, 4, update_behavior="SET")  # nothing is given back
    event = {"customer_id": "w", "event_name": "spoke", "idempotency_key": "e", "dimensions": {"n": 2}}
    for _ in range(2):
        api.report_event({"usage_events": [event]})
    with guard.consume("tokens", 1, customer="w"):
        pass
    assert guard.flush() == 0
    assert used(api) == {id_: pytest.approx(0.8)}
    series = api.get_credit_usage({"customer_id": "w"}).credit_usage.series
    assert [(one.feature_id, one.total_credits, len(one.points)) for one in series] == [("tokens", 0.8, 1)]
    entitlement: Any = api.get_entitlement_v2({"customer_id": "w", "feature_id": "tokens"}).entitlement_v2
    assert (entitlement.credit_rate.amount, entitlement.credit_rate.currency_id) == (0.1, "credits")


def test_what_usage_costs_is_exact_and_does_not_depend_on_its_parts(guard: Guard, api: Api) -> None:
    give(api, 0.3)
    for _ in range(3):
        assert guard.check("tokens", customer="w", requested_usage=1)
        report(api, 1)
    assert balance(api) == (0, 0.3, 0.3)
    rate = CreditRate("credits", 0.000_001)
    assert [rate.cost(usage) for usage in (0.4, 0.8, 1.2, 3)] == [0, 0, 1, 3]


def test_threads_lose_no_credit(guard: Guard, api: Api) -> None:
    ids = [give(api, 1) for _ in range(3)]

    def work(number: int) -> None:
        report(api, 1)
        consume(api, 0.1, f"k{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(12)))
    assert used(api) == dict(zip(ids, (1, 1, 0.4), strict=True))
    assert sum(amount for event, amount, _ in ledger(api) if event == "CONSUMED") == pytest.approx(2.4)


def test_what_happened_counts_even_if_nothing_is_left(guard: Guard, api: Api) -> None:
    report(api, 20)
    assert guard.check("tokens", customer="w").reason is Reason.INSUFFICIENT_CREDITS
    give(api, 5)
    assert balance(api) == (3, 2, 5)
    report(api, 150, customer="m")
    assert balance(api, "m") == (0, 15, 10)


def test_what_a_plan_includes_costs_nothing_and_a_soft_limit_ends_nothing(guard: Guard, api: Api) -> None:
    give(api, 5, "i")
    report(api, 2, "i")
    assert guard.check("tokens", customer="i").usage_limit == 5
    assert balance(api, "i") == (5, 0, 5)
    report(api, 50, "s")
    assert guard.check("tokens", customer="s")


def test_a_resource_has_a_wallet_of_its_own(api: Api) -> None:
    give(api, 2, "m", resource_id="r")
    consume(api, 1, customer="m", resource_id="r")
    assert balance(api, "m") == (10, 0, 10)
    (own,) = api.get_credit_balance({"customer_id": "m", "resource_id": "r"}).credit_balance_summary.balances
    assert (own.current_balance, own.resource_id) == (1, "r")
    assert [event for event, _, _ in ledger(api, "m")] == []
    (event,) = api.get_credit_ledger(
        {"customer_id": "m", "resource_id": "r", "event_type": ["CREDITS_CONSUMED"]}
    ).credits_ledger.edges
    assert event.node.resource_id == "r"


def test_a_key_is_used_once(api: Api) -> None:
    give(api, 5)
    for _ in range(2):
        consume(api, 1)
    one = {"customer_id": "w", "currency_id": "credits", "amount": 1.0, "idempotency_key": "other"}
    api.consume_credits_async({"consumptions": [one, one]})
    assert balance(api) == (3, 2, 5)
    assert refused(lambda: consume(api, 2)) == "VALIDATION_ERROR"


def test_lists_come_in_pages(api: Api) -> None:
    ids = [give(api, 1) for _ in range(5)]
    page = api.get_credit_grants({"customer_id": "w", "paging": {"first": 2}}).credit_grants
    assert ([one.node.grant_id for one in page.edges], page.total_count, page.page_info.has_next_page) == (
        ids[:2],
        5,
        True,
    )
    given = {"customer_id": "w", "currency_id": "credits", "paging": {"first": 2}}
    assert [one.grant_id for one in api.iter_credit_grants(given)] == ids
    assert api.get_credit_grants({"customer_id": "w", "currency_id": "others"}).credit_grants.edges == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"customer_id": "nobody"}, "CUSTOMER_NOT_FOUND"),
        ({"resource_id": "nothing"}, "RESOURCE_NOT_FOUND"),
        ({"currency_id": "credit"}, "VALIDATION_ERROR"),
        ({"amount": 0.0}, "VALIDATION_ERROR"),
        ({"amount": -1.0}, "VALIDATION_ERROR"),
        ({"amount": 1e300}, "VALIDATION_ERROR"),
        ({"effective_at": "2030-01-01", "expire_at": "2029-01-01"}, "VALIDATION_ERROR"),
        ({"expire_at": "soon"}, "VALIDATION_ERROR"),
    ],
)
def test_what_is_wrong_grants_nothing(api: Api, wrong: dict[str, Any], code: str) -> None:
    given = {"customer_id": "w", "currency_id": "credits", "amount": 1.0, "grant_type": "PAID", "display_name": "G"}
    assert refused(lambda: api.grant_credits({**given, **wrong})) == code
    assert ledger(api) == []


def test_a_cursor_is_one_of_the_list(api: Api) -> None:
    call = lambda: api.get_credit_grants({"customer_id": "w", "paging": {"after": "x"}})  # noqa: E731 - asked more than once
    assert refused(call) == "VALIDATION_ERROR"
    assert refused(lambda: api.get_credit_grants({"customer_id": "w", "paging": {"last": 1}})) == "NOT_MODELLED"


def test_credits_survive_the_sidecar(clock: ManualClock, tmp_path: Path) -> None:
    for expected in ([], ["CONSUMED", "GRANTED"]):
        with started(clock, tmp_path) as sidecar, Api("any", f"http://{sidecar.http_address}") as api:
            assert [event for event, _, _ in ledger(api)] == expected
            if not expected:
                give(api, 3)
                consume(api, 1)
            assert balance(api) == (2, 1, 3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('meter = "fluctuating"\ncredit_rate = { currency = "c", amount = 1 }', "use an incremental meter"),
        ('meter = "incremental"\ncredit_rate = { currency = "d", amount = 1 }', "expected one of c"),
        ('meter = "incremental"\ncredit_rate = { currency = "c" }', "0.000001 or more"),
        ('meter = "incremental"\ncredit_rate = { currency = "c", amount = 1, each = 2 }', "unknown key"),
        ('meter = "incremental"', "needs limit, or unlimited"),
    ],
)
def test_a_wrong_price_in_credits_is_refused(given: str, told: str) -> None:
    text = f'[currencies.c]\n[features.f]\ntype = "metered"\n{given}\n[plans.p.entitlements]\nf = {{}}\n'
    with pytest.raises(ConfigError, match=told):
        parse_catalog(text)

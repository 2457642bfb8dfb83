"""``Guard.api`` and ``Stigg.api``: after a change the next check knows of it, in every process that shares a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from api_server import KEY, ApiServer, sample, variable_types
from conftest import ManualClock
from redis_server import RedisServer
from rpc_server import serving
from stigg_guard import ApiConfig, ApiRejected, ApiUnavailable, Config, ConfigError, Customer, Guard, Stigg
from stigg_guard.api import Api
from stigg_guard.api.customers import CHANGED, changed_customers
from stigg_guard.api.documents import operations
from stigg_guard.api.generate import snake
from stigg_guard.cache import redis as shared
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS

CUSTOMER = "customer-demo-03"
SITE = Customer("customer-demo-01", resource="site-01")
TEMPLATES = "feature-templates"
PATIENCE = 30.0
MakeGuard = Callable[..., Guard]


class RememberingSidecar:
    """A sidecar with a cache of its own, as Stigg's has: only ``ReloadEntitlements`` makes it look at the source."""

    def __init__(self) -> None:
        self.engine = Engine(demo_catalog(), Store(None))
        self.fails = False
        self.asked: list[str] = []
        self._known: dict[tuple[str, str], Any] = {}

    def handle(self, name: str, request: Any, context: Any) -> Any:
        self.asked.append(name)
        if self.fails:
            raise ConnectionError
        key = request.customer_id, request.resource_id
        if name == "ReloadEntitlements":
            self._known.pop(key, None)
        if name == "GetEntitlementsStateV2":
            return self._known.setdefault(key, self.engine.answer(name, request))
        return self.engine.answer(name, request)


@pytest.fixture
def remembering() -> RememberingSidecar:
    return RememberingSidecar()


@pytest.fixture
def address(remembering: RememberingSidecar) -> Iterator[str]:
    def handler(name: str) -> Any:
        return lambda request, context: remembering.handle(name, request, context)

    with serving({name: handler(name) for name in METHODS}) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def cloud(remembering: RememberingSidecar) -> Iterator[ApiServer]:
    """The API before the source that the sidecar looks at: what is provisioned there is so here."""

    def provision(input: Any) -> Any:  # noqa: A002 - the name of the argument
        remembering.engine.assign_plan(input["customerId"], input["planId"], input.get("resourceId"))
        return {}

    def update(**_: Any) -> Any:
        remembering.engine.assign_plan(CUSTOMER, "growth")
        return {"customer": {"refId": CUSTOMER}}

    def cancel_schedule(**_: Any) -> str:
        remembering.engine.assign_plan(CUSTOMER, "growth")
        return "done"

    running = ApiServer(
        {"provisionSubscriptionV2": provision, "updateOneSubscription": update, "cancelSchedule": cancel_schedule}
    )
    yield running
    running.stop()


@pytest.fixture
def guard_of(address: str, cloud: ApiServer, make_guard: MakeGuard) -> MakeGuard:
    return lambda **given: make_guard(**{"SIDECAR": address, "API_KEY": KEY, "API_URL": cloud.url, **given})


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, durable=False) as server:
        yield server


@pytest.fixture
def workers(guard_of: MakeGuard, redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> tuple[Guard, Guard]:
    """Two processes of a site, with as much patience for Redis as a busy machine needs."""
    monkeypatch.setattr(shared, "ANSWER_SECONDS", PATIENCE)
    first, second = (guard_of(CACHE=redis.url, LEDGER="memory://") for _ in range(2))
    return first, second


def is_upgraded(guard: Guard, customer: str | Customer = CUSTOMER) -> bool:
    return guard.peek(TEMPLATES, customer=customer).usage_limit == 50


def upgrade(guard: Guard, customer: str = CUSTOMER, **given: Any) -> None:
    guard.api.provision_subscription({"customer_id": customer, "plan_id": "growth", **given})


def test_the_next_check_passes_by_all_caches(guard_of: MakeGuard) -> None:
    guard = guard_of()
    assert not is_upgraded(guard)
    upgrade(guard)
    assert is_upgraded(guard)


def test_a_customer_whom_nobody_asked_about_is_reloaded_too(
    guard_of: MakeGuard, remembering: RememberingSidecar, address: str
) -> None:
    with Guard(Config(sidecar=address, ledger="memory://")) as elsewhere:
        assert not is_upgraded(elsewhere)
    guard = guard_of()
    upgrade(guard)
    assert is_upgraded(guard)


def test_the_resources_of_a_customer_are_read_again(guard_of: MakeGuard) -> None:
    guard = guard_of()
    assert not is_upgraded(guard, SITE)
    upgrade(guard, SITE.id, resource_id=SITE.resource)
    assert is_upgraded(guard, SITE)


def test_the_customer_may_stand_in_the_answer(guard_of: MakeGuard) -> None:
    guard = guard_of()
    assert not is_upgraded(guard)
    guard.api.update_subscription({"subscription_id": "s"})
    assert is_upgraded(guard)


def test_where_nobody_is_named_everybody_is_read_again(guard_of: MakeGuard, remembering: RememberingSidecar) -> None:
    guard = guard_of()
    assert not is_upgraded(guard)
    assert is_upgraded(guard, "customer-demo-02")
    guard.api.cancel_subscription_updates({"subscription_id": "s"})
    remembering.asked.clear()
    assert is_upgraded(guard)
    assert is_upgraded(guard, "customer-demo-02")
    assert remembering.asked == ["ReloadEntitlements", "GetEntitlementsStateV2"] * 2


def test_a_change_that_may_have_happened_counts_as_one(guard_of: MakeGuard, cloud: ApiServer) -> None:
    guard = guard_of()
    assert not is_upgraded(guard)

    def change_and_fail(handler: Any) -> None:
        cloud.answer(cloud.received[-1].payload)
        handler.send(500, b"")

    cloud.faults.append(change_and_fail)
    with pytest.raises(ApiUnavailable) as caught:
        upgrade(guard)
    assert caught.value.outcome_unknown
    assert is_upgraded(guard)


def test_a_change_that_did_not_happen_asks_nobody(
    guard_of: MakeGuard, cloud: ApiServer, remembering: RememberingSidecar
) -> None:
    guard = guard_of()
    assert not is_upgraded(guard)
    remembering.asked.clear()
    refusal = b'{"errors": [{"message": "no", "extensions": {"code": "VALIDATION_ERROR"}}]}'
    cloud.faults.append(lambda handler: handler.send(200, refusal))
    with pytest.raises(ApiRejected):
        upgrade(guard)
    guard.api.get_coupons()
    guard.api.estimate_subscription({"customer_id": CUSTOMER, "plan_id": "growth"})
    assert not is_upgraded(guard)
    assert remembering.asked == []


def test_a_sidecar_that_is_away_reloads_when_it_is_back(
    guard_of: MakeGuard, remembering: RememberingSidecar, clock: ManualClock
) -> None:
    guard = guard_of()
    assert not is_upgraded(guard)
    remembering.fails = True
    upgrade(guard)
    assert not is_upgraded(guard)  # what is known goes on answering
    remembering.fails = False
    clock.advance(1)
    assert is_upgraded(guard)


def test_many_customers_of_one_change_are_reloaded_when_they_are_asked_about(
    guard_of: MakeGuard, remembering: RememberingSidecar
) -> None:
    guard = guard_of()
    assert not is_upgraded(guard)
    remembering.asked.clear()
    customers = [{"customer_id": f"customer-{number}"} for number in range(20)]
    guard.api.import_customer_bulk({"customers": [*customers, {"customer_id": CUSTOMER}]})
    assert remembering.asked == []
    assert not is_upgraded(guard)
    assert remembering.asked == ["ReloadEntitlements", "GetEntitlementsStateV2"]


def test_other_processes_hear_of_it(workers: tuple[Guard, Guard], clock: ManualClock) -> None:
    first, second = workers
    assert not is_upgraded(first)
    assert not is_upgraded(second)
    assert not is_upgraded(second, SITE)
    clock.advance(0.001)
    upgrade(first, SITE.id, resource_id=SITE.resource)
    upgrade(first)
    assert _becomes_true(lambda: is_upgraded(second) and is_upgraded(second, SITE))


def test_a_new_process_does_not_find_what_was_shared_before(workers: tuple[Guard, Guard], clock: ManualClock) -> None:
    first, second = workers
    assert not is_upgraded(first)
    clock.advance(0.001)
    first.api.cancel_subscription_updates({"subscription_id": "s"})
    assert is_upgraded(first)
    assert is_upgraded(second)


def test_a_fetch_that_began_before_the_change_is_not_shared(
    workers: tuple[Guard, Guard], remembering: RememberingSidecar, clock: ManualClock
) -> None:
    first, second = workers
    original = remembering.handle

    def change_on_the_way(name: str, request: Any, context: Any) -> Any:
        answer = original(name, request, context)
        if name == "GetEntitlementsStateV2":
            remembering.handle = original
            clock.advance(0.001)
            upgrade(second)
        return answer

    remembering.handle = change_on_the_way
    assert not is_upgraded(first)
    assert is_upgraded(first)


def test_closed_or_disabled_guards_still_call(guard_of: MakeGuard, cloud: ApiServer) -> None:
    off = guard_of(ENABLED=False)
    upgrade(off)
    closed = guard_of()
    api = closed.api
    closed.close()
    api.provision_subscription({"customer_id": CUSTOMER, "plan_id": "growth"})
    api.close()
    assert len(cloud.received) == 2


def test_without_a_key_there_is_no_api(make_guard: MakeGuard) -> None:
    with pytest.raises(ConfigError, match="no key for Stigg's API: set API_KEY"):
        make_guard().api  # noqa: B018 - it raises
    with (
        Stigg(remote_sidecar_host="localhost") as stigg,
        pytest.raises(ConfigError, match="or give Stigg an ApiConfig"),
    ):
        stigg.api  # noqa: B018 - it raises


def test_the_client_has_the_api_of_its_configuration(cloud: ApiServer, sidecar: Sidecar) -> None:
    with Stigg(ApiConfig(KEY, cloud.url), remote_sidecar_host="127.0.0.1") as stigg:
        assert stigg.api is stigg.api
        stigg.api.get_coupons()
        assert KEY not in repr(stigg.api)
    assert cloud.received[0].headers["x-api-key"] == KEY
    with Stigg(ApiConfig(KEY), remote_sidecar_host="127.0.0.1") as stigg:
        assert repr(stigg.api) == "Api(https://api.stigg.io/graphql)"


def test_every_mutation_says_whose_entitlements_it_changes(cloud: ApiServer) -> None:
    cloud.resolvers.clear()
    told: dict[str, Any] = {}
    changing = {name: facts for name, facts in operations().items() if facts.changes}
    for name in changing:
        with Api(KEY, cloud.url, on_change=lambda customers, name=name: told.update({name: customers})) as api:
            method = getattr(api, snake(name[0].lower() + name[1:]))
            method(**{snake(key): sample(type_) for key, type_ in variable_types(name).items()})
    assert told.keys() == CHANGED.keys()
    assert {name for name, customers in told.items() if customers is None} == {
        "MigrateSubscriptionToLatest",
        "DelegateSubscriptionToCustomer",
        "CancelSubscriptionUpdates",
    }
    assert changing.keys() - CHANGED.keys() == {
        "DetachCustomerPaymentMethod",
        "ReportEntitlementCheckRequested",
        "CreatePaymentSession",
        "CreateCoupon",
    }


def test_an_answer_without_the_customer_may_be_about_anybody() -> None:
    assert changed_customers("UpdateSubscription", {"input": {}}, {"updateSubscription": {"id": "s"}}) is None
    assert changed_customers("ReportUsageBulk", {"input": {"usages": [{"customerId": "a"}, {}]}}, {}) == {"a"}


def _becomes_true(condition: Callable[[], bool]) -> bool:
    """Whether it is true before patience ends; news travel through Redis."""
    end = monotonic() + PATIENCE
    while not condition() and monotonic() < end:
        pass
    return condition()

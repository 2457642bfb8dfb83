"""The client of Stigg's GraphQL API: each operation against a server that holds requests to the schema."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    OperationDefinitionNode,
    SelectionSetNode,
    is_required_input_field,
    parse,
    parse_value,
    print_ast,
)

from api_server import FACTS, INSTANT, KEY, ApiServer, sample, variable_types
from stigg_guard.api import (
    Api,
    BillingPeriod,
    CreditEntitlement,
    CursorPaging,
    FeatureEntitlement,
    GetCreditGrantsInput,
    GetEntitlementsStateResponse,
    Money,
    MoneyInputDto,
    ProvisionCustomerInput,
    ProvisionCustomerSubscriptionInput,
    ProvisionSubscriptionInput,
    ReportUsageBulkInput,
    SubscriptionQueryFilter,
    SubscriptionStatusFilterComparison,
)
from stigg_guard.api.generate import generated, snake
from stigg_guard.api.record import wire_name
from stigg_guard.errors import ApiRejected, ApiUnreadable, InvalidRequest

CALLED = {name: facts for name, facts in FACTS["operations"].items() if facts["kind"] != "subscription"}
NOWHERE = "http://127.0.0.1:1"
Leaf = tuple[tuple[str, str, str], ...]


def method_of(api: Api, operation: str) -> Any:
    return getattr(api, snake(operation[0].lower() + operation[1:]))


def official_leaves(view: str, path: Leaf = ()) -> Iterator[Leaf]:
    """What the official client selects: the way to each leaf as type, key and field."""
    facts = FACTS["views"][view]
    for leaf in facts.get("fields", "").split():
        key, _, field = leaf.partition(":")
        yield (*path, (facts["type"], key, field or key))
    for key, inner in facts.get("objects", {}).items():
        yield from official_leaves(inner, path if key.startswith("... on ") else (*path, (facts["type"], key, key)))


def sent_leaves(
    selected: SelectionSetNode, type_: str, fragments: Mapping[str, FragmentDefinitionNode], path: Leaf = ()
) -> Iterator[Leaf]:
    """What a request selects, likewise."""
    for node in selected.selections:
        if isinstance(node, FragmentSpreadNode):
            fragment = fragments[node.name.value]
            yield from sent_leaves(fragment.selection_set, fragment.type_condition.name.value, fragments, path)
            continue
        assert isinstance(node, FieldNode)
        here = (*path, (type_, node.alias.value if node.alias else node.name.value, node.name.value))
        yield from sent_leaves(node.selection_set, "", fragments, here) if node.selection_set else [here]


@pytest.mark.parametrize("operation", CALLED)
def test_the_request_that_arrives_is_the_official_one(operation: str, api: Api, server: ApiServer) -> None:
    facts = CALLED[operation]
    given = {name: sample(type_) for name, type_ in variable_types(operation).items()}
    answer = method_of(api, operation)(**{snake(name): value for name, value in given.items()})
    (received,) = server.received
    assert received.payload["operationName"] == operation == received.headers["x-graphql-operation-name"]
    assert received.headers["x-api-key"] == KEY
    assert received.headers["cache-control"] == "no-cache"

    definitions = parse(received.payload["query"]).definitions
    fragments = {node.name.value: node for node in definitions if isinstance(node, FragmentDefinitionNode)}
    (sent,) = (node for node in definitions if isinstance(node, OperationDefinitionNode))
    (root,) = sent.selection_set.selections
    assert isinstance(root, FieldNode)
    assert sent.operation.value == facts["kind"]
    assert {node.variable.name.value: print_ast(node.type) for node in sent.variable_definitions or ()} == facts[
        "variables"
    ]
    assert root.name.value == facts["field"]
    assert (root.alias.value if root.alias else None) == facts.get("alias")
    arguments = {node.name.value: print_ast(node.value) for node in root.arguments or ()}
    assert arguments == {name: print_ast(parse_value(value)) for name, value in facts["arguments"].items()}
    leaves = set(sent_leaves(root.selection_set, "", fragments)) if root.selection_set else set()
    official = set(official_leaves(facts["view"])) if "view" in facts else set()
    # Ours also asks which member of a union it is.
    assert leaves >= official
    assert {path[-1][1] for path in leaves - official} <= {"__typename"}

    def camel(value: Any) -> Any:
        if isinstance(value, dict) and value != {"any": ["thing", None]}:
            return {wire_name(name): camel(inner) for name, inner in value.items()}
        return [camel(item) for item in value] if isinstance(value, list) else value

    assert received.payload["variables"] == {name: camel(value) for name, value in given.items()}
    key = facts.get("alias", facts["field"])
    assert getattr(answer, snake(key)) is not None


@pytest.mark.parametrize("operation", [name for name in CALLED if "input" in CALLED[name]["variables"]])
def test_wrong_input_is_a_type_error_that_names_it(operation: str) -> None:
    type_ = variable_types(operation)["input"].of_type
    given = sample(type_, 1)
    name = next(iter(given))
    method = method_of(Api(KEY, NOWHERE), operation)
    with pytest.raises(TypeError, match=rf"input: '{name}x' is not a field of {type_.name}; did you mean '{name}'"):
        method({**given, f"{name}x": 1})
    with pytest.raises(TypeError, match="expected"):
        method(7)
    with pytest.raises(TypeError, match="not None"):
        method(None)
    for entry_name, entry in type_.fields.items():
        if is_required_input_field(entry):
            with pytest.raises(TypeError, match=rf"'{snake(entry_name)}' is missing"):
                method({key: value for key, value in given.items() if key != snake(entry_name)})


def test_every_operation_has_a_method_under_both_spellings_of_its_version() -> None:
    assert len(CALLED) == 64
    assert Api.get_entitlement_v_2 is Api.get_entitlement_v2
    assert Api.get_usage_history_v_2 is Api.get_usage_history_v2
    assert [name for name in CALLED if method_of(Api, name).__doc__ is None] == []


def test_what_is_generated_is_what_make_api_generates() -> None:
    pytest.importorskip("ruff", reason="it writes what is generated")
    assert [path.name for path, text in generated().items() if path.read_text(encoding="utf-8") != text] == []


def test_the_documented_example_runs_without_await(api: Api) -> None:
    api.provision_customer(ProvisionCustomerInput(customer_id="customer-demo-01", email="john@example.com"))
    answer = api.provision_subscription(
        ProvisionSubscriptionInput(
            customer_id="customer-demo-01",
            plan_id="plan-revvenu-essentials",
            billing_period=BillingPeriod.MONTHLY,
            entitlements=[
                {"feature": {"feature_id": "feature-seats", "usage_limit": 50}},
                {"credit": {"custom_currency_id": "currency-api-credits", "amount": 50000, "cadence": "MONTH"}},
            ],
        )
    )
    assert str(answer.provision_subscription.status) == "PAYMENT_REQUIRED"  # the first in the schema


def test_fields_come_in_either_spelling_but_not_in_both() -> None:
    nested = {"planId": "plan-a", "billing_period": "MONTHLY"}
    documented: Any = {"refId": "ref", "subscriptionParams": nested}
    assert ProvisionCustomerInput(**documented) == ProvisionCustomerInput(
        ref_id="ref",
        subscription_params=ProvisionCustomerSubscriptionInput(plan_id="plan-a", billing_period=BillingPeriod.MONTHLY),
    )
    with pytest.raises(TypeError, match="'ref_id' is given twice"):
        ProvisionCustomerInput(**{**documented, "ref_id": "a"})
    with pytest.raises(TypeError, match=r"ProvisionCustomerInput\.subscription_params: 'plan_id' is given twice"):
        ProvisionCustomerInput(subscription_params={"plan_id": "a", "planId": "a"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"custmer_id": "c"},
            r"ProvisionSubscriptionInput: 'custmer_id' is not a field .+ did you mean 'customer_id'\?",
        ),
        ({"billing_period": "MONTLY"}, r"'MONTLY' is not a member of BillingPeriod; did you mean 'MONTHLY'\?"),
        ({"unit_quantity": "2"}, r"unit_quantity: expected a finite number, not '2'"),
        ({"unit_quantity": float("nan")}, r"unit_quantity: expected a finite number, not nan"),
        ({"unit_quantity": True}, r"unit_quantity: expected a finite number, not True"),
        ({"customer_id": 7}, r"customer_id: expected text, not 7"),
        ({"customer_id": None}, r"customer_id: expected text, not None"),
        ({"skip_trial": 1}, r"skip_trial: expected True or False, not 1"),
        ({"start_date": datetime(2026, 1, 1)}, r"start_date: expected a datetime with a time zone"),
        ({"addons": {"addon_id": "a"}}, r"addons: expected a list, not \{"),
        ({"addons": [{"addon_id": "a", "quantity": 1.5}]}, r"addons\[0\]\.quantity: expected a whole number, not 1.5"),
        (
            {"addons": [{"addon_id": "a"}, {}]},
            r"addons\[1\]: 'addon_id' is missing, which SubscriptionAddonInput must have",
        ),
        (
            {"entitlements": [{"feature": {"featureid": "f"}}]},
            r"entitlements\[0\]\.feature: 'featureid' is not a field of .+; did you mean 'feature_id'\?",
        ),
        ({"budget": "low"}, r"budget: expected BudgetConfigurationInput or a dict, not 'low'"),
    ],
)
def test_wrong_fields_are_named_at_every_level(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        ProvisionSubscriptionInput(**{"customer_id": "c", "plan_id": "p", **wrong})


def test_none_is_sent_and_what_is_not_given_is_not(api: Api, server: ApiServer) -> None:
    api.provision_customer({"customer_id": "c", "subscription_params": None})
    api.provision_customer({"customer_id": "c"})
    api.get_subscriptions()
    sent = [received.payload["variables"] for received in server.received]
    assert sent == [{"input": {"customerId": "c", "subscriptionParams": None}}, {"input": {"customerId": "c"}}, {}]
    given = ProvisionCustomerInput(customer_id="c", subscription_params=None)
    assert given.subscription_params is None
    with pytest.raises(AttributeError, match=r"ProvisionCustomerInput\.email was not given"):
        given.email  # noqa: B018 - it raises


def test_names_that_python_keeps_for_itself_have_an_underscore(api: Api, server: ApiServer) -> None:
    active = SubscriptionStatusFilterComparison(in_=["ACTIVE"], is_=True)
    api.get_subscriptions(SubscriptionQueryFilter(and_=[{"status": active}]), paging={"first": 5})
    assert server.received[0].payload["variables"] == {
        "filter": {"and": [{"status": {"in": ["ACTIVE"], "is": True}}]},
        "paging": {"first": 5},
    }


def test_instants_and_money_travel_as_texts_and_numbers() -> None:
    at = datetime(2026, 1, 2, 5, tzinfo=timezone(timedelta(hours=2)))
    assert ProvisionCustomerInput(created_at=at).to_dict() == {"createdAt": "2026-01-02T03:00:00Z"}
    assert ProvisionCustomerInput(created_at="2026-01-02").to_dict() == {"createdAt": "2026-01-02"}
    assert MoneyInputDto(amount=Decimal("9.99")).to_dict() == {"amount": 9.99}
    money = Money.from_wire(json.loads('{"amount": 9.99, "currency": "USD"}'))
    assert (money.amount, str(money.currency)) == (Decimal("9.99"), "USD")


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        (INSTANT, datetime(2026, 1, 2, 3, 4, 5, 678_000, timezone.utc)),
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
        ("2026-01-02T03:04:05.123456789+00:00", datetime(2026, 1, 2, 3, 4, 5, 123_456, timezone.utc)),
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=timezone.utc)),
        ("soon", "soon"),
        (1_767_323_045, 1_767_323_045),
        (None, None),
    ],
)
def test_instants_are_aware_and_what_is_none_stays(text: Any, instant: Any) -> None:
    assert FeatureEntitlement.from_wire({"validUntil": text}).valid_until == instant


def test_a_newer_server_breaks_nothing() -> None:
    answer = GetEntitlementsStateResponse.from_wire(
        {
            "entitlementsState": {
                "accessDeniedReason": "OutOfFashion",
                "shape": "new",
                "entitlementsV2": [
                    {"__typename": "FeatureEntitlement", "resetPeriod": "DECADE", "enumValues": "eu"},
                    {"__typename": "CreditEntitlement", "currentUsage": 2},
                    {"__typename": "SeatEntitlement", "seats": 3},
                    {"seats": 4},
                    None,
                ],
            }
        }
    )
    state = answer.entitlements_state
    first, second, *others = state.entitlements_v2
    assert str(state.access_denied_reason) == "OutOfFashion"
    assert isinstance(first, FeatureEntitlement)
    assert (first.reset_period, first.enum_values) == ("DECADE", "eu")
    assert isinstance(second, CreditEntitlement)
    assert others == [{"__typename": "SeatEntitlement", "seats": 3}, {"seats": 4}, None]
    assert answer.to_dict()["entitlementsState"]["shape"] == "new"


def test_fields_are_selected_instead_of_the_usual_ones(api: Api, server: ApiServer) -> None:
    answer = api.get_customer_by_id({"customer_id": "c"}, fields="id name")
    customer = answer.get_customer_by_ref_id
    assert customer is not None
    assert (customer.id, customer.name) == ("id", "name")
    with pytest.raises(AttributeError, match=r"Customer\.email was not selected by this operation; .+ fields="):
        customer.email  # noqa: B018 - it raises
    with pytest.raises(AttributeError, match="emial"):
        customer.emial  # noqa: B018 - it raises
    with pytest.raises(ApiRejected, match="Cannot query field 'nmae'") as caught:
        api.get_customer_by_id({"customer_id": "c"}, fields="nmae")
    assert (caught.value.code, caught.value.outcome_unknown) == ("GRAPHQL_VALIDATION_FAILED", False)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "3", True])
def test_a_timeout_is_a_number_of_seconds(timeout: Any, api: Api, server: ApiServer) -> None:
    with pytest.raises(InvalidRequest, match="timeout: expected a number of seconds"):
        api.get_coupons(timeout=timeout)
    with pytest.raises(InvalidRequest, match="timeout: "):
        Api(KEY, NOWHERE, timeout=timeout)
    assert not server.received


def test_records_are_values() -> None:
    given = ProvisionCustomerInput(customer_id="c", subscription_params={"plan_id": "p"})
    assert repr(given) == (
        "ProvisionCustomerInput(customer_id='c', subscription_params=ProvisionCustomerSubscriptionInput(plan_id='p'))"
    )
    assert pickle.loads(pickle.dumps(given)) == given
    given.to_dict()["subscriptionParams"]["planId"] = "other"
    assert given.subscription_params == ProvisionCustomerSubscriptionInput(plan_id="p")
    with pytest.raises(AttributeError, match="read only"):
        given.customer_id = "d"
    assert f"{BillingPeriod.MONTHLY} {BillingPeriod.MONTHLY!s}" == "MONTHLY MONTHLY"


def test_usage_gets_an_idempotency_key_and_keeps_one_that_is_given(api: Api, server: ApiServer) -> None:
    usage = {"customer_id": "c", "feature_id": "f", "value": 1}
    own = ReportUsageBulkInput(usages=[usage, {**usage, "idempotency_key": "mine"}])
    api.report_usage_bulk(own)
    api.report_usage(usage)
    (first, second), single = server.received[0].payload["variables"]["input"]["usages"], server.received[1].payload
    assert len({first["idempotencyKey"], single["variables"]["input"]["idempotencyKey"]}) == 2
    assert second["idempotencyKey"] == "mine"
    assert "idempotencyKey" not in own.to_dict()["usages"][0]


def test_pages_are_walked_through_by_their_cursors(api: Api, server: ApiServer) -> None:
    def page(after: str | None) -> dict[str, Any]:
        number = int(after or 0)
        info = {"endCursor": str(number + 1), "hasNextPage": number < 2}
        return {"pageInfo": info, "edges": [{"node": {"grantId": f"grant-{number}", "subscriptionId": f"s-{number}"}}]}

    server.resolvers = {
        "creditGrants": lambda **given: page((given["input"].get("paging") or {}).get("after")),
        "creditsLedger": lambda **given: page((given["input"].get("paging") or {}).get("after")),
        "subscriptions": lambda **given: page((given.get("paging") or {}).get("after")),
    }
    grants = api.iter_credit_grants(GetCreditGrantsInput(customer_id="c", paging={"first": 1}))
    assert [grant.grant_id for grant in grants] == ["grant-0", "grant-1", "grant-2"]
    assert server.received[2].payload["variables"]["input"]["paging"] == {"first": 1, "after": "2"}
    assert len(list(api.iter_credit_ledger({"customer_id": "c"}))) == 3
    for paging in ({}, {"paging": None}, {"paging": CursorPaging(first=1)}):
        found = api.iter_subscriptions({"customer_id": {"eq": "c"}}, **paging)
        assert [one.subscription_id for one in found] == ["s-0", "s-1", "s-2"]


def test_pages_that_repeat_end_with_an_error(api: Api, server: ApiServer) -> None:
    same = {"pageInfo": {"endCursor": "1", "hasNextPage": True}, "edges": []}
    server.resolvers = {"creditGrants": lambda **_: same}
    with pytest.raises(ApiUnreadable, match="repeat"):
        list(api.iter_credit_grants({"customer_id": "c"}))


def test_importing_the_package_imports_neither_requests_nor_what_is_generated() -> None:
    heavy = "('requests', 'urllib3', 'graphql', 'stigg_guard.api')"
    code = f"import stigg_guard, sys; print([name for name in sys.modules if name.startswith({heavy})])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_client_needs_no_graphql_library() -> None:
    code = (
        "import sys; sys.modules['graphql'] = None; import stigg_guard.api; print(len(stigg_guard.api.__all__) > 300)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


TYPED = """\
from datetime import datetime
from decimal import Decimal
from stigg_guard.api import (
    Api, BillingPeriod, EntitlementUnion, FeatureEntitlement, MoneyInputDto, ProvisionCustomerInput,
    ProvisionSubscriptionInput, ProvisionSubscriptionStatus,
)
from typing_extensions import assert_type

def right(api: Api) -> None:
    api.provision_customer(ProvisionCustomerInput(customer_id="c", email=None, created_at=datetime.now()), timeout=3)
    answer = api.provision_subscription(
        ProvisionSubscriptionInput(
            customer_id="c", plan_id="p", billing_period=BillingPeriod.MONTHLY,
            entitlements=[{"credit": {"custom_currency_id": "x", "amount": 5, "cadence": "MONTH"}}],
            minimum_spend={"minimum": MoneyInputDto(amount=Decimal(5), currency="USD")},
        )
    )
    assert_type(answer.provision_subscription.status, ProvisionSubscriptionStatus)
    assert_type(answer.provision_subscription.entitlements_v2, list[EntitlementUnion])
    state = api.get_entitlements_state(query={"customer_id": "c"}).entitlements_state
    for entitlement in state.entitlements_v2:
        if isinstance(entitlement, FeatureEntitlement):
            assert_type(entitlement.valid_until, datetime | None)
    assert_type([grant.amount for grant in api.iter_credit_grants({"customer_id": "c"})], list[float])
    api.get_subscriptions(paging={"first": 5})

def wrong(api: Api) -> None:
    ProvisionSubscriptionInput(custmer_id="c", plan_id="p")  # E: call-arg
    ProvisionSubscriptionInput(customer_id="c")  # E: call-arg
    ProvisionSubscriptionInput("c", "p")  # E: call-arg
    ProvisionSubscriptionInput(customer_id="c", plan_id="p", billing_period="MONTLY")  # E: arg-type
    ProvisionSubscriptionInput(customer_id="c", plan_id="p", budget={"limt": 5})  # E: arg-type
    ProvisionSubscriptionInput(customer_id="c", plan_id="p", addons=[{"addon": "a"}])  # E: list-item
    api.provision_customer({"custmer_id": "c"})  # E: arg-type
    api.get_entitlement({"customer_id": "c"})  # E: arg-type
    api.provision_customer()  # E: call-arg
    api.provision_costumer({})  # E: attr-defined
    api.get_coupons().coupons.egdes  # E: attr-defined
    api.get_coupons().coupons.edges[0].node.name + 1  # E: operator
"""


def test_a_type_checker_finds_what_is_misspelt_and_passes_what_is_right(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="it is the type checker")
    code = tmp_path / "typed.py"
    code.write_text(TYPED, encoding="utf-8")
    cache = Path(__file__).parents[2] / ".mypy_cache" / "user_code"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", str(code)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    found = Counter(re.findall(r"typed\.py:(\d+): error: .+\[([\w-]+)\]", said))
    lines = enumerate(TYPED.splitlines(), 1)
    expected = ((str(number), code) for number, line in lines for code in line.partition("# E: ")[2].split())
    assert found == Counter(expected), said

"""The decorators on plain functions, over a real sidecar."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest

from stigg_guard import ConfigError, Customer, FeatureDenied, Guard, InvalidRequest, Reason
from stigg_guard.calls import Calls
from stigg_guard.decorators import consumes_usage, releases_usage, requires_feature

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"  # 3 of 6 are used
SEATS = "feature-seats"  # 2 of 5 are used
ACTIVE = "feature-active-users"  # counted by events
MISSING = "feature-analytics"

Decorate = Callable[..., Any]


@pytest.fixture
def guard(make_guard: Callable[..., Guard]) -> Guard:
    """Reports before a call returns, so that the sidecar's own figures can be compared."""
    return make_guard(REPORT="inline")


@pytest.fixture
def requires(guard: Guard) -> Decorate:
    return partial(requires_feature, calls=Calls(lambda: guard, lambda *_, **__: CUSTOMER))


@pytest.fixture
def consumes(guard: Guard) -> Decorate:
    return partial(consumes_usage, calls=Calls(lambda: guard, lambda *_, **__: CUSTOMER))


@pytest.fixture
def releases(guard: Guard) -> Decorate:
    return partial(releases_usage, calls=Calls(lambda: guard, CUSTOMER))


class JudgedCalls(Calls):
    """Calls whose results are judged by a function of the test."""

    def __init__(self, guard: Guard, settle: Callable[..., tuple[Any, bool]]) -> None:
        super().__init__(lambda: guard, CUSTOMER)
        self._judge = settle

    def settle(self, result: Any, hold_open: Any) -> tuple[Any, bool]:
        return self._judge(result, hold_open)


def used(guard: Guard, feature: str = TEMPLATES) -> float:
    """What the sidecar says was used, when nothing is held or unsent any more."""
    assert guard.flush() == 0
    guard.reload(CUSTOMER)
    return guard.check(feature, customer=CUSTOMER).current_usage


class Work:
    """A function that knows how often it ran."""

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> str:
        self.runs.append(args)
        return "done"


@pytest.fixture
def work() -> Work:
    return Work()


class TestRequiresFeature:
    def test_runs_the_function_once_when_the_plan_has_the_feature(self, requires: Decorate, work: Work) -> None:
        assert requires("feature-exports")(work)("a") == "done"
        assert work.runs == [("a",)]

    def test_raises_before_the_function_when_the_plan_lacks_it(self, requires: Decorate, work: Work) -> None:
        with pytest.raises(FeatureDenied) as caught:
            requires(MISSING)(work)()
        assert caught.value.entitlement.reason is Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION
        assert caught.value.customer == Customer(CUSTOMER)
        assert work.runs == []

    def test_finds_the_customer_from_the_functions_own_arguments(self, guard: Guard) -> None:
        @requires_feature(MISSING, calls=Calls(lambda: guard, lambda who, *, site: Customer(who, site)))
        def view(who: str, *, site: str | None) -> str:
            return who

        assert view("customer-demo-02", site=None) == "customer-demo-02"
        with pytest.raises(FeatureDenied, match=f"{CUSTOMER}/site-01 may not use {MISSING}"):
            view(CUSTOMER, site="site-01")

    def test_asks_for_the_guard_at_each_call_and_not_before(self, work: Work) -> None:
        def nobody() -> Guard:
            raise LookupError("no guard yet")

        decorated = requires_feature("f", calls=Calls(nobody, lambda: CUSTOMER))(work)
        with pytest.raises(LookupError):
            decorated()

    def test_guards_methods(self, requires: Decorate) -> None:
        class Site:
            @requires("feature-exports")
            def export(self, name: str) -> tuple[Site, str]:
                return self, name

        site = Site()
        assert site.export("x") == (site, "x")


class TestConsumesUsage:
    def test_reports_the_amount_after_success(self, consumes: Decorate, guard: Guard, work: Work) -> None:
        assert consumes(2, TEMPLATES)(work)() == "done"
        assert used(guard) == 5
        assert len(work.runs) == 1

    def test_holds_the_amount_while_the_function_runs(self, consumes: Decorate, guard: Guard) -> None:
        @consumes(3, TEMPLATES)
        def view() -> None:
            with pytest.raises(FeatureDenied):
                guard.consume(TEMPLATES, customer=CUSTOMER).__enter__()

        view()
        assert used(guard) == 6

    def test_denies_what_does_not_fit_without_running_the_function(self, consumes: Decorate, work: Work) -> None:
        with pytest.raises(FeatureDenied) as caught:
            consumes(4, TEMPLATES)(work)()
        assert caught.value.entitlement.reason is Reason.REQUESTED_USAGE_EXCEEDING_LIMIT
        assert caught.value.entitlement.requested_usage == 4
        assert work.runs == []

    def test_gives_the_amount_back_when_the_function_raises(self, consumes: Decorate, guard: Guard) -> None:
        @consumes(3, TEMPLATES)
        def view() -> None:
            raise ZeroDivisionError

        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                view()
        assert used(guard) == 3

    @pytest.mark.parametrize(("status", "counted"), [(201, 4), (399, 4), (400, 3), (500, 3)])
    def test_lets_the_result_tell_whether_it_was_a_success(
        self, consumes: Decorate, guard: Guard, status: int, counted: float
    ) -> None:
        def settle(result: int, _hold_open: object) -> tuple[str, bool]:
            return f"HTTP {result}", result < 400

        assert consumes(1, TEMPLATES, calls=JudgedCalls(guard, settle))(lambda: status)() == f"HTTP {status}"
        assert used(guard) == counted

    def test_takes_the_amount_from_the_functions_own_arguments(self, consumes: Decorate, guard: Guard) -> None:
        view = consumes(lambda names, *, per: len(names) * per, TEMPLATES)(lambda names, *, per: names)
        assert view(["a", "b"], per=1.5) == ["a", "b"]
        assert used(guard) == 6

    @pytest.mark.parametrize("amount", [-1, float("nan"), True, "2", None])
    def test_refuses_a_wrong_amount_where_it_is_written(self, consumes: Decorate, amount: object) -> None:
        with pytest.raises(InvalidRequest):
            consumes(amount, TEMPLATES)

    @pytest.mark.parametrize("amount", [-1, float("inf"), False, "2", None])
    def test_refuses_a_wrong_computed_amount_before_the_function(
        self, consumes: Decorate, guard: Guard, work: Work, amount: object
    ) -> None:
        with pytest.raises(InvalidRequest):
            consumes(lambda: amount, TEMPLATES)(work)()
        assert work.runs == []
        assert used(guard) == 3

    def test_counts_a_call_that_calls_itself_once_each(self, consumes: Decorate, guard: Guard) -> None:
        @consumes(1, TEMPLATES)
        def view(depth: int) -> int:
            return depth if depth == 2 else int(view(depth + 1))

        assert view(1) == 2
        assert used(guard) == 5

    def test_held_stream_settles_when_it_ends(self, consumes: Decorate, guard: Guard) -> None:
        def settle(result: str, hold_open: Callable[[Any], Any]) -> tuple[Any, bool]:
            return hold_open(result), True

        stream = consumes(2, TEMPLATES, calls=JudgedCalls(guard, settle))(lambda: "ab")()
        assert used(guard) == 3
        assert list(stream) == ["a", "b"]
        assert used(guard) == 5

    def test_gives_back_what_no_stream_can_be_made_of(self, consumes: Decorate, guard: Guard) -> None:
        def settle(result: Any, hold_open: Callable[[Any], Any]) -> tuple[Any, bool]:
            return hold_open(result), True

        with pytest.raises(TypeError):
            consumes(3, TEMPLATES, calls=JudgedCalls(guard, settle))(lambda: 7)()
        assert guard.stats()["held"] == 0

    def test_reports_what_the_result_says_was_used(self, consumes: Decorate, guard: Guard) -> None:
        assert consumes(3, TEMPLATES, actual=len)(lambda: ["a"])() == ["a"]
        assert used(guard) == 4

    def test_reports_what_a_generator_used_when_it_ends(self, consumes: Decorate, guard: Guard) -> None:
        made: list[str] = []

        @consumes(3, TEMPLATES, actual=lambda _: len(made))
        def work() -> Any:
            for name in ("a", "b"):
                made.append(name)
                yield name

        assert list(work()) == made
        assert used(guard) == 5

    @pytest.mark.parametrize("actual", [lambda _: -1, lambda _: "2", lambda _: 1 / 0])
    def test_reports_what_was_held_when_nobody_can_say_what_was_used(
        self, consumes: Decorate, guard: Guard, actual: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert consumes(2, TEMPLATES, actual=actual)(lambda: "done")() == "done"
        assert used(guard) == 5
        assert "what was really used cannot be told" in caplog.text

    def test_reports_what_was_held_when_what_was_used_is_read_from_a_spent_stream(
        self, consumes: Decorate, guard: Guard, caplog: pytest.LogCaptureFixture
    ) -> None:
        def work() -> Any:
            yield from "abc"

        assert "".join(consumes(2, TEMPLATES, actual=lambda stream: len(list(stream)))(work)()) == "abc"
        assert used(guard) == 5
        assert "cannot be read again" in caplog.text

    def test_reports_an_event_with_dimensions_of_the_arguments(self, consumes: Decorate, guard: Guard) -> None:
        def login(user: str) -> str:
            return user

        def dimensions(user: str) -> dict[str, str]:
            return {"user_id": user}

        view = consumes(1, ACTIVE, event="user_login", dimensions=dimensions)(login)
        for user in ("ann", "bob", "ann"):
            assert view(user) == user
        assert used(guard, ACTIVE) == 2


class TestReleasesUsage:
    def test_gives_units_back_after_success(self, releases: Decorate, guard: Guard, work: Work) -> None:
        assert releases(2, TEMPLATES)(work)() == "done"
        assert used(guard) == 1

    def test_gives_nothing_back_when_the_function_raises(self, releases: Decorate, guard: Guard) -> None:
        @releases(2, TEMPLATES)
        def remove() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            remove()
        assert used(guard) == 3

    @pytest.mark.parametrize(("status", "left"), [(204, 2), (404, 3)])
    def test_lets_the_result_tell_whether_it_was_a_success(
        self, releases: Decorate, guard: Guard, status: int, left: float
    ) -> None:
        calls = JudgedCalls(guard, lambda result, _: (result, result < 400))
        releases(1, TEMPLATES, calls=calls)(lambda: status)()
        assert used(guard) == left

    def test_gives_back_what_the_result_says(self, guard: Guard) -> None:
        remove = guard.releases_usage(3, TEMPLATES, customer=CUSTOMER, actual=len)(lambda: ["a", "b"])
        assert remove() == ["a", "b"]
        assert used(guard) == 1

    def test_gives_back_what_was_asked_for_when_nobody_can_say_how_much_it_was(
        self, releases: Decorate, guard: Guard, work: Work, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert releases(2, TEMPLATES, actual=lambda _: -1)(work)() == "done"
        assert used(guard) == 1
        assert "what was really used cannot be told" in caplog.text

    def test_takes_amount_and_customer_from_the_functions_own_arguments(self, guard: Guard) -> None:
        @guard.releases_usage(lambda who, names: len(names), TEMPLATES, customer=lambda who, names: who)
        def remove(who: str, names: list[str]) -> list[str]:
            return names

        assert remove(CUSTOMER, ["a", "b"]) == ["a", "b"]
        assert used(guard) == 1

    @pytest.mark.parametrize("amount", [-1, float("nan"), True, "2", None])
    def test_refuses_a_wrong_amount_where_it_is_written(self, releases: Decorate, amount: object) -> None:
        with pytest.raises(InvalidRequest):
            releases(amount, TEMPLATES)

    def test_refuses_a_wrong_computed_amount_before_the_function(self, releases: Decorate, work: Work) -> None:
        with pytest.raises(InvalidRequest):
            releases(lambda: -1, TEMPLATES)(work)()
        assert work.runs == []


class TestOfAGuard:
    """The same as methods, for plain functions and jobs."""

    def test_required_feature_lets_the_customer_run_it(self, guard: Guard, work: Work) -> None:
        assert guard.requires_feature("feature-exports", customer=CUSTOMER)(work)("a") == "done"
        with pytest.raises(FeatureDenied):
            guard.requires_feature(MISSING, customer=Customer(CUSTOMER))(work)("b")
        assert work.runs == [("a",)]

    def test_usage_is_consumed_by_the_customer_of_the_arguments(self, guard: Guard) -> None:
        @guard.consumes_usage(2, TEMPLATES, customer=lambda who: who)
        def job(who: str) -> str:
            return who

        assert job(CUSTOMER) == CUSTOMER
        assert used(guard) == 5
        with pytest.raises(FeatureDenied):
            job(CUSTOMER)

    def test_feature_is_named_once(self, guard: Guard, work: Work) -> None:
        consuming = guard.consumes_usage(2, customer=CUSTOMER)(work)
        guard.requires_feature(TEMPLATES, customer=CUSTOMER)(consuming)()
        assert used(guard) == 5

    def test_event_reports_it(self, guard: Guard, work: Work) -> None:
        guard.consumes_usage(1, ACTIVE, customer=CUSTOMER, event="user_login", dimensions={"user_id": "ann"})(work)()
        assert used(guard, ACTIVE) == 1


class TestTogether:
    def test_consumption_below_a_required_feature_is_of_that_feature(
        self, requires: Decorate, consumes: Decorate, guard: Guard, work: Work
    ) -> None:
        requires(TEMPLATES)(consumes(2)(work))()
        assert used(guard) == 5

    def test_feature_is_found_through_decorators_in_between(
        self, requires: Decorate, consumes: Decorate, guard: Guard, work: Work
    ) -> None:
        def loud(function: Callable[[], str]) -> Callable[[], str]:
            @wraps(function)
            def shout() -> str:
                return function().upper()

            return shout

        assert requires(TEMPLATES)(loud(consumes(2)(work)))() == "DONE"
        assert used(guard) == 5

    def test_feature_is_found_through_a_consumption_that_names_its_own(
        self, requires: Decorate, consumes: Decorate, guard: Guard, work: Work
    ) -> None:
        requires(TEMPLATES)(consumes(1, SEATS)(consumes(2)(work)))()
        assert (used(guard), used(guard, SEATS)) == (5, 3)

    def test_named_feature_is_consumed_under_another_required_one(
        self, requires: Decorate, consumes: Decorate, guard: Guard, work: Work
    ) -> None:
        requires("feature-exports")(consumes(2, TEMPLATES)(work))()
        assert used(guard) == 5

    def test_missing_feature_keeps_the_consumption_from_beginning(
        self, requires: Decorate, consumes: Decorate, guard: Guard, work: Work
    ) -> None:
        with pytest.raises(FeatureDenied, match=MISSING):
            requires(MISSING)(consumes(2, TEMPLATES)(work))()
        assert used(guard) == 3

    def test_one_function_under_the_same_feature_twice_is_right(
        self, requires: Decorate, consumes: Decorate, guard: Guard, work: Work
    ) -> None:
        requires(TEMPLATES)(requires(TEMPLATES)(consumes(1)(work)))()
        assert used(guard) == 4

    def test_one_function_under_two_features_is_refused(
        self, requires: Decorate, consumes: Decorate, work: Work
    ) -> None:
        below = consumes(1)(work)
        requires(TEMPLATES)(below)
        with pytest.raises(ConfigError, match=f"under two features, {TEMPLATES} and {SEATS}: name the one"):
            requires(SEATS)(below)

    def test_consumption_of_no_feature_is_refused_with_the_remedy(self, consumes: Decorate) -> None:
        def view() -> None:
            raise AssertionError("ran")

        with pytest.raises(
            ConfigError, match=r"view consumes usage of no feature: .*requires_feature\(feature\) above"
        ):
            consumes(1)(view)()

    def test_required_feature_below_names_nothing_above_it(
        self, requires: Decorate, consumes: Decorate, guard: Guard
    ) -> None:
        with pytest.raises(ConfigError, match="of no feature"):
            consumes(1)(requires(TEMPLATES)(lambda: None))()


@pytest.mark.parametrize("name", ["requires", "consumes", "releases"])
def test_decorated_function_keeps_its_name_its_words_and_its_signature(
    name: str, request: pytest.FixtureRequest
) -> None:
    def view(number: int, *, loud: bool = False) -> str:
        """Says it."""
        return str(number)

    decorate = {"requires": ("f",), "consumes": (1, "f"), "releases": (1, "f")}[name]
    decorated = request.getfixturevalue(name)(*decorate)(view)
    assert (decorated.__name__, decorated.__doc__) == ("view", "Says it.")
    assert inspect.signature(decorated) == inspect.signature(view)


@pytest.mark.parametrize(("name", "arguments"), [("requires", ("f",)), ("consumes", (1, "f")), ("releases", (1, "f"))])
def test_async_function_is_refused_where_it_is_decorated(
    name: str, arguments: tuple[Any, ...], request: pytest.FixtureRequest
) -> None:
    async def view() -> None: ...

    with pytest.raises(ConfigError, match="view is an async function"):
        request.getfixturevalue(name)(*arguments)(view)

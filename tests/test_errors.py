"""Errors can be copied, pickled, and raised in another process, with all that they carry."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import flask
import pytest

import stigg_guard
from stigg_guard import Config, Guard, errors
from stigg_guard.entitlements import Customer, Entitlement, Reason
from stigg_guard.flask import StiggGuard
from stigg_guard.flask.errors import RequestDenied, denied

DENIED = errors.FeatureDenied(
    Entitlement(feature_id="f", has_access=False, reason=Reason.BUDGET_EXCEEDED, enum_values=("a", "b")),
    Customer("c", "site"),
)
LOST = errors.LedgerUnavailable("its server is away")
LOST.repeat, LOST.repeatable, LOST.retry_after = (lambda: 5), 600.0, 3.0
MADE = (
    DENIED,
    LOST,
    errors.InvalidRequest("value", "is no amount"),
    errors.InvalidRequest("", "is no request"),
    errors.MissingExtra("redis", "A ledger in Redis"),
    errors.SidecarUnavailable("away", code="UNAVAILABLE", outcome_unknown=True),
    errors.ConfigError("TIMEOUT: wrong"),
)


def copied_deeply(error: Any) -> Any:
    return copy.deepcopy([error, error])[0]


def pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


PICKLES = [pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
WAYS = [copy.copy, copied_deeply, *PICKLES]


def tree(root: type[errors.StiggGuardError] = errors.StiggGuardError) -> Iterator[type[errors.StiggGuardError]]:
    """The root and all that are made of it in this package, also those that an app makes while it runs."""
    yield root
    for kind in root.__subclasses__():
        if kind.__module__.startswith("stigg_guard."):
            yield from tree(kind)


def all_modules() -> None:
    for module in pkgutil.walk_packages(stigg_guard.__path__, "stigg_guard."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def assert_same(made: errors.StiggGuardError, again: errors.StiggGuardError, *, but: str = "") -> None:
    assert type(again) is type(made)
    assert again is not made
    assert (str(again), repr(again), again.args) == (str(made), repr(made), made.args)
    assert vars(again) == {name: value for name, value in vars(made).items() if name != but}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("made", [error for error in MADE if error is not LOST], ids=lambda made: type(made).__name__)
def test_keep_what_they_carry(made: errors.StiggGuardError, way: Callable[[Any], Any]) -> None:
    assert_same(made, way(made))


def test_of_the_whole_tree_can_be_copied_and_pickled() -> None:
    all_modules()
    for kind in {*tree()} - {kind for kind in tree() if issubclass(kind, RequestDenied)}:
        made = kind.__new__(kind, "what is wrong")
        vars(made).update(code="UNAVAILABLE", outcome_unknown=True, figures={"limit": 5})
        for way in WAYS:
            assert_same(made, way(made))


def test_of_flask_keep_their_class_and_their_page() -> None:
    app = flask.Flask(__name__)
    app.config["STIGG_GUARD_LEDGER"] = "memory://"
    StiggGuard(app)
    with app.test_request_context():
        for error in (DENIED, LOST, errors.SignInRequired("nobody"), errors.InvalidRequest("value", "is no amount")):
            made = denied(error)
            for way in WAYS:
                again = way(made)
                assert type(again) is type(made)
                assert (str(again), again.denial, again.code) == (str(made), made.denial, made.code)
                assert (type(again.error), str(again.error)) == (type(error), str(error))
                assert again.get_response().get_data() == made.get_response().get_data()


def test_what_cannot_leave_the_process_stays_in_it() -> None:
    for way in (copy.copy, copied_deeply):
        assert_same(LOST, way(LOST))
    for way in PICKLES:
        assert_same(LOST, way(LOST), but="repeat")
        assert way(LOST).repeat is None


def test_an_optional_part_that_is_missing_says_so_as_importing_does() -> None:
    made = errors.MissingExtra("redis", "A ledger in Redis")
    for way in WAYS:
        assert way(made).msg == made.msg == str(made)


def be_denied() -> None:
    with Guard(Config(sidecar="local", ledger="memory://")) as guard:
        guard.require("feature-analytics", customer="customer-demo-01")


def test_cross_a_pool_of_processes() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(errors.FeatureDenied) as denied,
    ):
        pool.submit(be_denied).result(60)
    assert denied.value.customer == Customer("customer-demo-01")
    assert denied.value.entitlement.reason is Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION

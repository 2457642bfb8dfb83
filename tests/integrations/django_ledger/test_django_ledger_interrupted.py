"""Exceptions from outside, such as a time-out's, cost the use that they hit, wherever that is; nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from django.db import connections, transaction

import stigg_guard
from integrations.django_ledger.helpers import KEY, claim, commit, elsewhere, held, sell, sold, unsent
from stigg_guard.django.ledger.ledger import DjangoLedger
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Hold, Once, Use

PACKAGE = str(Path(stigg_guard.__file__).parent)
EVERY = 11  # of so many moments one is tried

# An exception that comes while Python drops something is ignored.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Interrupted(BaseException):
    """What a signal's handler raises, or a watchdog."""


def is_interrupted(work: Callable[[], object], moment: int) -> bool:
    """Does the work, with an exception at the given moment of the ledger's code; whether there was such a moment."""
    left = moment

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event in ("call", "line"):
            left -= 1
            if left == 0:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with suppress(Interrupted):
            work()
    finally:
        sys.settrace(before)
    return left <= 0


def with_units(ledger: DjangoLedger, _number: int) -> Hold:
    return held(ledger, claim(limit=None))


def without_any(_ledger: DjangoLedger, number: int) -> Hold:
    """What holds nothing, and counts by its key."""
    return Hold(f"hold-{number}", (), Once("ann", f"order-{number}"))


EITHER_HOLD = pytest.mark.parametrize("take", [with_units, without_any])
Take = Callable[[DjangoLedger, int], Hold]


@EITHER_HOLD
def test_an_interrupted_commit_can_be_repeated(ledger: DjangoLedger, take: Take) -> None:
    for done, moment in enumerate(count(1, EVERY), start=1):
        hold = take(ledger, done)
        is_hit = is_interrupted(lambda hold=hold: ledger.commit(hold, [Use(KEY, 1)]), moment)
        ledger.commit(hold, [Use(KEY, 1)], repeated=True)
        assert unsent(ledger) == done
        if not is_hit:
            break
    assert ledger.counts()["held"] == 0


def test_an_interrupted_transaction_that_is_rolled_back_has_no_usage(ledger: DjangoLedger, alias: str) -> None:
    for moment in count(2, EVERY):
        taken: list[Hold] = []

        def use(taken: list[Hold] = taken) -> None:
            taken.append(held(ledger, claim(limit=None)))
            sell(alias)
            commit(ledger, taken[0])

        is_hit = True
        with suppress(Interrupted), transaction.atomic(using=alias):
            is_hit = is_interrupted(use, moment)
            if is_hit:
                raise Interrupted
        for hold in taken:
            elsewhere(lambda hold=hold: ledger.commit(hold, [Use(KEY, 1)], repeated=True))
        assert unsent(ledger) == sold(alias) == (0 if is_hit else 1)
        if not is_hit:
            break


@EITHER_HOLD
def test_an_interrupted_transaction_that_goes_on_has_the_usage(ledger: DjangoLedger, alias: str, take: Take) -> None:
    others_may_write = connections[alias].vendor == "postgresql"
    for done, moment in enumerate(count(3, EVERY), start=1):
        with transaction.atomic(using=alias):
            hold = take(ledger, done)
            sell(alias)
            is_hit = is_interrupted(lambda hold=hold: ledger.commit(hold, [Use(KEY, 1)]), moment)
            if others_may_write:
                with suppress(LedgerUnavailable):  # which knows that the transaction is open
                    elsewhere(lambda hold=hold: ledger.commit(hold, [Use(KEY, 1)], repeated=True))
        ledger.commit(hold, [Use(KEY, 1)], repeated=True)
        assert unsent(ledger) == sold(alias) == done
        if not is_hit:
            break

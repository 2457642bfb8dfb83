"""Usage that a damaged ledger does not take, and the sidecar may not take either."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from grpc import StatusCode

from conftest import ManualClock
from faulty_sidecar import FaultySidecar, abort, no_fault
from stigg_guard.config import OnUncertain
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Acknowledged, Event, Ledger, UsageKey, Use, ledger_from_url
from stigg_guard.usage.sender import Sender
from stigg_guard.usage.spill import StrandedUses

KEY = UsageKey("c", "", "f")


class Rescue(NamedTuple):
    """Stranded uses, and what they are between."""

    stranded: StrandedUses
    ledger: Ledger
    file: Path
    told: list[Acknowledged]

    def use(self, *uses: Use) -> None:
        """Uses that are to be recorded while the ledger is damaged."""
        with damaged(self.file):
            for use in uses:
                with pytest.raises(LedgerUnavailable) as failed:
                    self.ledger.record(use)
                self.stranded.rescue([use], failed.value)

    def retry_without_ledger(self) -> None:
        with damaged(self.file):
            self.stranded.retry()


@contextmanager
def damaged(ledger: Path) -> Iterator[None]:
    """While it lasts, the ledger's file lacks a table."""
    with closing(sqlite3.connect(ledger)) as file:
        file.execute("ALTER TABLE entries RENAME TO lost")
        yield
        file.execute("ALTER TABLE lost RENAME TO entries")


@pytest.fixture
def make(faulty: FaultySidecar, clock: ManualClock, tmp_path: Path) -> Iterator[Callable[..., Rescue]]:
    file = tmp_path / "ledger.sqlite3"
    ledger = ledger_from_url(f"sqlite:///{file}", clock.clock)
    ledger.counts()
    stigg = faulty.client()

    def make(on_uncertain: OnUncertain = OnUncertain.RECONCILE) -> Rescue:
        told: list[Acknowledged] = []
        sender = Sender(lambda: stigg, on_uncertain)
        return Rescue(StrandedUses(ledger, sender, clock.clock, told.append), ledger, file, told)

    yield make
    ledger.close()
    stigg.close()


@pytest.fixture
def rescue(make: Callable[..., Rescue]) -> Rescue:
    return make()


def counted(rescue: Rescue) -> dict[str, int]:
    return dict(rescue.stranded.counts)


class TestThatTheSidecarTakes:
    def test_is_sent_at_once_and_not_kept(self, rescue: Rescue, faulty: FaultySidecar) -> None:
        rescue.use(Use(KEY, 3))
        assert (faulty.used(), len(rescue.stranded), counted(rescue)) == (3, 0, {"acknowledged": 1})
        assert [answer.current_usage for answer in rescue.told] == [3]

    def test_is_sent_as_the_event_that_it_is(self, rescue: Rescue, faulty: FaultySidecar) -> None:
        rescue.use(Use(KEY, 5, event=Event("answered", "key-01", {"tokens": 5})))
        assert [name for name, _ in faulty.asked] == ["ReportEvents"]
        assert (len(rescue.stranded), counted(rescue)) == (0, {"acknowledged": 1})


def test_that_the_sidecar_refuses_is_told_and_not_kept(rescue: Rescue, caplog: pytest.LogCaptureFixture) -> None:
    rescue.use(Use(UsageKey("c", "", "unheard-of"), 3))
    assert (len(rescue.stranded), counted(rescue)) == (0, {"rejected": 1})
    assert "the sidecar rejects usage of 'c unheard-of', and no ledger can keep it" in caplog.text


class TestThatNothingTakes:
    """What is certainly not counted."""

    @pytest.fixture(autouse=True)
    def kept(self, rescue: Rescue, faulty: FaultySidecar, caplog: pytest.LogCaptureFixture) -> None:
        faulty.before = abort(StatusCode.PERMISSION_DENIED)
        rescue.use(Use(KEY, 1), Use(UsageKey("c", "", "g"), 2))
        assert len(rescue.stranded) == 2
        assert "'c g' is kept in memory only: 2 units" in caplog.text

    def test_is_kept_while_nothing_does(self, rescue: Rescue) -> None:
        rescue.retry_without_ledger()
        assert (len(rescue.stranded), counted(rescue)) == (2, {})

    def test_is_written_when_the_ledger_is_back(self, rescue: Rescue) -> None:
        rescue.stranded.retry()
        assert (len(rescue.stranded), rescue.ledger.counts()["unsent"]) == (0, 2)

    def test_is_sent_when_the_sidecar_is_back(self, rescue: Rescue, faulty: FaultySidecar) -> None:
        faulty.before = no_fault
        rescue.retry_without_ledger()
        assert (len(rescue.stranded), faulty.used("f"), faulty.used("g")) == (0, 1, 2)


def test_beyond_what_memory_is_for_is_lost_loudly(
    rescue: Rescue, faulty: FaultySidecar, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stigg_guard.usage.spill.MAX_STRANDED", 100)
    faulty.stop()
    uses = [Use(KEY, 1)] * 101
    with caplog.at_level("CRITICAL", "stigg_guard"):
        rescue.stranded.rescue(uses, LedgerUnavailable("the disk is full"))
    assert len(rescue.stranded) == 100
    assert "usage of 'c f' is LOST: 1 units" in caplog.text


class TestThatMayBeCounted:
    """3 units that the sidecar has counted, and did not say so."""

    @pytest.fixture
    def doubtful(self, make: Callable[..., Rescue], faulty: FaultySidecar) -> Callable[..., Rescue]:
        def doubtful(on_uncertain: OnUncertain = OnUncertain.RECONCILE) -> Rescue:
            rescue = make(on_uncertain)
            faulty.after = abort(StatusCode.INTERNAL)
            rescue.use(Use(KEY, 3))
            faulty.after = no_fault
            assert (faulty.used(), len(rescue.stranded)) == (3, 1)
            return rescue

        return doubtful

    def test_counts_once_where_keys_are_honoured(self, doubtful: Callable[..., Rescue], faulty: FaultySidecar) -> None:
        rescue = doubtful()
        rescue.stranded.retry()
        assert (faulty.used(), len(rescue.stranded), counted(rescue)) == (3, 0, {"acknowledged": 1})
        assert len({key for _, key in faulty.asked}) == 1
        assert len(faulty.asked) == 2

    def test_is_not_sent_again_where_they_are_not(
        self, doubtful: Callable[..., Rescue], faulty: FaultySidecar, caplog: pytest.LogCaptureFixture
    ) -> None:
        faulty.honours_keys = False
        rescue = doubtful()
        rescue.stranded.retry()
        assert (faulty.used(), len(rescue.stranded), counted(rescue)) == (3, 0, {"doubted": 1})
        assert "3 units of 'c f' may be counted or LOST" in caplog.text

    def test_is_sent_again_where_they_are_not_if_told_so(
        self, doubtful: Callable[..., Rescue], faulty: FaultySidecar
    ) -> None:
        faulty.honours_keys = False
        doubtful(OnUncertain.RESEND).stranded.retry()
        assert faulty.used() == 6

    def test_is_kept_until_the_sidecar_says_which_it_is(
        self, doubtful: Callable[..., Rescue], faulty: FaultySidecar
    ) -> None:
        rescue = doubtful()
        faulty.stop()
        rescue.stranded.retry()
        assert len(rescue.stranded) == 1


class TestStepThatWasNotAnswered:
    """The ledger may have made it, and makes it again without doing it twice for 60 seconds."""

    @pytest.fixture
    def asked(self) -> list[bool]:
        """What the ledger does when it is asked again: True for an answer."""
        return []

    @pytest.fixture(autouse=True)
    def unanswered(self, rescue: Rescue, asked: list[bool]) -> None:
        def repeat() -> None:
            if not asked.pop():
                raise LedgerUnavailable("no answer")

        error = LedgerUnavailable("no answer")
        error.repeat, error.repeatable = repeat, 60.0
        rescue.stranded.rescue([Use(KEY, 3)], error)

    def test_is_not_sent_beside_the_ledger(self, rescue: Rescue, faulty: FaultySidecar) -> None:
        assert (len(rescue.stranded), faulty.asked) == (1, [])

    def test_is_made_again_until_it_is_answered(self, rescue: Rescue, asked: list[bool]) -> None:
        asked.append(False)
        rescue.stranded.retry()
        assert len(rescue.stranded) == 1
        asked.append(True)
        rescue.stranded.retry()
        assert (len(rescue.stranded), counted(rescue)) == (0, {})

    def test_is_given_up_loudly_when_it_could_be_done_twice(
        self, rescue: Rescue, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock.advance(60)
        rescue.stranded.retry()
        assert (len(rescue.stranded), counted(rescue)) == (0, {"doubted": 1})
        assert "may be counted or LOST, since the ledger did not answer for too long: 3 of 'c f'" in caplog.text

"""Using units in streams: what counts when one ends, fails or is dropped."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stigg_guard import Guard
from stigg_guard.usage.streams import SettlingStream
from usage.outage import WatchedEngine


class TestStreams:
    @pytest.fixture
    def stream(self, guard: Guard) -> Callable[[int], Any]:
        """A job that yields numbers, for as many seats as there are."""

        @guard.consumes_usage(lambda n: n, "seats", customer="c")
        def count(n: int) -> Iterator[int]:
            for number in range(n):
                if number == 4:
                    raise OSError("out of paper")
                yield number

        return count

    def test_are_reported_when_they_end_and_not_when_they_begin(
        self, stream: Callable[[int], Any], guard: Guard, engine: WatchedEngine
    ) -> None:
        numbers = stream(3)
        assert next(numbers) == 0
        assert (guard.stats()["held"], guard.stats()["unsent"]) == (1, 0)
        assert list(numbers) == [1, 2]
        numbers.close()
        assert list(numbers) == []
        assert guard.flush() == 0
        assert engine.used("seats") == 3

    def test_give_back_when_closed_half_way(
        self, stream: Callable[[int], Any], guard: Guard, engine: WatchedEngine
    ) -> None:
        numbers = stream(3)
        next(numbers)
        numbers.close()
        assert guard.stats()["held"] == 0
        assert (guard.flush(), engine.used("seats")) == (0, 0)

    def test_give_back_when_they_fail_half_way(
        self, stream: Callable[[int], Any], guard: Guard, engine: WatchedEngine
    ) -> None:
        with pytest.raises(OSError, match="out of paper"):
            list(stream(8))
        assert guard.stats()["held"] == 0
        assert (guard.flush(), engine.used("seats")) == (0, 0)

    def test_give_back_when_closed_before_they_began(self, stream: Callable[[int], Any], guard: Guard) -> None:
        stream(3).close()
        assert guard.stats()["held"] == 0

    def test_give_back_when_nobody_wants_them_any_more(self, stream: Callable[[int], Any], guard: Guard) -> None:
        numbers = stream(3)
        next(numbers)
        assert guard.stats()["held"] == 1
        del numbers
        gc.collect()
        assert guard.stats()["held"] == 0

    def test_that_are_dropped_in_an_event_loop_end_in_another_thread(self) -> None:
        ended_in: list[int] = []

        async def drop() -> None:
            stream = SettlingStream((), lambda _: ended_in.append(threading.get_ident()))
            del stream
            assert ended_in == []
            await asyncio.sleep(0)  # one turn of the loop, which hands the ending on

        asyncio.run(drop())
        assert len(ended_in) == 1
        assert ended_in != [threading.get_ident()]

    def test_that_are_dropped_tell_what_is_wrong_and_raise_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        def fail(_succeeded: bool) -> None:
            raise OSError("out of paper")

        stream = SettlingStream((), fail)
        del stream
        assert "out of paper" in caplog.text

    def test_run_their_own_cleaning_up_when_closed(self, guard: Guard) -> None:
        seen: list[int] = []

        @guard.consumes_usage(1, "seats", customer="c")
        def letters() -> Iterator[str]:
            try:
                yield "a"
            finally:
                seen.append(int(guard.stats()["held"]))

        stream: Any = letters()
        next(stream)
        stream.close()
        assert seen == [1]

    def test_of_units_given_back_count_when_they_end(self, guard: Guard, engine: WatchedEngine) -> None:
        guard.report("seats", 8, customer="c", set_total=True)

        @guard.releases_usage(2, "seats", customer="c")
        def remove() -> Iterator[int]:
            yield 1
            yield 2

        cut: Any = remove()
        next(cut)
        cut.close()
        assert guard.flush() == 0
        assert engine.used("seats") == 8
        assert list(remove()) == [1, 2]
        assert guard.flush() == 0
        assert engine.used("seats") == 6

"""One comparison: our side and a floor, timed in turns within one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from timeit import Timer
from typing import NamedTuple

ROUNDS = 9
LAPS = 60
LAP_SECONDS = 0.002
CONTROL_RANGE = (0.93, 1.07)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Our way to do something, and the least that it could cost.

    One execution of either timer makes ``calls`` calls. ``per_second`` compares calls per second instead of the time
    of a call. Without an ``aim`` the comparison only informs.
    """

    name: str
    ours: Timer
    floor: Timer
    aim: Aim | None = None
    calls: int = 1
    per_second: bool = False


class Aim(NamedTuple):
    """What a result should come to."""

    text: str
    reached: Callable[[Result], bool]


class Round(NamedTuple):
    """Seconds of one call. The floor is timed on both sides of ours, so that a drifting machine bends neither."""

    before: float
    ours: float
    after: float

    @property
    def floor(self) -> float:
        return (self.before + self.after) / 2


@dataclass(frozen=True, slots=True)
class Result:
    """The rounds of a comparison, and the medians over them."""

    comparison: Comparison
    rounds: Sequence[Round]

    @property
    def ours(self) -> float:
        """Seconds of one call."""
        return median(entry.ours for entry in self.rounds)

    @property
    def floor(self) -> float:
        """Seconds of one call."""
        return median(entry.floor for entry in self.rounds)

    @property
    def ratio(self) -> float:
        """Ours over the floor: of times, or of calls per second where those are compared."""
        times = median(entry.ours / entry.floor for entry in self.rounds)
        return 1 / times if self.comparison.per_second else times

    @property
    def added(self) -> float:
        """Seconds that our side takes more for one call."""
        return median(entry.ours - entry.floor for entry in self.rounds)

    @property
    def control(self) -> float:
        """The floor over itself: what the machine does to a ratio that must be 1."""
        return median(entry.after / entry.before for entry in self.rounds)

    @property
    def verdict(self) -> str:
        """Whether the aim was reached, or why that cannot be said."""
        low, high = CONTROL_RANGE
        if not low <= self.control <= high:
            return "too noisy"
        aim = self.comparison.aim
        if aim is None:
            return "-"
        return "yes" if aim.reached(self) else "no"


def ratio_at_most(bound: float) -> Aim:
    """Our side may cost this many times the floor."""
    return Aim(f"ratio <= {bound:g}", lambda result: result.ratio <= bound)


def ratio_at_least(bound: float) -> Aim:
    """Our side must make this many times the calls of the floor."""
    return Aim(f"ratio >= {bound:g}", lambda result: result.ratio >= bound)


def adds_at_most(microseconds: float) -> Aim:
    """Our side may take so much longer for one call."""
    return Aim(f"adds <= {microseconds:g} us", lambda result: result.added * 1e6 <= microseconds)


def measure(comparison: Comparison) -> Result:
    """Times both sides, a short lap at a time, in turns."""
    floor = _lap(comparison.floor, comparison.calls)
    ours = _lap(comparison.ours, comparison.calls)
    return Result(comparison, [_round(floor, ours) for _ in range(ROUNDS)])


def _round(floor: Callable[[], float], ours: Callable[[], float]) -> Round:
    laps = [(floor(), ours(), floor()) for _ in range(LAPS)]
    return Round(*(median(side) for side in zip(*laps, strict=True)))


def _lap(timer: Timer, calls: int) -> Callable[[], float]:
    """Times as many executions as fill a lap; returns the seconds of one call."""
    timer.timeit(1)  # the first one connects and fills caches
    executions = 1
    while timer.timeit(executions) < LAP_SECONDS:
        executions *= 2

    def lap() -> float:
        if executions > 1:
            timer.timeit(1)  # the other side has left the caches cold and the servers asleep
        return timer.timeit(executions) / (executions * calls)

    return lap

"""One comparison: our side and a floor, timed in turns within one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from timeit import Timer
from typing import Literal, NamedTuple

LAP_SECONDS = 0.002
CONTROL_RANGE = (0.93, 1.07)


class Effort(NamedTuple):
    """How many rounds a comparison is measured in, and how many laps each has."""

    rounds: int
    laps: int


FULL = Effort(rounds=9, laps=60)
QUICK = Effort(rounds=3, laps=10)


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


class Row(NamedTuple):
    """A line of the table.

    ``ours`` and ``floor`` are seconds, calls per second or bytes, as the ``unit`` says, and ``added`` what our side has
    more. ``control`` is the floor over itself; None where nothing is timed.
    """

    name: str
    ours: float
    floor: float
    unit: Literal["s", "/s", "B"]
    ratio: float
    added: float
    aim: str
    reached: str
    control: float | None


class Aim(NamedTuple):
    """What a ratio, and what is added, should come to."""

    text: str
    is_reached: Callable[[float, float], bool]


class Round(NamedTuple):
    """Seconds of one call. The floor is timed on both sides of ours, so that a drifting machine bends neither."""

    before: float
    ours: float
    after: float

    @property
    def floor(self) -> float:
        return (self.before + self.after) / 2


WITHIN_NOISE = Aim(
    f"ratio = 1 +- {CONTROL_RANGE[1] - 1:.2f}",
    lambda ratio, _added: CONTROL_RANGE[0] <= ratio <= CONTROL_RANGE[1],
)
"""Both sides are the same."""


def ratio_at_most(bound: float) -> Aim:
    """Our side may cost this many times the floor."""
    return Aim(f"ratio <= {bound:g}", lambda ratio, _added: ratio <= bound)


def ratio_at_least(bound: float) -> Aim:
    """Our side must make this many times the calls of the floor."""
    return Aim(f"ratio >= {bound:g}", lambda ratio, _added: ratio >= bound)


def adds_at_most(microseconds: float) -> Aim:
    """Our side may take so much longer for one call."""
    return Aim(f"adds <= {microseconds:g} us", lambda _ratio, added: added * 1e6 <= microseconds)


def measure(comparison: Comparison, effort: Effort) -> Row:
    """Times both sides, a short lap at a time, in turns; a line of medians over the rounds."""
    floor = _lap(comparison.floor, comparison.calls)
    ours = _lap(comparison.ours, comparison.calls)
    return _row(comparison, [_round(floor, ours, effort.laps) for _ in range(effort.rounds)])


def weigh(name: str, ours: float, floor: float, aim: Aim) -> Row:
    """A line of bytes."""
    ratio = ours / floor
    reached = "yes" if aim.is_reached(ratio, ours - floor) else "no"
    return Row(name, ours, floor, "B", ratio, ours - floor, aim.text, reached, None)


def _row(comparison: Comparison, rounds: Sequence[Round]) -> Row:
    ours, floor = median(entry.ours for entry in rounds), median(entry.floor for entry in rounds)
    ratio = median(entry.ours / entry.floor for entry in rounds)
    added = median(entry.ours - entry.floor for entry in rounds)
    control = median(entry.after / entry.before for entry in rounds)
    if comparison.per_second:
        ours, floor, ratio, added = 1 / ours, 1 / floor, 1 / ratio, 1 / ours - 1 / floor
    aim = comparison.aim
    reached = "-" if aim is None else "yes" if aim.is_reached(ratio, added) else "no"
    low, high = CONTROL_RANGE
    if not low <= control <= high:
        reached = "too noisy"
    unit: Literal["s", "/s"] = "/s" if comparison.per_second else "s"
    return Row(comparison.name, ours, floor, unit, ratio, added, aim.text if aim else "-", reached, control)


def _round(floor: Callable[[], float], ours: Callable[[], float], laps: int) -> Round:
    timed = [(floor(), ours(), floor()) for _ in range(laps)]
    return Round(*(median(side) for side in zip(*timed, strict=True)))


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

"""What a run of the simulation is like. Times are in ticks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .truth import Manner, Terms

GRACE, TTL, FLIGHT, LEASE, HOLD = 4, 5, 2, 4, 12
BLIND = GRACE + TTL + FLIGHT + 1
"""From a change of plan until every claim was asked for after it and cannot lag it."""
START = 100_000
_LENGTHS = (20, 20, 60, 200, None)


@dataclass(frozen=True)
class Setting:
    """What is drawn for a run. What is no number of ticks is how often something happens, from 0 to 1."""

    features: Sequence[str]
    manner: Manner
    plans: Sequence[Mapping[str, Terms]]
    keys: bool
    """Whether the sidecar honours idempotency keys."""
    quantum: int
    """How many quanta the smallest amount has."""
    tick: int
    """How many nanoseconds it is."""
    figures: float
    """How many answers have a figure."""
    pace: float
    """How often time passes."""
    changes: float
    clocks: int
    """By how much the clocks of hosts differ."""
    set_back: float
    leaps: float
    """The ledger's wall clock is set back, or forward, by up to 60. The latter takes a ledger that notices."""
    records: float
    given_back: float
    totals: float
    """How much is recorded without a hold, and which parts of that."""
    events: float
    """How many uses are reported by events."""
    kills: int
    refusals: float
    outages: float
    pauses: float
    """How many answers are heard long after their lease."""


def drawn(rng: random.Random, given: Mapping[str, Any]) -> Setting:
    """A setting at random; what is ``given`` is not drawn."""
    late, lag = rng.choice([(0, 0), (GRACE, 0), (0, GRACE), (2, 2)])  # together within the grace
    clocks = rng.choice([0, 0, 3, 50])
    values: dict[str, Any] = {
        "books": rng.choice(["arrival", "stamped", "window"]),
        "shown": rng.choice(["both", "both", "both", "end", "start", "none"]),
        "late": late,
        "lag": lag,
        "events_lag": rng.choice([0, GRACE]),
        "stops_at_0": rng.random() < 0.5,
        "keys": rng.random() < 0.6,
        "features": rng.choice(["f", "f", "f", "fg"]),
        "quantum": rng.choice([1_000_000, 100_000, 1]),
        "tick": rng.choice([1_000_000_000, 20_000_000_000]),
        "figures": rng.choice([1.0, 1.0, 0.7, 0.0]),
        "pace": rng.choice([0.1, 0.2, 0.3]),
        "changes": rng.choice([0.0, 0.02, 0.05, 0.15]),
        "limits": rng.choice(["alike", "different"]),
        "windows": rng.choice(["alike", "different", "different"]),
        "clocks": clocks,
        "set_back": rng.choice([0.0, 0.01]) if clocks else 0.0,
        "leaps": 0.0,
        "records": rng.choice([0.0, 0.0, 0.04]),
        "given_back": rng.choice([0.0, 0.5]),
        "totals": rng.choice([0.0, 0.2]),
        "events": rng.choice([0.0, 0.0, 0.0, 1.0]),
        "kills": rng.choice([0, 0, 0, 1, 2, 3]),
        "refusals": rng.choice([0.0, 0.0, 0.05]),
        "outages": rng.choice([0.0, 0.0, 0.02]),
        "pauses": rng.choice([0.0, 0.0, 0.1]),
    }
    values.update(given)
    lag = values.pop("lag")
    plans = _plans(rng, values.pop("limits"), values.pop("windows"), values["features"], values["quantum"])
    manner = Manner(
        books=values.pop("books"),
        shown=values.pop("shown"),
        late=values.pop("late"),
        lag=lag,
        events_lag=min(values.pop("events_lag"), GRACE - lag),
        stops_at_0=values.pop("stops_at_0") or not values["keys"],  # below 0, reading back shows nothing
        blind=BLIND,
    )
    return Setting(manner=manner, plans=plans, **values)


def _plans(rng: random.Random, limits: str, windows: str, features: str, quantum: int) -> list[dict[str, Terms]]:
    """The plans of the customer; the first has periods that begin anew."""
    plans: list[dict[str, Terms]] = []
    anchors = [START - rng.randint(0, 30) for _ in range(2)]
    limit: int | None = quantum * rng.choice([5, 10])
    for number in range(4):
        terms = {}
        for feature in features:
            length = rng.choice(_LENGTHS if number else _LENGTHS[:3])
            anchor: int | None = rng.choice([*anchors, START - rng.randint(0, 30)])
            if length is None and rng.random() < 0.3:
                anchor = None
            if limits == "different":
                limit = quantum * rng.choice([3, 5, 10, 20])
                if number and rng.random() < 0.1:
                    limit = rng.choice([None, -1, 0])
            if number and windows == "alike":
                length, anchor, _ = plans[0][feature]
            terms[feature] = Terms(length, anchor, limit)
        plans.append(terms)
    return plans

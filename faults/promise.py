"""What a scenario found out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise, the figures that were measured, and whether they keep it."""

    text: str
    figures: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a scenario may write, and how much of it is done."""

    folder: Path
    rounds: int
    """Rounds of kill -9."""
    entries: int
    """Unsent entries in the long outage."""
    outage_seconds: float
    """How long the peers' server is away."""
    traffic_seconds: float
    """How long there is traffic beside the cache service."""

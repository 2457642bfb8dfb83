"""The parts that a guard works with, and what stands in for them while tests override entitlements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stigg_guard.checks.lookup import Lookup
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.ledger import Ledger, ledger_from_url
from stigg_guard.ledger.files import default_url, user_state_folder
from stigg_guard.usage.holds import Holds


@dataclass(frozen=True, slots=True)
class Workings:
    """The parts of a guard: lookup, ledger and holds."""

    lookup: Lookup
    ledger: Ledger
    holds: Holds


stand_ins: list[Callable[[Workings], Workings]] = []
"""The last one makes what every guard of the process works with of the guard's own workings; without any it works with
these. For tests: see ``stigg_guard.testing``."""


def ledger_of(config: Config, clock: Clock) -> Ledger:
    """Makes the ledger of a configuration."""
    return ledger_from_url(ledger_url(config), clock, settle_grace=config.settle_grace)


def ledger_url(config: Config) -> str:
    """The URL of the ledger of a configuration: ``LEDGER``, or a file of the user's."""
    if config.ledger is not None:
        return config.ledger
    return default_url(user_state_folder(), config.sidecar) if config.enabled else "memory://"

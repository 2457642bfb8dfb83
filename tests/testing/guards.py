"""Guards whose own sidecar nobody can reach, and their use."""

from __future__ import annotations

from typing import Any

from stigg_guard import Config, Customer, Guard

NOBODY_LISTENS = "127.0.0.1:1"
ACME = "acme"
TIMES = 20


def make(**settings: object) -> Guard:
    return Guard(Config.from_mapping({"SIDECAR": NOBODY_LISTENS, "LEDGER": "memory://", **settings}))


def use(guard: Guard, feature: str, amount: float = 1, customer: str | Customer = ACME, **more: Any) -> None:
    with guard.consume(feature, amount, customer=customer, **more):
        pass


def used(guard: Guard, feature: str, customer: str | Customer = ACME) -> float:
    return guard.check(feature, customer=customer).current_usage

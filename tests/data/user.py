"""Somebody's own code, which a type checker reads with the installed package."""

from __future__ import annotations

from collections.abc import Callable

from stigg_guard import Config, Customer, Entitlement, Fallback, FeatureDenied, Guard
from stigg_guard.observer import Observer, Step


class Slow(Observer):
    def fetched(self, step: Step) -> None:
        print(step.seconds + 1)


guard = Guard(Config(sidecar="localhost:80", fallbacks={"f": Fallback(True)}))
leave: Callable[[], None] = guard.observe(Slow())
answer: Entitlement = guard.check("f", customer=Customer("c", "r"))
left: float | None = answer.remaining


@guard.requires_feature("f", customer=lambda name: name)
def greet(name: str) -> int:
    return len(name)


number: int = greet("you")
try:
    with guard.consume("f", 2, customer="c") as usage:
        usage.amount = 1
except FeatureDenied as error:
    print(error.entitlement.reason, error.customer.id)

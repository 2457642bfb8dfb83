"""Steps in Redis: on the queue, and on customers who are queued before they are changed.

How no customer with something to send is ever forgotten
--------------------------------------------------------

What a customer has and the queue of customers live under different hash tags, so no script can change both. A step
that leaves something to send therefore first queues its customer, with a token, and then changes the customer: a crash
between the two leaves a customer in the queue in vain, which does no harm. A visitor of the queue that finds nothing to
send notes the token that it saw with the customer, atomically with having found nothing, and then takes the customer
out of the queue if the token there is still the same. A step whose token is not above the noted one is refused, and
begins again with a higher token. So whoever takes a customer out has seen the token of each step that queued it before,
and those steps either showed the visitor what they left to send, or are refused.

Tokens only grow in the queue. They come from hosts' clocks, and a clock that is wrong costs a refusal, nothing else.
They number the entries too: those of one customer are in the very order in which they were written, those of several
customers as nearly as their hosts' clocks agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stigg_guard.clock import Clock, microseconds, utc_now
from stigg_guard.ledger.redis_fields import CUSTOMERS, QUEUE_KEYS, QUEUES, customer_keys, pairs
from stigg_guard.ledger.redis_scripts import script
from stigg_guard.ledger.redis_server import Command, Part, Server

CUSTOMERS_AT_ONCE = 500
_UNKNOWN = -1


class Step(NamedTuple):
    """A step on one customer: its name, what it is given after the token, and keys beyond the customer's own."""

    name: str
    given: Sequence[Any] = ()
    keys: Sequence[str] = ()


class Steps:
    """Makes steps on customers and on the queue, timed by the server's clock or the injected one.

    A customer of whom this ledger knows nothing yet is given to ``take_over`` first, and then the step is made.
    """

    def __init__(self, server: Server | Part, clock: Clock, take_over: Callable[[str], None]) -> None:
        self._server = server
        self._now = None if clock.now is utc_now else clock.now
        self._take_over = take_over
        self._token = 0

    def of(self, customer: str, step: str, *given: Any, keys: Sequence[str] = ()) -> Command:
        """The command of a step on a customer, whose id is quoted."""
        return self._command(step, (*customer_keys(customer), *keys), given)

    def of_queue(self, step: str, *given: Any, keys: Sequence[str] = ()) -> Command:
        return self._command(step, (*QUEUE_KEYS, *keys), given)

    def on(self, customer: str, step: str, *given: Any) -> Any:
        """What a step answers that leaves nothing to send."""
        while (answer := self._server.ask(self.of(customer, step, *given))) == _UNKNOWN:
            self._take_over(customer)
        return answer

    def on_queue(self, step: str, *given: Any, keys: Sequence[str] = ()) -> Any:
        """What a step on the queue answers; once it found that the clock was set back, all that waits is looked at."""
        command = self.of_queue(step, *given, keys=keys)
        while (answer := self._server.ask(command)) == "set back":
            for seen in self.customers():
                self._server.ask_all([self.of(customer, "bring_back") for customer in seen])
            self._server.ask(self.of_queue("set_back"))
        return answer

    def queued(self, steps: Mapping[str, Step], queues: Collection[str] = ()) -> dict[str, Any]:
        """Queues the customers and makes the step of each, until none fails; the answers by customer."""
        answers: dict[str, Any] = {}
        while steps:
            self._token = token = max(time.time_ns() // 1000, self._token + 1)
            commands: list[Command] = []
            for customer, step in steps.items():
                commands.append(("ZADD", CUSTOMERS, "GT", token, customer))
                for queue in queues:
                    score = 0 if queue == "uncertain" else token  # there it is the time when a decision is due
                    commands.append(("ZADD", QUEUES[queue], "LT", score, customer))
                commands.append(self.of(customer, step.name, token, *step.given, keys=step.keys))
            answered = self._server.ask_all(commands)[len(queues) + 1 :: len(queues) + 2]
            answers.update(zip(steps, answered, strict=True))
            steps = {customer: steps[customer] for customer in steps if isinstance(answers[customer], int)}
            for customer in steps:
                if answers[customer] == _UNKNOWN:
                    self._take_over(customer)
            self._token = max(self._token, *(answers[customer] for customer in steps), 0)
        return answers

    def all_on(self, customers: Iterable[str], step: str, *given: Any) -> list[Any]:
        """What a step answers on each of the customers."""
        return self._server.ask_all([self.of(customer, step, *given) for customer in customers])

    def customers(self) -> Iterator[dict[str, str]]:
        """All customers that may have something, with the tokens that they were queued with, some at a time."""
        seen = self._server.ask(("ZRANGE", CUSTOMERS, 0, -1, "WITHSCORES"))
        step = 2 * CUSTOMERS_AT_ONCE
        return (pairs(seen[start : start + step]) for start in range(0, len(seen), step))

    def _command(self, step: str, keys: Sequence[str], given: Sequence[Any]) -> Command:
        now = "" if self._now is None else microseconds(self._now())
        return (script(f"steps.{step}()"), len(keys), *keys, now, *given)

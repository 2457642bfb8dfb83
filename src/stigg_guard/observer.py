"""Observes a guard: the callbacks that signals, traces, metrics and panels are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Concatenate, ParamSpec, TypeVar

from stigg_guard.clock import Clock
from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import FeatureDenied, StiggGuardError
from stigg_guard.ledger import Acknowledged, Use
from stigg_guard.runtime.log import logger

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """Something that took time: a fetch, a hold or a batch of reports.

    ``customer`` is None for a batch, which is of several. ``features`` are the ids that it was about: none for a fetch
    of all that the customer has, one for each report of a batch. ``seconds`` is how long it took from ``began_at``,
    which is in UTC, and ``error`` what it ended with.
    """

    customer: Customer | None
    features: tuple[str, ...]
    began_at: datetime
    seconds: float
    error: BaseException | None


class Observer:
    """Callbacks for what happens in a guard; subclass it and give it to :class:`~stigg_guard.Guard` or to
    :meth:`~stigg_guard.Guard.observe`.

    The methods are called in the thread in which it happened, and do nothing here. What they raise is logged and
    changes nothing. They return at once: a request waits for them.
    """

    def checked(self, answer: Entitlement, customer: Customer) -> None:
        """Called for each answer of ``check`` and ``require``, and of what a hold was decided by."""

    def unanswered(self, feature: str, customer: Customer, error: StiggGuardError) -> None:
        """Called when a check finds neither data nor a fallback, and raises ``error``."""

    def denied(self, error: FeatureDenied) -> None:
        """Called when a customer is denied a feature, in the thread of the request."""

    def fetched(self, step: Step) -> None:
        """Called when the sidecar was asked for entitlements, whether or not it answered."""

    def held(self, step: Step) -> None:
        """Called when a hold was asked for: taken, or denied (its error is ``FeatureDenied``), or impossible."""

    def used(self, use: Use) -> None:
        """Called when usage is in the ledger, and is to be reported."""

    def sent(self, step: Step) -> None:
        """Called when a batch of reports was sent, in the thread that reports, whether or not it was answered."""

    def reported(self, answer: Acknowledged) -> None:
        """Called when the sidecar has counted ``answer.report``; ``answer.current_usage`` is the usage then.

        Called in the thread that reports: with ``REPORT = "background"`` that is no thread of a request.
        """

    def threshold_reached(self, customer: Customer, feature: str, part: float, entitlement: Entitlement) -> None:
        """Called when a report has brought usage to a part of its limit that ``THRESHOLDS`` names, in the thread that
        reports; once each time, over all processes of a ledger."""

    def lost_contact(self, error: StiggGuardError) -> None:
        """Called once for each outage: usage cannot be reported any more and waits in the ledger."""

    def invalidated(self, customer: Customer | None) -> None:
        """Called when what is cached of the customer, or of everybody (None), is outdated: by ``forget`` or ``reload``,
        a change through ``.api``, a webhook, or another process that shares the ``CACHE``."""


_UNHEARD = nullcontext()
_EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class Audience:
    """The observers of a guard, and beside them those of ``others``. What one of them raises is logged.

    Only those are called that have a method of their own for what happened. ``follows_checks`` is empty, and thus
    false, while nobody has :meth:`Observer.checked`.
    """

    def __init__(self, clock: Clock, observer: Observer | None = None, *, others: Audience | None = None) -> None:
        self._clock = clock
        self._others = others
        self._listening: dict[str, list[Observer]] = {name: [] for name in _EVENTS}
        self.follows_checks = self._listening["checked"]
        if observer is not None:
            self.add(observer)

    def add(self, observer: Observer) -> None:
        """From now on tells this one, too."""
        for name, listening in self._listening.items():
            if getattr(type(observer), name) is not getattr(Observer, name):
                listening.append(observer)

    def remove(self, observer: Observer) -> None:
        """Tells this one no more."""
        for listening in self._listening.values():
            if observer in listening:
                listening.remove(observer)

    def tell(self, event: Callable[Concatenate[Observer, P], None], *what: P.args, **named: P.kwargs) -> None:
        """Calls each observer's method of the name of ``event``, a method of :class:`Observer`."""
        for observer in list(self._listening[event.__name__]):
            tell(lambda one: getattr(one, event.__name__)(*what, **named), observer)
        if self._others is not None:
            self._others.tell(event, *what, **named)

    def timed(
        self, event: Callable[[Observer, Step], None], customer: Customer | None, features: tuple[str, ...] = ()
    ) -> AbstractContextManager[None]:
        """Tells of the block as a :class:`Step`, when it has ended."""
        return self._timed(event, customer, features) if self._is_heard(event.__name__) else _UNHEARD

    def _is_heard(self, name: str) -> bool:
        return bool(self._listening[name]) or (self._others is not None and self._others._is_heard(name))

    @contextmanager
    def _timed(
        self, event: Callable[[Observer, Step], None], customer: Customer | None, features: tuple[str, ...]
    ) -> Iterator[None]:
        began_at, start = self._clock.now(), self._clock.monotonic()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.tell(event, Step(customer, features, began_at, self._clock.monotonic() - start, error))


def tell(told: Callable[[T], None], what: T) -> None:
    """Calls an observer's method; what it raises is logged."""
    try:
        told(what)
    except Exception:  # an observer's failure is its own, whatever it is: the request and the reports go on
        logger.exception("an observer of the guard failed")

"""A customer's plan as pages show it: one wording, one set of figures and one markup for every framework's tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from types import MappingProxyType
from typing import TypeVar

from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason
from stigg_guard.errors import InvalidRequest, SidecarError
from stigg_guard.guard import Guard
from stigg_guard.runtime.log import logger
from stigg_guard.web.names import feature_name
from stigg_guard.wording import ENGLISH, Text, Wording

T = TypeVar("T")

_HEADINGS = (Text.FEATURE, Text.INCLUDED_HEADING, Text.USED)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table of limits, one bar of usage. ``name`` is what people call the feature.

    ``limit`` and ``usage`` are in the feature's units. ``fraction`` is the used part of the limit, from 0 to 1; it and
    ``limit`` are None when nothing is counted against a limit.
    """

    feature_id: str
    text: str
    limit: float | None
    usage: float
    fraction: float | None
    has_access: bool
    kind: Kind | None
    name: str

    @property
    def bar(self) -> str:
        """HTML: a ``<progress>`` with the text as its label; empty where nothing is limited."""
        if self.fraction is None:
            return ""
        text = escape(self.text)
        value = f"{self.fraction:.4g}"
        return f'<progress class="stigg-guard-usage" value="{value}" aria-label="{text}">{text}</progress>'


class DisplayedPlan:
    """A customer's plan as one page shows it: nothing is asked twice, so that the page does not contradict itself.

    ``customer`` is called when something is asked first. When it finds nobody or fails, for what an outage hides, and
    without a guard, there is nothing to show: a page does not fail because of it. What is HTML is escaped already.
    """

    def __init__(
        self, guard: Guard | None, customer: Callable[[], str | Customer | None], wording: Wording = ENGLISH
    ) -> None:
        self._guard = guard
        self._customer = customer
        self._wording = wording
        self._answers: dict[str, Entitlement | None] = {}
        self._plan: Mapping[str, Entitlement] | None = None

    @property
    def all(self) -> Mapping[str, Entitlement]:
        """All that the plan has, by feature id and currency id."""
        if self._plan is None:
            self._plan = self._asked(Guard.entitlements) or MappingProxyType({})
        return self._plan

    def entitlement(self, feature: str) -> Entitlement | None:
        """The answer for the feature, or for the currency; None when there is nobody to ask about, or no answer.

        What the plan lacks is the guard's to answer: it applies fallbacks and the outage policy.
        """
        if not isinstance(feature, str):  # a template may name anything
            return None
        if feature not in self._answers:
            self._answers[feature] = self.all[feature] if feature in self.all else self._peeked(feature)
        return self._answers[feature]

    def has(self, feature: str) -> bool:
        """Whether the customer may use the feature."""
        return bool(self.entitlement(feature))

    def lines(self) -> list[Line]:
        """All that the plan has, by feature id, as rows of a page."""
        return [self._line(entitlement) for entitlement in self.all.values()]

    def usage(self, feature: str) -> str:
        """What the customer has of the feature, in words: "3 of 6 templates"; empty when there is no answer."""
        answer = self.entitlement(feature)
        return "" if answer is None else usage_text(answer, self._wording)

    def usage_bar(self, feature: str) -> str:
        """HTML: how much of the limit is used, as a labelled ``<progress>``; empty where nothing is limited."""
        answer = self.entitlement(feature)
        return "" if answer is None else self._line(answer).bar

    def plan_limits(self) -> str:
        """HTML: a ``<table>`` of all that the plan has; empty without a plan."""
        rows = "".join(
            f'<tr><th scope="row">{escape(row.name)}</th><td>{escape(row.text)}</td><td>{row.bar}</td></tr>'
            for row in self.lines()
        )
        if not rows:
            return ""
        headings = "".join(f'<th scope="col">{escape(self._wording.say(heading))}</th>' for heading in _HEADINGS)
        caption = escape(self._wording.say(Text.PLAN))
        return (
            f'<table class="stigg-guard-plan"><caption>{caption}</caption><thead><tr>{headings}</tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )

    def _line(self, entitlement: Entitlement) -> Line:
        name = entitlement.feature_id if self._guard is None else feature_name(entitlement, self._guard.config)
        return line(entitlement, self._wording, name)

    def _peeked(self, feature: str) -> Entitlement | None:
        return self._asked(lambda guard, customer: guard.peek(feature, customer=customer))

    def _asked(self, ask: Callable[[Guard, Customer], T]) -> T | None:
        if self._guard is None or self._known_customer is None:
            return None
        try:
            return ask(self._guard, self._known_customer)
        except (SidecarError, InvalidRequest):
            pass
        except Exception:  # a broken site, whose pages show as much as they can
            self._guard = None
            logger.exception("a page shows no plan, because its guard failed")
        return None

    @cached_property
    def _known_customer(self) -> Customer | None:
        try:
            found = self._customer()
            return None if found is None else Customer.of(found)
        except InvalidRequest as error:
            logger.error("a page shows no plan, because CUSTOMER found no customer: %s", error)
        except Exception:  # it is the application's own code, which may raise anything
            logger.exception("a page shows no plan, because CUSTOMER failed")
        return None


def line(entitlement: Entitlement, wording: Wording = ENGLISH, name: str | None = None) -> Line:
    """The entitlement as a row of a page, which calls the feature by this name, or else by its id."""
    return Line(
        feature_id=entitlement.feature_id,
        text=usage_text(entitlement, wording),
        limit=None if entitlement.is_unlimited else entitlement.usage_limit,
        usage=entitlement.current_usage,
        fraction=entitlement.used_fraction,
        has_access=entitlement.has_access,
        kind=entitlement.kind,
        name=entitlement.feature_id if name is None else name,
    )


def usage_text(entitlement: Entitlement, wording: Wording = ENGLISH) -> str:
    """What the customer has, in words: "3 of 6 templates", "unlimited seats", "100 GB", "eu, us", "not included"."""
    if not entitlement and not entitlement.is_limited and entitlement.reason is not Reason.INSUFFICIENT_CREDITS:
        return wording.say(Text.NOT_INCLUDED)
    if entitlement.is_unlimited:
        units = entitlement.units_plural
        return wording.say(Text.UNLIMITED_UNITS, units=units) if units else wording.say(Text.UNLIMITED)
    return _included(entitlement, wording) or wording.say(Text.INCLUDED)


def _included(entitlement: Entitlement, wording: Wording) -> str:
    """The figures or the choices; empty where there are none."""
    if entitlement.kind in (Kind.METERED, Kind.CREDIT):
        return _used(entitlement, wording)
    if entitlement.kind is Kind.NUMERIC and entitlement.value is not None:
        return wording.counted(entitlement.value, entitlement)
    return ", ".join(entitlement.enum_values)


def _used(entitlement: Entitlement, wording: Wording) -> str:
    used, limit = entitlement.current_usage, entitlement.usage_limit
    if limit is None:
        return wording.say(Text.JUST_USED, used=wording.counted(used, entitlement))
    text = Text.CREDITS_USED_OF if entitlement.kind is Kind.CREDIT else Text.USED_OF
    return wording.say(text, used=used, limit=wording.counted(limit, entitlement))

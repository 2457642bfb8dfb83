"""The texts that readers see, and how they are written in a reader's language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum

from stigg_guard.entitlements import Entitlement

DECIMALS = 3
"""How many decimals a number is shown with at most."""


class Text(str, Enum):
    """The sentences and words themselves: what is translated, with the names of what is put into them."""

    CUSTOMER_IS_ARCHIVED = "This account is archived"
    CUSTOMER_NOT_FOUND = "This account is not known"
    RESOURCE_NOT_FOUND = "This resource is not known"
    FEATURE_NOT_FOUND = "This feature does not exist"
    NO_SUBSCRIPTION = "There is no active subscription"
    NOT_IN_PLAN = "Your plan does not include this feature"
    LIMIT_REACHED = "Your plan's limit is reached"
    BUDGET_EXCEEDED = "The budget is used up"
    CHOICE_NOT_IN_PLAN = "Your plan does not include this choice"
    FEATURE_MISUSED = "This feature cannot be used this way"
    NOT_ENOUGH_CREDITS = "There are not enough credits left"
    REVOKED = "Access to this feature was taken away"
    NOT_POSSIBLE = "Access to this feature is not possible at the moment"
    CONCERNS = "It concerns the feature {feature}."
    ARE_USED = "{used} of {limit} are used."
    ARE_USED_AND_MORE_NEEDED = "{used} of {limit} are used, and {requested} more would be needed."
    TRY_AGAIN = "Please try again"
    CANNOT_BE_LOOKED_UP = "What your plan includes cannot be looked up right now. Please try again in a moment."
    CANNOT_BE_DONE = "This cannot be done right now. Please try again in a moment."
    SIGN_IN = "Please sign in"
    FOR_CUSTOMERS = "This page is for customers who are signed in."
    BAD_REQUEST = "This request is not right"
    CANNOT_BE_COUNTED = "What was asked for cannot be counted. Please check what you sent."
    IN_PROGRESS = "This request is under way"
    GOES_ON = "It was sent before, and the work goes on. Please try again in a moment."
    DONE_BEFORE = "This request was done before"
    NOT_DONE_AGAIN = "It was sent again, and is not done twice."
    KEY_OF_ANOTHER = "Its key came with another request before. Each request needs a key of its own."

    FEATURE = "Feature"
    LIMIT = "Limit"
    USED = "Used"
    REQUESTED = "Requested"
    RESETS = "Resets on"
    INCLUDED_HEADING = "Included"
    SEE_PLANS = "See the plans"
    PLAN = "Your plan"
    PLANS = "Plans"
    PLAN_HEADING = "Plan"
    PRICE = "Price"

    NUMBER_OF_UNITS = "{number} {units}"
    UNITS = "units"
    USED_OF = "{used} of {limit}"
    CREDITS_USED_OF = "{used} of {limit} used"
    JUST_USED = "{used} used"
    UNLIMITED = "unlimited"
    UNLIMITED_UNITS = "unlimited {units}"
    INCLUDED = "included"
    NOT_INCLUDED = "not included"
    MORE = "{what} more"

    FREE = "free"
    ON_REQUEST = "on request"
    BY_QUANTITY = "by quantity"
    AT_LEAST = "at least {what}"
    PER_UNIT = "{what} per {unit}"
    PER_HOUR = "{what} per hour"
    PER_DAY = "{what} per day"
    PER_WEEK = "{what} per week"
    PER_MONTH = "{what} per month"
    PER_YEAR = "{what} per year"


def plain_number(number: float) -> str:
    """The number as English writes it."""
    return f"{number:,.{DECIMALS}f}".rstrip("0").rstrip(".")


def plain_money(amount: Decimal) -> str:
    """The amount as English writes it."""
    return f"{amount:,.{money_decimals(amount)}f}"


def money_decimals(amount: Decimal) -> int:
    """How many decimals an amount of money is shown with: all that it has, and two of those that are not whole."""
    exponent = amount.normalize().as_tuple().exponent
    return max(2, -exponent) if isinstance(exponent, int) and exponent < 0 else 0


def plain_date(instant: datetime) -> str:
    """The instant to the minute, and its time zone."""
    return f"{instant:%Y-%m-%d %H:%M %Z}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How texts, numbers and instants are written. The default is English.

    ``translate`` turns a :class:`Text` into the reader's language and keeps the names in braces; ``number``, ``money``
    and ``date`` write a number, an amount of money without its currency and an aware datetime; ``language`` names the
    language, as in the ``lang`` attribute of HTML. All are asked anew for each text, so that they may follow the
    request.
    """

    translate: Callable[[str], str] = str
    number: Callable[[float], str] = plain_number
    money: Callable[[Decimal], str] = plain_money
    date: Callable[[datetime], str] = plain_date
    language: Callable[[], str] = lambda: "en"

    def say(self, text: Text, **values: str | float) -> str:
        """The text in the reader's language, with these values in it; numbers are written as the reader does."""
        written = {name: value if isinstance(value, str) else self.number(value) for name, value in values.items()}
        return self.translate(text.value).format(**written)

    def counted(self, number: float, entitlement: Entitlement) -> str:
        """So many of the feature's units: "6 templates"; the units' names are the catalog's, in its own language."""
        units = entitlement.units if number == 1 else entitlement.units_plural
        return self.say(Text.NUMBER_OF_UNITS, number=number, units=units) if units else self.number(number)


ENGLISH = Wording()

"""Amounts of usage in fixed point: numbers that add up as a person reckons.

Users see floats. What is summed and compared is a whole number of *quanta*, a millionth of a unit each, so that three
times 0.1 fit 0.3 after any number of sums. Up to ``MAX_AMOUNT`` units a number in Lua holds every quantum exactly; a
float of units does up to 2**33, and beyond that, to the nearest two millionths.
"""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import TypeAlias

from stigg_guard.errors import InvalidRequest
from stigg_guard.foreign import quoted

Amount: TypeAlias = "float | int | Decimal"

QUANTA_PER_UNIT = 1_000_000
MAX_AMOUNT = 9e9
"""The most units that one figure may be. A limit beyond it is as good as none."""
_MAX_QUANTA = int(MAX_AMOUNT) * QUANTA_PER_UNIT


def quanta(units: float) -> int:
    """The whole number of quanta nearest to a finite number of units."""
    whole = math.floor(units)  # so that the product is small, and exact enough
    if whole == units:
        return whole * QUANTA_PER_UNIT
    return whole * QUANTA_PER_UNIT + round((units - whole) * QUANTA_PER_UNIT)


def units(number: int) -> float:
    """The units of a whole number of quanta."""
    return number / QUANTA_PER_UNIT


def is_figure(told: float) -> bool:
    """Whether a sidecar's usage or limit can be one: finite, and not below 0."""
    return math.isfinite(told) and told >= 0


def quanta_used(told: float) -> int:
    """The usage that a sidecar told, in quanta: never below 0, and as much as can be for what is no number."""
    if not math.isfinite(told) or told > MAX_AMOUNT:
        return _MAX_QUANTA
    return quanta(max(0.0, told))


def quanta_allowed(told: float | None) -> int | None:
    """The limit that a sidecar told, in quanta. None is no limit: it told none, or one beyond ``MAX_AMOUNT``. What is
    no finite number, or below 0, allows nothing, not even 0 units: it reads as -1."""
    if told is None:
        return None
    if not is_figure(told):
        return -1
    return None if told > MAX_AMOUNT else quanta(told)


def fits(used: float, amount: float, limit: float) -> bool:
    """Whether ``amount`` units more than ``used`` stay within the limit; False where a figure is not a number."""
    allowed = quanta_allowed(limit)
    return allowed is None or quanta_used(used) + quanta(amount) <= allowed


def left(used: float, limit: float) -> float:
    """The units between usage and limit, never negative."""
    allowed = quanta_allowed(limit)
    return limit if allowed is None else units(max(0, allowed - quanta_used(used)))


def usage_amount(amount: Amount, field: str = "value", *, negative: bool = False) -> float:
    """The amount of usage as a float, to the nearest quantum, but at least one quantum if it is above 0. It is not
    below 0 unless ``negative`` is allowed.

    Raises:
        InvalidRequest: it is no such number, or beyond ``MAX_AMOUNT``. ``True`` is not 1 here: a bool is a forgotten
            comparison.
    """
    number = finite_number(amount, field)
    if abs(number) > MAX_AMOUNT:
        raise InvalidRequest(field, f"usage is at most {MAX_AMOUNT:.0f} units at once, not {quoted(amount)}")
    counted = quanta(number)
    if counted < 0 and not negative:
        raise InvalidRequest(field, f"usage is not negative, and this is {quoted(amount)}")
    return units(counted or int(number > 0))


def finite_number(amount: Amount, field: str) -> float:
    """The float of a number that is finite.

    Raises:
        InvalidRequest: it is not such a number.
    """
    if isinstance(amount, bool) or not isinstance(amount, (int, float, Real, Decimal)):  # the usual ones first
        raise InvalidRequest(field, f"usage is a number, not {quoted(amount)}")
    try:
        number = float(amount)
    except (OverflowError, ValueError):  # a huge int, a signalling NaN
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequest(field, f"usage is a finite number, not {quoted(amount)}")
    return number

"""Texts, numbers and dates as Django writes them for the reader of the current request.

The texts have the context ``stigg_guard`` in the message catalogs, which all apps of a project share.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from django.conf import settings
from django.utils.formats import date_format, number_format
from django.utils.timezone import localtime
from django.utils.translation import get_language, pgettext

from stigg_guard.wording import DECIMALS, Wording, money_decimals


def _translate(text: str) -> str:
    return pgettext("stigg_guard", text)


def _number(number: float) -> str:
    rounded = round(float(number), DECIMALS)
    return number_format(int(rounded) if rounded.is_integer() else rounded, force_grouping=True)


def _money(amount: Decimal) -> str:
    return number_format(amount, decimal_pos=money_decimals(amount), force_grouping=True)


def _date(instant: datetime) -> str:
    return date_format(localtime(instant), "DATETIME_FORMAT")


WORDING = Wording(
    translate=_translate,
    number=_number,
    money=_money,
    date=_date,
    language=lambda: get_language() or settings.LANGUAGE_CODE,
)

"""How texts, numbers and dates are written, and that every text is translated."""

from __future__ import annotations

import gettext
import json
import re
from datetime import datetime, timezone
from pathlib import Path
from string import Formatter

import pytest

import stigg_guard
from stigg_guard.entitlements import Entitlement
from stigg_guard.wording import ENGLISH, Text, Wording

CATALOGS = sorted(Path(stigg_guard.__file__).parent.glob("django/locale/*/LC_MESSAGES/django.po"))
MESSAGE = re.compile(r'^msgctxt "stigg_guard"\nmsgid (".*")\nmsgstr (".*")$', re.MULTILINE)


def messages(catalog: Path) -> dict[str, str]:
    """The translations of a catalog by their English texts."""
    return {json.loads(text): json.loads(said) for text, said in MESSAGE.findall(catalog.read_text(encoding="utf-8"))}


def names(text: str) -> set[str | None]:
    """What is put into a text."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0"), (3.0, "3"), (0.25, "0.25"), (1234567.5, "1,234,567.5"), (0.00049, "0"), (10, "10"), (100.0, "100")],
)
def test_number_is_written_without_needless_decimals(number: float, written: str) -> None:
    assert ENGLISH.number(number) == written


def test_date_is_written_to_the_minute_with_its_zone() -> None:
    assert ENGLISH.date(datetime(2026, 8, 1, 9, 30, 59, tzinfo=timezone.utc)) == "2026-08-01 09:30 UTC"


@pytest.mark.parametrize(
    ("number", "units", "text"),
    [
        (1, ("template", "templates"), "1 template"),
        (0, ("template", "templates"), "0 templates"),
        (1.5, ("GB", "GB"), "1.5 GB"),
        (2, (None, None), "2"),
        (1, (None, "templates"), "1"),
    ],
)
def test_units_are_named_by_the_catalog(number: float, units: tuple[str | None, str | None], text: str) -> None:
    answer = Entitlement(feature_id="f", has_access=True, units=units[0], units_plural=units[1])
    assert ENGLISH.counted(number, answer) == text


def test_values_are_put_into_the_translation_and_numbers_into_the_readers_form() -> None:
    wording = Wording(
        translate=lambda text: text.replace("{used} of {limit}", "{limit}: {used}"), number=lambda n: f"<{n}>"
    )
    assert wording.say(Text.USED_OF, used=3, limit="6 {templates}") == "6 {templates}: <3>"


def test_some_language_is_shipped() -> None:
    assert "de" in {catalog.parts[-3] for catalog in CATALOGS}


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda path: path.parts[-3])
def test_every_text_is_translated(catalog: Path) -> None:
    said = messages(catalog)
    assert said.keys() >= {text.value for text in Text}
    assert all(said.values())


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda path: path.parts[-3])
def test_translation_takes_the_values_that_its_text_takes(catalog: Path) -> None:
    assert not [text for text, said in messages(catalog).items() if names(text) != names(said)]


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda path: path.parts[-3])
def test_compiled_catalog_says_what_its_source_says(catalog: Path) -> None:
    with catalog.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    assert {text: compiled.pgettext("stigg_guard", text) for text in messages(catalog)} == messages(catalog)

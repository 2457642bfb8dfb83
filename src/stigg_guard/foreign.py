"""Reads what others wrote: texts are shown on one line, and documents are read within bounds."""

from __future__ import annotations

import json
import re
import sys
from reprlib import Repr
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_LEVELS = 64
"""How deep a document may be nested. Its integers are those of 64 bits."""

_MAX_DIGITS = 21  # one more than the longest integer of 64 bits has, with its sign
_TOO_DEEP = f"it is nested too deep; at most {MAX_LEVELS} levels are read"
_TOO_LARGE = "this integer is too large; those within 64 bits are read"
_NOT_UNICODE = "this text is not valid Unicode"

_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[]\[{}]', re.DOTALL)

_SURROGATE = re.compile("[\ud800-\udfff]")

_repr = Repr()
_repr.maxstring = _repr.maxother = 100


class Unreadable(ValueError):
    """A document is not in its format, or goes beyond what is read. ``path`` are the keys that lead to the fault."""

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(f"{'.'.join(path)}: {problem}" if path else problem)
        self.path = path


def printable(text: str) -> str:
    """The text on one line: what does not print, such as a line break, is shown as in a literal of Python."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def quoted(value: object) -> str:
    """Any value as a message quotes it: on one line, and short."""
    try:
        return printable(_repr.repr(value))
    except ValueError:  # from Python, which writes no integer of more than 4300 digits
        return "an integer of thousands of digits"


def json_value(text: str | bytes) -> Any:
    """What a JSON text says; bytes are in UTF-8.

    Raises:
        Unreadable: it is not JSON, is nested deeper than ``MAX_LEVELS``, has an integer beyond 64 bits, or a text that
            is not Unicode.
    """
    try:
        written = text if isinstance(text, str) else text.decode("utf-8-sig")
        _require_few_brackets(written)
        # What is cut off here is too large without it, too.
        value = json.loads(written, parse_int=lambda digits: int(digits[:_MAX_DIGITS]))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Unreadable(f"not JSON: {error}") from None
    _require_bounds(value)
    return value


def toml_value(text: str) -> dict[str, Any]:
    """What a TOML text says.

    Raises:
        Unreadable: it is not TOML, or goes beyond the bounds of :func:`json_value`.
    """
    try:
        value: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Unreadable(f"not TOML: {error}") from None
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None
    except ValueError:  # from Python, which reads no integer of more than 4300 digits
        raise Unreadable(_TOO_LARGE) from None
    _require_bounds(value)
    return value


def _require_few_brackets(text: str) -> None:
    """Refuse what is nested too deep before it is parsed: the parser's own bound can be more than a thread's stack."""
    level = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if level > MAX_LEVELS:
            raise Unreadable(_TOO_DEEP)


def _require_bounds(value: Any, *path: str) -> None:
    """Refuse a value with too many levels, or with a part that is too large; the keys of ``path`` lead to it."""
    if isinstance(value, (dict, list)):
        if len(path) == MAX_LEVELS:
            raise Unreadable(_TOO_DEEP)
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _require_bounds(key, *path)
            _require_bounds(part, *path, str(key))
    elif isinstance(value, str):
        if _SURROGATE.search(value):
            raise Unreadable(_NOT_UNICODE, path)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Unreadable(_TOO_LARGE, path)

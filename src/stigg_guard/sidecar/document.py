"""A TOML or JSON document under reading: checked values, and every fault with its place and remedy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date, datetime, timezone
from difflib import get_close_matches
from typing import Any, cast

from stigg_guard.errors import ConfigError
from stigg_guard.foreign import MAX_LEVELS, Unreadable, json_value, toml_value

KeyPath = tuple[str, ...]


class Table:
    """A table of the document. Reading a key makes it known; ``end`` then refuses all keys that nobody read.

    A value that does not fit is noted as a fault and read as if it were absent, so that reading goes on to the next.
    """

    def __init__(self, faults: DocumentFaults, path: KeyPath, data: object, example: str = "") -> None:
        self._is_table = isinstance(data, Mapping)
        if not isinstance(data, Mapping):
            hint = f" such as {example}" if example else ""
            faults.add(path, f"must be a table{hint}, not {data!r}")
            data = {}
        self._faults = faults
        self._path = path
        self._data = data
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the key is there; a table that could not be read is not said to lack anything besides."""
        return key in self._data or not self._is_table

    def __iter__(self) -> Iterator[str]:
        """The keys, each of which counts as known; an empty one is refused."""
        for key in self._data:
            self._known.add(key)
            if key.strip():
                yield key
            else:
                self._faults.add((*self._path, key), "is an empty id; give it a name")

    def fault(self, key: str, problem: str) -> None:
        """Note what is wrong with a key, or with the whole table when ``key`` is empty."""
        self._faults.add((*self._path, key) if key else self._path, problem)

    def end(self) -> None:
        """Note every key that was not read as a fault."""
        for key in self._data.keys() - self._known:
            self.fault(key, f"unknown key; {nearest(key, self._known)}")

    def value(self, key: str, fits: Callable[[Any], bool], expected: str) -> Any:
        """The value of a key if it is there and fits, else ``None``."""
        self._known.add(key)
        if key not in self._data:
            return None
        value = self._data[key]
        if fits(value):
            return value
        self.fault(key, f"must be {expected}, not {value!r}")
        return None

    def text(self, key: str) -> str | None:
        """A text that is not empty."""
        return cast("str | None", self.value(key, lambda value: isinstance(value, str) and value != "", "a text"))

    def flag(self, key: str) -> bool:
        """True or false; absent is false."""
        return bool(self.value(key, lambda value: isinstance(value, bool), "true or false"))

    def amount(self, key: str) -> float | None:
        """A finite number, 0 or more."""
        return cast("float | None", self.value(key, _is_amount, "a number, 0 or more"))

    def int32(self, key: str) -> int | None:
        """A whole number of 32 bits, which is what the wire can carry; ``50.0`` is one."""
        given = self.value(key, _is_int32, "a whole number of 32 bits")
        return None if given is None else int(given)

    def texts(self, key: str, *, at_least: int = 0) -> tuple[str, ...]:
        """A list of texts, none of them empty; absent is an empty list."""
        expected = f"a list of at least {at_least} text" if at_least else "a list of texts"
        return tuple(self.value(key, lambda value: _is_texts(value) and len(value) >= at_least, expected) or ())

    def instant(self, key: str) -> datetime | None:
        """A date or a date with time, in UTC unless it says otherwise."""
        given = self.value(key, _is_instant, "a date between the years 1970 and 2200, such as 2023-07-21T00:00:00Z")
        if given is None:
            return None
        if not isinstance(given, datetime):
            given = datetime(given.year, given.month, given.day)
        return given.astimezone(timezone.utc) if given.tzinfo else given.replace(tzinfo=timezone.utc)

    def choice(self, key: str, choices: Collection[str]) -> str | None:
        """One of the given texts."""
        given = self.text(key)
        return given if given is None or self.known(key, given, choices) else None

    def required_choice(self, key: str, choices: Collection[str]) -> str | None:
        """As ``choice``, and absence is a fault."""
        if key not in self:
            self.fault("", f"needs {key}; {nearest('', choices)}")
        return self.choice(key, choices)

    def known(self, key: str, name: str, names: Collection[str]) -> bool:
        """Whether the name is among the names; it is a fault of the key if not."""
        if name in names:
            return True
        self.fault(key, f"there is no {name!r}; {nearest(name, names)}")
        return False

    def table(self, key: str, example: str = "") -> Table:
        """The table under a key; absent is empty."""
        self._known.add(key)
        return Table(self._faults, (*self._path, key), self._data.get(key, {}), example)

    def tables(self, key: str) -> Iterator[tuple[str, Table]]:
        """The tables within the table under a key, each with its id."""
        within = self.table(key)
        for name in within:
            yield name, within.table(name)


class DocumentFaults:
    """All that is wrong with one document; ``line_of`` finds the line of a path, where the document has lines."""

    def __init__(self, source: str, line_of: Callable[[KeyPath], int] | None = None) -> None:
        self._source = source
        self._line_of = line_of
        self._found: list[tuple[int, str]] = []

    def add(self, path: KeyPath, problem: str) -> None:
        """Note what is wrong with the value at a path."""
        place = ".".join(key or '""' for key in path) or "the document"
        self._found.append((self._line_of(path) if self._line_of else 0, f"{place}: {problem}"))

    def raise_any(self) -> None:
        """Raise a ``ConfigError`` that names every fault, in the order of the lines; return if there is none."""
        if self._found:
            count = f"{len(self._found)} fault{'s' if len(self._found) > 1 else ''}"
            lines = (f"  line {line}, {text}" if line else f"  {text}" for line, text in sorted(self._found))
            raise ConfigError(f"{self._source}: {count}", *lines)


def read_toml(text: str, source: str) -> tuple[Table, DocumentFaults]:
    """The root table of a TOML text, and where its faults gather. Raises ``ConfigError`` when it cannot be read."""
    return _root(toml_value, text, source, _toml_lines(text))


def read_json(text: str, source: str) -> tuple[Table, DocumentFaults]:
    """The root table of a JSON text, and where its faults gather; a key whose value is null counts as absent. Raises
    ``ConfigError`` when it cannot be read."""
    return _root(lambda text: without_nulls(json_value(text)), text, source, _json_lines(text))


def without_nulls(value: Any) -> Any:
    """The value without those keys of mappings, however deep, that have none."""
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return value


def _root(
    read: Callable[[str], Any], text: str, source: str, line_of: Callable[[KeyPath], int]
) -> tuple[Table, DocumentFaults]:
    try:
        data = read(text)
    except Unreadable as error:
        line = f"line {line_of(error.path)}, " if error.path else ""
        raise ConfigError(f"{source}: {line}{error}") from None
    faults = DocumentFaults(source, line_of)
    return Table(faults, (), data), faults


def nearest(name: str, names: Collection[str]) -> str:
    """The remedy for a wrong name: the nearest right one, or else what there is."""
    close = get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    listed = sorted(names)
    return f"expected one of {', '.join(listed[:8])}{', …' if len(listed) > 8 else ''}" if listed else "none is defined"


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast(float, value) <= sys.float_info.max


def _is_int32(value: object) -> bool:
    is_whole = type(value) is int or (type(value) is float and value.is_integer())
    return is_whole and -(2**31) <= cast(float, value) < 2**31


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_instant(value: object) -> bool:
    return isinstance(value, date) and 1970 <= value.year < 2200


_KEY = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|[\w-]+""")
_DOTTED = rf"(?:{_KEY.pattern})(?:\s*\.\s*(?:{_KEY.pattern}))*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")


def _toml_lines(text: str) -> Callable[[KeyPath], int]:
    """Where each path first appears: the parser tells no positions, so headers and assignments are looked for."""
    lines: dict[KeyPath, int] = {(): 1}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = path = _path(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            path = table + _path(assignment[1])
        else:
            continue
        for length in range(1, min(len(path), MAX_LEVELS) + 1):
            lines.setdefault(path[:length], number)

    def line_of(path: KeyPath) -> int:
        return next(lines[path[:length]] for length in range(len(path), -1, -1) if path[:length] in lines)

    return line_of


def _path(dotted: str) -> KeyPath:
    return tuple(key.strip("\"'") for key in _KEY.findall(dotted))


def _json_lines(text: str) -> Callable[[KeyPath], int]:
    """Follow the keys of a path through the text, one after the other."""

    def line_of(path: KeyPath) -> int:
        position = 0
        for key in path:
            found = re.compile(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:").search(text, position)
            if found is None:
                break
            position = found.end()
        return text.count("\n", 0, position) + 1

    return line_of

"""Inputs and results of Stigg's GraphQL API: typed views on the JSON that travels.

Inputs are checked when they are made; results take whatever a newer server sends. Both are read only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from datetime import datetime, timezone
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

from stigg_guard.foreign import quoted

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        return lambda cls: cls


AnyRecord = TypeVar("AnyRecord", bound="Record")

NOT_GIVEN: Any = object()
"""The default of arguments that are left out of a request; None is sent."""

_TYPES: dict[str, type[Record] | type[WireEnum]] = {}  # by their names in the schema
_FRACTION = re.compile(r"\.(\d+)")


class WireEnum(str, Enum):
    """An enum of the schema. A member is the text that travels, and prints as it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _TYPES.setdefault(cls.__name__, cls)

    def __str__(self) -> str:
        return str.__str__(self)


class Field:
    """One field of a record, read from what travels when it is first asked for. ``type`` is its GraphQL type, where
    ``Date`` stands for a text that is an instant and ``Decimal`` for an amount of money."""

    __slots__ = ("name", "required", "type", "wire")

    def __init__(self, type_: str, *, required: bool) -> None:
        self.type = type_
        self.required = required

    def __set_name__(self, _owner: type, name: str) -> None:
        self.name = name
        self.wire = wire_name(name)

    def __get__(self, record: Record | None, _owner: type) -> Any:
        if record is None:
            return self
        if self.wire not in record._wire:
            raise AttributeError(record._absent(self.name))
        value = record.__dict__[self.name] = _reader(self.type)(record._wire[self.wire])
        return value


def optional(type_: str) -> Any:
    """A field that may be absent: any of a result, and most of inputs."""
    return Field(type_, required=False)


def required(type_: str) -> Any:
    """A field that an input must have."""
    return Field(type_, required=True)


class Record:
    """A typed view on a JSON object."""

    _fields: ClassVar[Mapping[str, Field]] = {}  # by both spellings
    _wire: Mapping[str, Any]

    def __init_subclass__(cls) -> None:
        own = [value for value in vars(cls).values() if isinstance(value, Field)]
        cls._fields = {**cls._fields, **{entry.name: entry for entry in own}, **{entry.wire: entry for entry in own}}
        _TYPES.setdefault(cls.__name__, cls)

    @classmethod
    def from_wire(cls: type[AnyRecord], wire: Mapping[str, Any]) -> AnyRecord:
        """The record over a JSON object, which is not checked and must not change any more."""
        record = cls.__new__(cls)
        record.__dict__["_wire"] = wire
        return record

    def to_dict(self) -> dict[str, Any]:
        """What travels, with GraphQL's own names: plain dicts, lists, texts and numbers."""
        return deepcopy(dict(self._wire))

    def _absent(self, name: str) -> str:
        return f"{type(self).__name__}.{name} was not given"

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: records are read only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and type(self) is type(other) and self._wire == other._wire

    __hash__ = None  # type: ignore[assignment] # what travels holds dicts

    def __repr__(self) -> str:
        names = {entry.wire: entry.name for entry in self._fields.values()}
        shown = (f"{names[wire]}={getattr(self, names[wire])!r}" for wire in self._wire if wire in names)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_wire, (self._wire,)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(required,))
class Input(Record):
    """An input of an operation. Fields are given by keyword, in snake_case or as in GraphQL; those that are themselves
    inputs may be plain dicts, at every level. What is not given is not sent, None is.

    Raises:
        TypeError: a field is unknown, missing, given twice or of a wrong type; it is named.
    """

    if not TYPE_CHECKING:  # type checkers know each input's own fields

        def __init__(self, **given: object) -> None:
            self.__dict__["_wire"] = self._checked(given, type(self).__name__)

    @classmethod
    def _checked(cls, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What travels for these fields; ``where`` they stand is told by errors."""
        wire: dict[str, Any] = {}
        for key, value in given.items():
            entry = cls._fields.get(key)
            if entry is None:
                raise TypeError(f"{where}: {quoted(key)} is not a field of {cls.__name__}; {cls._nearest(key)}")
            if entry.wire in wire:
                raise TypeError(f"{where}: {entry.name!r} is given twice, in two spellings")
            if value is not NOT_GIVEN:
                wire[entry.wire] = to_wire(entry.type, value, f"{where}.{entry.name}")
        missing = [entry.name for entry in cls._fields.values() if entry.required and entry.wire not in wire]
        if missing:
            raise TypeError(f"{where}: {missing[0]!r} is missing, which {cls.__name__} must have")
        return wire

    @classmethod
    def _nearest(cls, key: object) -> str:
        names = sorted({entry.name for entry in cls._fields.values()})
        close = get_close_matches(str(key), names, n=1)
        return f"did you mean {close[0]!r}?" if close else "its fields are " + ", ".join(names)


class Result(Record):
    """A part of an answer. Fields, enum members and union members that this version does not know are no errors."""

    def _absent(self, name: str) -> str:
        return f"{type(self).__name__}.{name} was not selected by this operation; ask for it with fields=…"


def wire_name(name: str) -> str:
    """The GraphQL spelling of a name in snake_case; the underscore after a keyword of Python goes."""
    first, *rest = name.rstrip("_").split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def to_wire(type_: str, value: Any, where: str) -> Any:
    """What travels for a value of this GraphQL type.

    Raises:
        TypeError: it is not of the type; ``where`` it stands is told.
    """
    name, is_list, nullable = _parsed(type_)
    if value is None and nullable:
        return None
    if is_list:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise _unexpected(where, "a list", value)
        return [to_wire(name, item, f"{where}[{index}]") for index, item in enumerate(value)]
    if name in _WRITERS:
        return _WRITERS[name](value, where)
    known = _TYPES[name]
    if issubclass(known, WireEnum):
        return _member(known, value, where)
    if isinstance(value, known):
        return value._wire
    if not isinstance(value, Mapping):
        raise _unexpected(where, f"{name} or a dict", value)
    return cast(type[Input], known)._checked(value, where)


@cache
def _reader(type_: str) -> Callable[[Any], Any]:
    """Makes the value of what travelled; what is not of the type stays as it came."""
    name, is_list, _ = _parsed(type_)
    known = _TYPES.get(name)
    if is_list:
        read = _reader(name)
        return lambda raw: [read(item) for item in raw] if isinstance(raw, list) else raw
    if name in _READERS:
        return _READERS[name]
    if known is None:
        return _read_member
    if issubclass(known, WireEnum):
        members: Mapping[Any, Any] = known._value2member_map_
        return lambda raw: members.get(raw, raw) if isinstance(raw, str) else raw
    return lambda raw: known.from_wire(raw) if isinstance(raw, dict) else raw


def _read_member(raw: Any) -> Any:
    """The member of a union, which says what it is."""
    known = _TYPES.get(str(raw.get("__typename"))) if isinstance(raw, dict) else None
    return known.from_wire(raw) if known is not None and issubclass(known, Record) else raw


@cache
def _parsed(type_: str) -> tuple[str, bool, bool]:
    """The name of a type, or the type of a list's items; whether it is a list; whether it may be None."""
    nullable = not type_.endswith("!")
    bare = type_.rstrip("!") if nullable else type_[:-1]
    return (bare[1:-1], True, nullable) if bare.startswith("[") else (bare, False, nullable)


def _member(known: type[WireEnum], value: Any, where: str) -> str:
    if isinstance(value, str) and value in known._value2member_map_:
        return str(known(value))
    close = get_close_matches(str(value), known._value2member_map_, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "it has " + ", ".join(known._value2member_map_)
    raise TypeError(f"{where}: {quoted(value)} is not a member of {known.__name__}; {hint}")


def _unexpected(where: str, expected: str, value: object) -> TypeError:
    return TypeError(f"{where}: expected {expected}, not {quoted(value)}")


def _instance_of(kind: type, expected: str) -> Callable[[Any, str], Any]:
    def write(value: Any, where: str) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise _unexpected(where, expected, value)
        return value

    return write


def _write_number(value: Any, where: str) -> float:
    if not isinstance(value, (int, float, Decimal)) or isinstance(value, bool) or not isfinite(value):
        raise _unexpected(where, "a finite number", value)
    return float(value) if isinstance(value, Decimal) else value


def _write_instant(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise _unexpected(where, "a datetime with a time zone, or its text in ISO 8601", value)
    return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _read_instant(raw: Any) -> Any:
    """An aware datetime; one without a zone is UTC."""
    try:
        instant = _instant(raw)
    except (ValueError, TypeError):
        return raw
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=timezone.utc)


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # Python 3.10 reads neither a Z nor fractions of any length
        plain = _FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", text.replace("Z", "+00:00"))
        return datetime.fromisoformat(plain)


def _read_money(raw: Any) -> Any:
    return Decimal(str(raw)) if isinstance(raw, (int, float)) else raw


_WRITERS: Mapping[str, Callable[[Any, str], Any]] = {
    "String": _instance_of(str, "text"),
    "Boolean": _instance_of(bool, "True or False"),
    "Int": _instance_of(int, "a whole number"),
    "Float": _write_number,
    "Decimal": _write_number,
    "Date": _write_instant,
    "JSON": lambda value, _where: value,
}

_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("String", "Boolean", "Int", "Float", "JSON"), lambda raw: raw),
    "Date": _read_instant,
    "Decimal": _read_money,
}

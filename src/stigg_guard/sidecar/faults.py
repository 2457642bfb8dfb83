"""Faults on purpose: answers that are late, refused or lost, so that an application can be tried without luck."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

import grpc

from stigg_guard.errors import ConfigError
from stigg_guard.foreign import quoted
from stigg_guard.sidecar.document import nearest
from stigg_guard.wire import METHODS

ALL = "*"
_FORM = "expected METHOD:latency=SECONDS,error=STATUS:PART,drop=PART, as ReportUsage:error=UNAVAILABLE:0.1"
_random = SystemRandom().random
_STATUSES = {status.name: status for status in grpc.StatusCode if status is not grpc.StatusCode.OK}


class Injected(grpc.RpcError):
    """The status that a call ends with on purpose."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._code

    def details(self) -> str:
        """What was done."""
        return self._details


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a method: it begins after ``latency`` seconds; ``error_part`` of the calls end with
    ``error``, and nothing is done; of the rest, ``drop`` are done and their answer is lost."""

    latency: float = 0.0
    error: grpc.StatusCode | None = None
    error_part: float = 1.0
    drop: float = 0.0


class Faults:
    """Does faults to answers, by method; ``*`` is for those that have none of their own."""

    def __init__(
        self,
        faults: Mapping[str, Fault],
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = _random,
    ) -> None:
        self._faults = faults
        self._sleep = sleep
        self._random = random

    def wrap(self, method: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        """What answers a method, with its fault if it has one. It raises ``Injected``."""
        fault = self._faults.get(method) or self._faults.get(ALL)
        if fault is None:
            return answer
        return lambda *given, **options: self._faulty(fault, lambda: answer(*given, **options))

    def _faulty(self, fault: Fault, answer: Callable[[], Any]) -> Any:
        if fault.latency:
            self._sleep(fault.latency)
        if fault.error is not None and self._random() < fault.error_part:
            raise Injected(fault.error, "a fault on purpose; nothing was done")
        answered = answer()
        if self._random() < fault.drop:
            raise Injected(grpc.StatusCode.UNAVAILABLE, "a fault on purpose; the answer was lost")
        return answered


def parse_faults(text: str) -> Mapping[str, Fault]:
    """The faults that a text describes, with spaces between those of several methods: ``latency=0.2`` for all methods,
    ``ReportUsage:error=UNAVAILABLE:0.1,drop=0.05`` for one.

    Raises:
        ConfigError: it describes none; the remedy is in the message.
    """
    faults: dict[str, Fault] = {}
    for word in text.split():
        method, fault = _fault(word)
        if method in faults:
            raise ConfigError(f"{quoted(word)} is a second fault of {method}; write both as one, with a comma")
        faults[method] = fault
    return faults


def _fault(word: str) -> tuple[str, Fault]:
    first, colon, rest = word.partition(":")
    method, told = (first, rest) if colon and "=" not in first else (ALL, word)
    if method not in (ALL, *METHODS):
        raise ConfigError(f"there is no method {quoted(method)}; {nearest(method, METHODS)}")
    parts = [part.partition("=")[::2] for part in told.split(",")]
    given = dict(parts)
    if len(given) < len(parts) or not given.keys() <= {"latency", "error", "drop"}:
        raise ConfigError(f"{_FORM}, each at most once, not {quoted(word)}")
    status, _, part = given.get("error", "").partition(":")
    if "error" in given and status not in _STATUSES:
        raise ConfigError(f"there is no status {quoted(status)}; {nearest(status, _STATUSES)}")
    return method, Fault(
        latency=_number(given.get("latency", "0"), word, most=3600.0),
        error=_STATUSES.get(status),
        error_part=_number(part or "1", word),
        drop=_number(given.get("drop", "0"), word),
    )


def _number(text: str, word: str, most: float = 1.0) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise ConfigError(f"{_FORM}, with numbers from 0 to {most:g}, not {quoted(word)}")
    return number

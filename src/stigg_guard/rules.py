"""Rules that guard by path: what the setting ``RULES`` says, and which rule a request meets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stigg_guard.amounts import usage_amount
from stigg_guard.entitlements import require_id
from stigg_guard.foreign import json_value, quoted

_KEYS = ("path", "feature", "consume", "methods")


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests whose path begins with ``path`` need the feature, and consume this many of its units.

    A ``path`` that ends with a slash is met without it, too, since a router may take both for the same.

    ``consume`` is None where the feature is only required. Without ``feature`` the paths are exempt. ``methods`` are
    in upper case; empty means every method except OPTIONS.
    """

    path: str
    feature: str | None
    consume: float | None
    methods: frozenset[str]

    def matches(self, path: str, method: str) -> bool:
        """Whether a request for this path, without the query, meets the rule."""
        return (path.startswith(self.path) or f"{path}/" == self.path) and guards_method(self.methods, method)


def guards_method(methods: frozenset[str], method: str) -> bool:
    """Whether a request of this method is guarded; a CORS preflight (OPTIONS) carries no sign of its sender."""
    return method in methods if methods else method != "OPTIONS"


def method_names(methods: Any) -> frozenset[str]:
    """The HTTP methods, in upper case; GET with HEAD, for which both frameworks run the view of GET.

    Raises:
        ValueError: it is no collection of names.
    """
    names = [] if isinstance(methods, str) or not isinstance(methods, Iterable) else list(methods)
    if (not names and methods) or not all(isinstance(name, str) and name.isalpha() for name in names):
        raise ValueError(f"methods: expected a list of HTTP methods such as ['POST'], not {quoted(methods)}")
    named = frozenset(name.upper() for name in names)
    return named | {"HEAD"} if "GET" in named else named


def rule_of(rules: Sequence[Rule], path: str, method: str) -> Rule | None:
    """The first rule that the request meets, unless that exempts it."""
    found = next((rule for rule in rules if rule.matches(path, method)), None)
    return found if found is not None and found.feature is not None else None


def parse_rules(given: Any) -> tuple[Rule, ...]:
    """Reads a list of mappings, or its JSON text.

    Raises:
        ValueError: a rule is wrong; the message has its number.
    """
    listed = json_value(given) if isinstance(given, str) else given
    if isinstance(listed, Mapping) or not isinstance(listed, Sequence):
        raise ValueError('expected a list of rules such as {"path": "/api/", "feature": "feature-api-calls"}')
    return tuple(_rule(index, entry) for index, entry in enumerate(listed))


def _rule(index: int, entry: Any) -> Rule:
    if isinstance(entry, Rule):
        return entry
    try:
        return _read(entry)
    except (ValueError, TypeError) as error:
        raise ValueError(f"rule {index}: {error}") from error


def _read(entry: Any) -> Rule:
    if not isinstance(entry, Mapping):
        raise ValueError(f"expected a mapping with {', '.join(_KEYS)}, not {quoted(entry)}")
    unknown = [str(key) for key in entry if key not in _KEYS]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: unknown; a rule has {', '.join(_KEYS)}")
    path, feature, consume = entry.get("path"), entry.get("feature"), entry.get("consume")
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError(f"path: expected the beginning of a path, such as '/api/', not {quoted(path)}")
    if feature is not None:
        require_id(feature, "feature")
    elif consume is not None:
        raise ValueError("consume: name the feature that is consumed")
    amount = None if consume is None else usage_amount(consume, "consume")
    return Rule(path, feature, amount, method_names(entry.get("methods", ())))

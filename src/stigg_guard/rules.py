"""Rules that guard by path or by view: what the setting ``RULES`` says, and which rule a request meets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from stigg_guard.amounts import usage_amount
from stigg_guard.entitlements import require_id
from stigg_guard.foreign import json_value, quoted

_KEYS = ("path", "view", "feature", "consume", "methods")
# Those of HTTP, WebDAV and caches; a view may be asked by any of them.
_METHODS = (
    "ACL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE "
    "OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT "
    "UNLINK UNLOCK UPDATE"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests whose path begins with ``path``, or that ``view`` answers, need the feature, and consume this many of
    its units. A rule has one of the two; the other is None.

    A ``path`` that ends with a slash is met without it, too, since a router may take both for the same. ``view`` is the
    name that the framework has for it.

    ``consume`` is None where the feature is only required. Without ``feature`` the requests are exempt. ``methods`` are
    in upper case; empty means every method.
    """

    path: str | None
    feature: str | None
    consume: float | None
    methods: frozenset[str]
    view: str | None = None

    def matches(self, paths: Iterable[str], method: str, view: str) -> bool:
        """Whether a request meets the rule that has one of these paths, without the query, and is for this view."""
        meets = view == self.view if self.path is None else any(self.covers(path) for path in paths)
        return meets and guards_method(self.methods, method)

    def covers(self, path: str) -> bool:
        """Whether the path begins as the rule says."""
        return self.path is not None and (path.startswith(self.path) or f"{path}/" == self.path)

    def __str__(self) -> str:
        return f"view {self.view}" if self.path is None else f"path {self.path}"


def guards_method(methods: frozenset[str], method: str, *, is_answered: bool = False) -> bool:
    """Returns whether a request of this method is guarded: one of ``methods``, or any if they are none, but for OPTIONS
    that ``is_answered`` by the framework itself, since a CORS preflight carries no sign of its sender."""
    return method in methods if methods else not (is_answered and method == "OPTIONS")


def method_names(methods: Any) -> frozenset[str]:
    """The HTTP methods, in upper case; GET with HEAD, for which both frameworks run the view of GET.

    Raises:
        ValueError: it is no collection of names.
    """
    names = [] if isinstance(methods, str) or not isinstance(methods, Iterable) else list(methods)
    if (not names and methods) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"methods: expected a list of HTTP methods such as ['POST'], not {quoted(methods)}")
    named = frozenset(name.upper() for name in names)
    known = _METHODS.split()
    for unknown in sorted(named.difference(known)):
        nearest = get_close_matches(unknown, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"methods: {quoted(unknown)} is no HTTP method; did you mean {nearest}?")
    return named | {"HEAD"} if "GET" in named else named


def rule_of(rules: Sequence[Rule], paths: Iterable[str], method: str, view: str) -> Rule | None:
    """The first rule that the request meets, unless that exempts it."""
    found = next((rule for rule in rules if rule.matches(paths, method, view)), None)
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
    path, view = entry.get("path"), entry.get("view")
    feature, consume = entry.get("feature"), entry.get("consume")
    if (path is None) == (view is None):
        raise ValueError("path, view: a rule has one of the two")
    if path is not None and not (isinstance(path, str) and path.startswith("/")):
        raise ValueError(f"path: expected the beginning of a path, such as '/api/', not {quoted(path)}")
    if view is not None and not (isinstance(view, str) and view):
        raise ValueError(f"view: expected the name of a view, not {quoted(view)}")
    if feature is not None:
        require_id(feature, "feature")
    elif consume is not None:
        raise ValueError("consume: name the feature that is consumed")
    amount = None if consume is None else usage_amount(consume, "consume")
    return Rule(path, feature, amount, method_names(entry.get("methods", ())), view)

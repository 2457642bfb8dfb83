"""Compares the features that a project names with those that a catalog or the sidecar knows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from stigg_guard.cli.console import Console
from stigg_guard.cli.mentions import Mention, mentions
from stigg_guard.entitlements import Customer, Reason
from stigg_guard.errors import ConfigError, InvalidRequest
from stigg_guard.fallbacks import parse_fallbacks
from stigg_guard.foreign import json_value, printable
from stigg_guard.guard import Guard
from stigg_guard.sidecar.catalog import load_catalog


def check_features(
    guard: Guard,
    console: Console,
    paths: Iterable[str | os.PathLike[str]],
    *,
    catalog: str | None = None,
    customer: Customer | None = None,
) -> int:
    """Prints the unknown features that these files and folders name; the exit status is 1 if there are any.

    Known is what the sidecar knows when it is asked as the customer; without one what the catalog has, which is by
    default the one that the guard answers from.

    Raises:
        ConfigError: there is no such path, the catalog is wrong, or there is neither customer nor catalog.
        InvalidRequest: the customer has no plan.
        SidecarError: the sidecar did not answer.
    """
    found = mentions(paths)
    catalog = catalog or guard.config.catalog or guard.config.offline_file
    if customer is not None:
        known = _known_to_sidecar(guard, customer, {mention.feature for mention in found if mention.feature})
    elif catalog is not None:
        known = known_features(catalog)
    else:
        raise ConfigError("there is nothing to compare with; give --catalog FILE, or --customer ID to ask the sidecar")
    result = Comparison(found, known)
    console.show(result.as_dict(), "\n".join(result.lines(console)))
    return 1 if result.unknown else 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is named beside what is known."""

    mentions: Sequence[Mention]
    known: AbstractSet[str]

    @property
    def unknown(self) -> Sequence[Mention]:
        """The places that name what is not known."""
        return [one for one in self.mentions if one.feature is not None and one.feature not in self.known]

    @property
    def unchecked(self) -> Sequence[Mention]:
        """The places where it cannot be told what is named."""
        return [one for one in self.mentions if one.feature is None]

    @property
    def unused(self) -> Sequence[str]:
        """What is known and nowhere named, for information: it may be used elsewhere."""
        return sorted(self.known - {one.feature for one in self.mentions})

    def as_dict(self) -> Mapping[str, object]:
        """All of it, for JSON."""
        return {
            "unknown": [
                {"path": str(one.path), "line": one.line, "feature": one.feature, "nearest": self._nearest(one)}
                for one in self.unknown
            ],
            "unchecked": [{"path": str(one.path), "line": one.line, "problem": one.problem} for one in self.unchecked],
            "unused": self.unused,
            "mentions": len(self.mentions),
        }

    def lines(self, console: Console) -> Iterator[str]:
        """All of it in words, each place as ``path:line``, and a last line that sums up."""
        for one in self.unknown:
            near = self._nearest(one)
            yield f"{one}: {one.feature!r} is {console.bad('unknown')}" + (f"; did you mean {near!r}?" if near else "")
        for one in self.unchecked:
            yield f"{one}: {printable(one.problem)}, not checked"
        if self.unused:
            yield f"known, and not named here: {', '.join(map(printable, self.unused))}"
        yield f"{len(self.mentions)} places, {len(self.unknown)} unknown, {len(self.unchecked)} not checked"

    def _nearest(self, mention: Mention) -> str | None:
        return next(iter(get_close_matches(mention.feature or "", sorted(self.known), n=1)), None)


def known_features(catalog: str | Path) -> frozenset[str]:
    """The feature and currency ids of a catalog, TOML or offline JSON, or the feature ids of a JSON file of fallbacks.

    Raises:
        ConfigError: the file cannot be read or is wrong; the message names every fault.
    """
    given = _json_object(Path(catalog))
    if given and "customers" not in given:
        return frozenset(parse_fallbacks(given))
    sold = load_catalog(catalog)
    return frozenset({*sold.features, *sold.currencies})


def _json_object(path: Path) -> Mapping[str, object]:
    """What the file says if it is a JSON object; what is wrong with another one, the reader of catalogs tells."""
    with suppress(OSError, ValueError):
        given = json_value(path.read_text(encoding="utf-8"))
        return given if isinstance(given, dict) else {}
    return {}


def _known_to_sidecar(guard: Guard, customer: Customer, named: AbstractSet[str]) -> frozenset[str]:
    """What the customer's plan has, and of the named features those that the sidecar knows besides."""
    plan = guard.entitlements(customer)
    if not plan:
        raise InvalidRequest(
            "customer_id", f"{customer} has no plan, and without one the sidecar tells of no feature; name one who has"
        )
    asked = [guard.check(feature, customer=customer) for feature in named - plan.keys()]
    # A fallback answers for what the sidecar does not know.
    known = (one.feature_id for one in asked if one.reason is not Reason.FEATURE_NOT_FOUND and not one.is_fallback)
    return frozenset({*plan, *known})

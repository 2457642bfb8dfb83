"""The features that a project names, held against those that are known: by a catalog, or by the sidecar."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from stigg_guard.console import Console
from stigg_guard.entitlements import Customer, Reason
from stigg_guard.errors import ConfigError, InvalidRequest
from stigg_guard.fallbacks import parse_fallbacks
from stigg_guard.guard import Guard
from stigg_guard.mentions import Mention, mentions
from stigg_guard.sidecar.catalog import load_catalog


def check_features(
    guard: Guard,
    console: Console,
    paths: Iterable[str | os.PathLike[str]],
    *,
    catalog: str | None,
    customer: str | None,
) -> int:
    """Tells which features are named in these files and folders and unknown; status 1 if there are any.

    What is known says the catalog, or the sidecar, which is asked as this customer.

    Raises:
        ConfigError: there is no such path, the catalog is wrong, or neither catalog nor customer is given.
        InvalidRequest: the customer has no plan.
        SidecarError: the sidecar did not answer.
    """
    found = mentions(paths)
    used = {mention.feature for mention in found if mention.feature is not None}
    if customer is not None:
        known = _known_to_sidecar(guard, Customer(customer), used)
    elif catalog is not None:
        known = known_features(catalog)
    else:
        raise ConfigError("nothing to compare with: name a --catalog FILE, or a --customer to ask the sidecar as")
    unknown = [mention for mention in found if mention.feature in used - known]
    unchecked = [mention for mention in found if mention.feature is None]
    unused = sorted(known - used)
    console.show(
        {
            "unknown": [{**_place(one), "feature": one.feature, "nearest": _nearest(one, known)} for one in unknown],
            "unchecked": [{**_place(one), "text": one.text} for one in unchecked],
            "unused": unused,
            "mentions": len(found),
        },
        "\n".join(
            [
                *(f"{one}: {one.feature!r} {console.bad('unknown')}{_remedy(one, known)}" for one in unknown),
                *(f"{one}: {one.text}: not a literal, not checked" for one in unchecked),
                *([f"not used here: {', '.join(unused)}"] if unused else []),
                f"{len(found)} mentions of {len(used)} features: {len(unknown)} unknown, {len(unchecked)} not checked",
            ]
        ),
    )
    return 1 if unknown else 0


def known_features(catalog: str | Path) -> frozenset[str]:
    """The feature and currency ids of a catalog, TOML or offline JSON, or the feature ids of a JSON file of fallbacks.

    Raises:
        ConfigError: the file cannot be read or is wrong; the message names every fault.
    """
    with suppress(OSError, ValueError):  # what is no JSON, the catalog's reader tells better
        given = json.loads(Path(catalog).read_text(encoding="utf-8"))
        if "customers" not in given:
            return frozenset(parse_fallbacks(given))
    sold = load_catalog(catalog)
    return frozenset({*sold.features, *sold.currencies})


def _known_to_sidecar(guard: Guard, customer: Customer, used: AbstractSet[str]) -> frozenset[str]:
    """What the customer's plan has, and those of the used features that the sidecar knows besides."""
    plan = guard.entitlements(customer)
    if not plan:
        raise InvalidRequest(
            "customer_id", f"{customer} has no plan, and without one the sidecar tells of no feature; name one who has"
        )
    asked = [guard.check(feature, customer=customer) for feature in used - plan.keys()]
    # A fallback answers for what the sidecar does not know.
    known = (a.feature_id for a in asked if a.reason is not Reason.FEATURE_NOT_FOUND and not a.is_fallback)
    return frozenset({*plan, *known})


def _place(mention: Mention) -> Mapping[str, object]:
    return {"path": str(mention.path), "line": mention.line}


def _nearest(mention: Mention, known: AbstractSet[str]) -> str | None:
    return next(iter(get_close_matches(mention.feature or "", sorted(known), n=1)), None)


def _remedy(mention: Mention, known: AbstractSet[str]) -> str:
    near = _nearest(mention, known)
    return "" if near is None else f"; did you mean {near!r}?"

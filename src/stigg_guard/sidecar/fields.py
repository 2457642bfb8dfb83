"""Validates the fields of a request; a fault names the field by its wire name."""

from __future__ import annotations

import math
from typing import Any

from stigg_guard.errors import InvalidRequest


def require_ids(request: Any, *names: str, place: str = "") -> None:
    """Refuse empty ids, and a resource id that is given but empty. ``place`` stands before the fields' names."""
    for name in names:
        if not getattr(request, name):
            raise InvalidRequest(f"{place}{name}", "must not be empty")
    if request.HasField("resource_id") and not request.resource_id:
        raise InvalidRequest(f"{place}resource_id", "must not be empty; leave it out to mean the customer itself")


def require_count(name: str, count: int, most: int) -> None:
    """Refuse an empty bulk and one that is too long."""
    if not 1 <= count <= most:
        raise InvalidRequest(name, f"must have 1 to {most} items, and has {count}")


def require_finite(name: str, value: float) -> None:
    """Refuse NaN and the infinities."""
    if not math.isfinite(value):
        raise InvalidRequest(name, f"must be a finite number, and is {value}")


def require_finite_dimensions(message: Any, place: str) -> None:
    """Refuse dimensions that are NaN or infinite."""
    for name, dimension in message.dimensions.items():
        require_finite(f"{place}dimensions[{name}].number_value", dimension.number_value)

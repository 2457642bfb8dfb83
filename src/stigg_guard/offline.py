"""Offline mode: what customers have, given by the application itself, and how reports are treated without a sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from stigg_guard.errors import ConfigError
from stigg_guard.foreign import json_value


class OfflineReports(str, Enum):
    """How usage and events are treated that are reported in offline mode: an error, counted in this process until it
    ends, or nothing at all."""

    REFUSE = "refuse"
    KEEP = "keep"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineEntitlement:
    """One entitlement: ``type`` is ``BOOLEAN``, ``NUMERIC`` (with ``value`` or ``is_unlimited``), ``ENUM`` (with
    ``enum_values``), ``METERED`` or ``CREDIT`` (with ``usage_limit`` or, if metered, ``is_unlimited``)."""

    type: str
    value: float | None = None
    is_unlimited: bool | None = None
    usage_limit: float | None = None
    enum_values: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class OfflineCustomer:
    """The entitlements of a customer by feature id or currency id, and those of its resources where they have others;
    without ``resources``, those of the customer answer for any resource."""

    entitlements: Mapping[str, OfflineEntitlement | Mapping[str, Any]]
    resources: Mapping[str, OfflineCustomer | Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfflineConfig:
    """What all customers have, by their ids. ``Stigg`` answers from it in this process, and asks nobody.

    A customer is an :class:`OfflineCustomer`, or a mapping as in the documented JSON.
    """

    customers: Mapping[str, OfflineCustomer | Mapping[str, Any]]

    @classmethod
    def from_json(cls, text: str) -> OfflineConfig:
        """The configuration that the documented JSON describes: ``{"customers": {…}}``.

        Raises:
            ConfigError: it is not JSON, or has no ``customers``. What else is wrong, ``Stigg`` says.
        """
        try:
            document = json_value(text)
        except ValueError as error:
            raise ConfigError(f"OfflineConfig: {error}") from None
        if not isinstance(document, dict) or document.keys() != {"customers"}:
            raise ConfigError('OfflineConfig: expected {"customers": {"customer-id": {"entitlements": {…}}}}')
        return cls(document["customers"])

    @property
    def document(self) -> Mapping[str, Any]:
        """All of it as in the documented JSON."""
        return {"customers": _spelled(self.customers)}


_NAMES = {"is_unlimited": "isUnlimited", "usage_limit": "usageLimit", "enum_values": "enumValues"}


def _spelled(value: Any) -> Any:
    if isinstance(value, OfflineEntitlement):
        return {_NAMES.get(name, name): _spelled(getattr(value, name)) for name in value.__slots__}
    if isinstance(value, OfflineCustomer):
        # None where there are none, so that a customer with an empty mapping is one without.
        return {"entitlements": _spelled(value.entitlements), "resources": _spelled(value.resources) or None}
    if isinstance(value, Mapping):
        return {key: _spelled(one) for key, one in value.items()}
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value

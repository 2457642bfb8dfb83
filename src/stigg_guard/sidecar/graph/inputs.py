"""Validates the inputs of the API, and converts them for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

from stigg_guard.sidecar.catalog import Feature, Grant
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.periods import months_after
from stigg_guard.wire import sidecar_pb2 as pb

Json: TypeAlias = Mapping[str, Any]

DETAILS = (
    "name",
    "email",
    "additionalMetaData",
    "billingId",
    "salesforceId",
    "crmId",
    "awsMarketplaceCustomerId",
    "couponRefId",
)
"""What is kept of a customer as it is given."""

TERMS = ("billingPeriod", "additionalMetaData", "entitlements", "appliedCoupon")
"""What a subscription has beside its plan."""

# They are of payments, of other environments and of trials, of which there are none here.
_WITHOUT_EFFECT = {
    "awaitPaymentConfirmation",
    "billingCountryCode",
    "billingInformation",
    "checkoutOptions",
    "environmentId",
    "excludeFromExperiment",
    "paymentCollectionMethod",
    "shouldSyncFree",
    "shouldTrack",
    "shouldWaitSync",
    "skipTrial",
}
_MONTHS = {"ONE_MONTH": 1, "SIX_MONTH": 6, "ONE_YEAR": 12}


class GraphError(Exception):
    """What is asked for is wrong, or not to be had here; ``code`` says which."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Inputs:
    """Reads what is given by the catalog of an engine. Raises ``GraphError`` for what is wrong."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def terms(self, given: Json) -> dict[str, Any]:
        """What of a subscription is given beside its plan, as it is kept."""
        terms = {key: given[key] for key in ("billingPeriod", "additionalMetaData") if key in given}
        if given.get("entitlements") is not None:
            terms["entitlements"] = dict(self._own_entitlement(entry) for entry in given["entitlements"])
        if given.get("appliedCoupon") is not None:
            take(given["appliedCoupon"], "couponId")
            terms["couponId"] = self._coupon(given["appliedCoupon"].get("couponId") or "")
        return terms

    def details(self, given: Json) -> dict[str, Any]:
        """What of a customer is given, as it is kept."""
        if given.get("couponRefId") is not None:
            self._coupon(given["couponRefId"])
        return {key: given[key] for key in DETAILS if key in given}

    def _coupon(self, coupon: str) -> str:
        coupons = self._engine.catalog.coupons
        if coupon not in coupons:
            raise GraphError("VALIDATION_ERROR", f"there is no coupon {coupon!r}; {nearest(coupon, coupons)}")
        return coupon

    def _own_entitlement(self, entry: Json) -> tuple[str, Json]:
        feature, credit = entry.get("feature"), entry.get("credit")
        if (feature is None) == (credit is None):
            raise GraphError("VALIDATION_ERROR", "entitlements: give either feature or credit")
        if feature is not None:
            return feature["featureId"], self.grant(feature)
        currencies = self._engine.catalog.currencies
        currency = credit["customCurrencyId"]  # type: ignore[index] # one of the two is there
        if currency not in currencies:
            raise GraphError("VALIDATION_ERROR", f"there is no currency {currency!r}; {nearest(currency, currencies)}")
        assert credit is not None
        reset = credit["cadence"].lower()
        return currency, _kept(Grant(limit=credit["amount"], soft=bool(credit.get("hasSoftLimit")), reset=reset))

    def grant(self, given: Json) -> Json:
        """What is given of a feature, as it is kept."""
        taken = ("featureId", "usageLimit", "hasUnlimitedUsage", "hasSoftLimit", "resetPeriod", "enumValues")
        take(given, *taken, "period", "customEndDate", "isVisible")
        feature = self._feature(given["featureId"])
        limit, unlimited = given.get("usageLimit"), bool(given.get("hasUnlimitedUsage"))
        if feature.kind in ("numeric", "metered") and (limit is None) != unlimited:
            raise GraphError("VALIDATION_ERROR", f"{feature.id}: give either usageLimit or hasUnlimitedUsage")
        if feature.kind == "numeric":
            return _kept(Grant(value=None if limit is None else int(limit), unlimited=unlimited))
        if feature.kind == "enum":
            return _kept(Grant(values=tuple(given.get("enumValues") or ())))
        if feature.kind == "boolean":
            return {}
        reset = given["resetPeriod"].lower() if given.get("resetPeriod") else None
        soft = bool(given.get("hasSoftLimit"))
        return _kept(Grant(limit=limit, unlimited=unlimited, soft=soft, reset=reset))

    def _feature(self, feature_id: str) -> Feature:
        features = self._engine.catalog.features
        if feature_id not in features:
            raise GraphError("FEATURE_NOT_FOUND", f"there is no {feature_id!r}; {nearest(feature_id, features)}")
        return features[feature_id]

    def promotion(self, given: Json) -> tuple[str, Json]:
        now, period = self._engine.now(), given["period"]
        ends: datetime | None = None  # for life
        if period == "CUSTOM":
            ends = instant_of("customEndDate", given.get("customEndDate"))
        elif period == "ONE_WEEK":
            ends = now + timedelta(weeks=1)
        elif period in _MONTHS:
            ends = months_after(now, _MONTHS[period])
        is_visible = bool(given.get("isVisible"))
        content = {"grant": self.grant(given), "endDate": ends and ends.isoformat(), "isVisible": is_visible}
        return given["featureId"], content


def take(given: Json, *taken: str) -> None:
    """Refuse what is given and would have no effect, unless it has none here by its nature."""
    for key, value in given.items():
        if value and key not in taken and key not in _WITHOUT_EFFECT:
            raise GraphError("NOT_MODELLED", f"the local sidecar does not model {key}")


def _kept(grant: Grant) -> Json:
    """The grant as JSON, without what is as in every grant."""
    default = asdict(Grant())
    return {key: value for key, value in asdict(grant).items() if value != default[key]}


def usage_of(given: Json) -> pb.ReportUsageRequest:
    """One usage as its message."""
    behavior = f"USAGE_UPDATE_BEHAVIOR_{given.get('updateBehavior') or 'DELTA'}"
    return pb.ReportUsageRequest(
        customer_id=given["customerId"],
        resource_id=given.get("resourceId"),
        feature_id=given["featureId"],
        value=given["value"],
        update_behavior=behavior,
        timestamp=_optional_instant("createdAt", given.get("createdAt")),
        dimensions=_dimensions(given.get("dimensions")),
    )


def event_of(given: Json) -> pb.Event:
    """One raw event as its message."""
    return pb.Event(
        customer_id=given["customerId"],
        resource_id=given.get("resourceId"),
        event_name=given["eventName"],
        idempotency_key=given["idempotencyKey"],
        timestamp=_optional_instant("timestamp", given.get("timestamp")),
        dimensions=_dimensions(given.get("dimensions")),
    )


def _dimensions(given: Any) -> dict[str, pb.EventDimensionValue]:
    if not isinstance(given or {}, dict):
        raise GraphError("VALIDATION_ERROR", "dimensions: expected an object")
    return {str(name): _dimension(str(name), value) for name, value in (given or {}).items()}


def _dimension(name: str, value: Any) -> pb.EventDimensionValue:
    if isinstance(value, bool):
        return pb.EventDimensionValue(boolean_value=value)
    if isinstance(value, (int, float)):
        return pb.EventDimensionValue(number_value=value)
    if isinstance(value, str):
        return pb.EventDimensionValue(string_value=value)
    raise GraphError("VALIDATION_ERROR", f"dimensions.{name}: expected a text, a number or a boolean")


def _optional_instant(field: str, given: str | None) -> datetime | None:
    return None if given is None else instant_of(field, given)


def instant_of(field: str, given: str | None) -> datetime:
    try:
        instant = datetime.fromisoformat((given or "").replace("Z", "+00:00"))
    except ValueError:
        raise GraphError("VALIDATION_ERROR", f"{field}: expected an instant in ISO 8601, not {given!r}") from None
    return instant.astimezone(timezone.utc) if instant.tzinfo else instant.replace(tzinfo=timezone.utc)

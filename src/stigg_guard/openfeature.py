"""A provider for OpenFeature: flags are features, the targeting key is the customer, a denial is a value."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from stigg_guard.entitlements import Customer, Entitlement, Kind, Source
from stigg_guard.entitlements import Reason as Denial
from stigg_guard.errors import InvalidRequest, MissingExtra, NotSupported, SidecarError, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.observer import Observer, Step
from stigg_guard.runtime.log import logger

try:
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import ProviderEventDetails
    from openfeature.exception import (
        FlagNotFoundError,
        GeneralError,
        InvalidContextError,
        TargetingKeyMissingError,
        TypeMismatchError,
    )
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
    from openfeature.provider import AbstractProvider, Metadata
    from openfeature.track import TrackingEventDetails
except ModuleNotFoundError as error:
    raise MissingExtra("openfeature", "stigg_guard.openfeature") from error

T = TypeVar("T")
FlagObject: TypeAlias = "Sequence[FlagValueType] | Mapping[str, FlagValueType]"

UNLIMITED = 2**53 - 1
"""The integer and float of a feature without a limit: the largest integer that numbers of every language hold."""

NAME = "stigg-guard"

_FIGURES = (Kind.NUMERIC, Kind.METERED, Kind.CREDIT)
_REASONS = {Source.CACHE: Reason.CACHED, Source.STALE: Reason.STALE, Source.FALLBACK: Reason.DEFAULT}


class StiggProvider(AbstractProvider):
    """Resolves flags by a guard: ``api.set_provider(StiggProvider(guard))``. The guard stays its owner's to close.

    The targeting key is the customer; the attributes ``resource_id``, ``requested_usage`` and ``requested_values`` are
    those of :meth:`Guard.check`. What a flag is:

    - boolean: whether the customer may use the feature;
    - integer, float: the value of a numeric feature; what remains of a metered one or a currency, for an integer
      rounded down; 0 when access is denied, :data:`UNLIMITED` without a limit;
    - string: the values of an enum feature, with commas between them; empty when access is denied;
    - object: the whole entitlement, as a mapping.

    The variant is ``granted`` or ``denied``. The reason is ``TARGETING_MATCH`` for an answer just fetched, else
    ``CACHED``, ``STALE`` or, for a fallback, ``DEFAULT``. The metadata are ``fallback`` and, where there are
    such, ``reason``, ``limit`` and ``usage``.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard
        self._leave: Callable[[], None] | None = None

    def get_metadata(self) -> Metadata:
        """The provider's name."""
        return Metadata(name=NAME)

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Follows the guard for events. It asks nobody: the first flag does."""
        self.shutdown()
        self._leave = self._guard.observe(_Contact(self))

    def shutdown(self) -> None:
        """Follows the guard no more."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolved(flag_key, default_value, evaluation_context, _access)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._resolved(flag_key, default_value, evaluation_context, _text)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._resolved(flag_key, default_value, evaluation_context, _integer)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._resolved(flag_key, default_value, evaluation_context, _number)

    def resolve_object_details(
        self, flag_key: str, default_value: FlagObject, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[FlagObject]:
        return self._resolved(flag_key, default_value, evaluation_context, _whole)

    async def resolve_boolean_details_async(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return await asyncio.to_thread(self.resolve_boolean_details, flag_key, default_value, evaluation_context)

    async def resolve_string_details_async(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return await asyncio.to_thread(self.resolve_string_details, flag_key, default_value, evaluation_context)

    async def resolve_integer_details_async(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return await asyncio.to_thread(self.resolve_integer_details, flag_key, default_value, evaluation_context)

    async def resolve_float_details_async(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return await asyncio.to_thread(self.resolve_float_details, flag_key, default_value, evaluation_context)

    async def resolve_object_details_async(
        self, flag_key: str, default_value: FlagObject, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[FlagObject]:
        return await asyncio.to_thread(self.resolve_object_details, flag_key, default_value, evaluation_context)

    def track(
        self,
        tracking_event_name: str,
        evaluation_context: EvaluationContext | None = None,
        tracking_event_details: TrackingEventDetails | None = None,
    ) -> None:
        """Reports usage of the feature of this name: the details' ``value`` in units, without one a unit, with their
        attributes as dimensions. What is wrong with it is logged, and nothing is reported."""
        details = tracking_event_details or TrackingEventDetails()
        units = 1 if details.value is None else details.value
        try:
            customer = _customer(evaluation_context)
            dimensions: Any = details.attributes  # the guard checks them
            self._guard.report(tracking_event_name, units, customer=customer, dimensions=dimensions)
        except (StiggGuardError, TargetingKeyMissingError) as error:
            logger.error("usage that was tracked of %r is not reported: %s", tracking_event_name, _message(error))

    def _resolved(
        self,
        feature: str,
        default: T,
        context: EvaluationContext | None,
        read: Callable[[Entitlement, Any], T],
    ) -> FlagResolutionDetails[T]:
        """The flag, or the error that the specification has for it.

        Raises:
            OpenFeatureError: the key or an attribute is missing or wrong, the feature is unknown or of another type, or
                there is neither data nor a fallback.
        """
        attributes = context.attributes if context is not None else {}
        try:
            answer = self._guard.check(
                feature,
                customer=_customer(context),
                requested_usage=attributes.get("requested_usage"),  # type: ignore[arg-type] # the guard checks them
                requested_values=attributes.get("requested_values", ()),  # type: ignore[arg-type] # likewise
            )
        except InvalidRequest as error:
            raise InvalidContextError(str(error)) from error
        except StiggGuardError as error:
            raise GeneralError(str(error)) from error
        if answer.reason is Denial.FEATURE_NOT_FOUND:
            raise FlagNotFoundError(f"there is no feature {feature!r}")
        return FlagResolutionDetails(
            value=read(answer, default),
            reason=_REASONS.get(answer.source, Reason.TARGETING_MATCH),
            variant="granted" if answer else "denied",
            flag_metadata=_metadata(answer),
        )


class _Contact(Observer):
    """Makes events of what happens in a guard. The provider, which has the guard, is not kept alive by it."""

    def __init__(self, provider: StiggProvider) -> None:
        self._provider = weakref.ref(provider)
        self._is_lost = False

    def fetched(self, step: Step) -> None:
        if step.error is None or isinstance(step.error, NotSupported):
            self._regained()
        elif isinstance(step.error, SidecarError):
            self.lost_contact(step.error)

    def sent(self, step: Step) -> None:
        if step.error is None:
            self._regained()

    def lost_contact(self, error: StiggGuardError) -> None:
        provider = self._provider()
        if provider is not None and not self._is_lost:
            self._is_lost = True
            provider.emit_provider_stale(ProviderEventDetails(message=str(error)))

    def invalidated(self, customer: Customer | None) -> None:
        provider = self._provider()
        if provider is not None:
            whose = "everybody" if customer is None else str(customer)
            provider.emit_provider_configuration_changed(ProviderEventDetails(message=f"entitlements of {whose}"))

    def _regained(self) -> None:
        provider = self._provider()
        if provider is not None and self._is_lost:
            self._is_lost = False
            provider.emit_provider_ready(ProviderEventDetails())


def _customer(context: EvaluationContext | None) -> Customer:
    if context is None or not context.targeting_key:
        raise TargetingKeyMissingError("the targeting key is the customer's id, and there is none")
    resource: Any = context.attributes.get("resource_id")
    return Customer(context.targeting_key, resource)


def _access(answer: Entitlement, _default: object) -> bool:
    return answer.has_access


def _text(answer: Entitlement, default: str) -> str:
    if _says_nothing(answer, Kind.ENUM):
        return default if answer else ""
    _require_kind(answer, "a string", Kind.ENUM)
    return ",".join(answer.enum_values) if answer else ""


def _integer(answer: Entitlement, default: float) -> int:
    return math.floor(_number(answer, default))


def _number(answer: Entitlement, default: float) -> float:
    if _says_nothing(answer, *_FIGURES):
        return default if answer else 0.0
    _require_kind(answer, "a number", *_FIGURES)
    if not answer:
        return 0.0
    if answer.needs_fresh_check:
        raise TypeMismatchError(f"{answer.feature_id} is paid from credits; what remains is that of their currency")
    left = answer.value if answer.kind is Kind.NUMERIC else answer.remaining
    return float(UNLIMITED if left is None or answer.is_unlimited else left)


def _whole(answer: Entitlement, _default: object) -> FlagObject:
    return {
        "feature_id": answer.feature_id,
        "kind": str(answer.kind) if answer.kind else "",
        "has_access": answer.has_access,
        "is_unlimited": answer.is_unlimited,
        "has_soft_limit": answer.has_soft_limit,
        "enum_values": list(answer.enum_values),
        **_metadata(answer),
        **({} if answer.value is None else {"value": answer.value}),
        **({} if answer.remaining is None else {"remaining": answer.remaining}),
    }


def _says_nothing(answer: Entitlement, *kinds: Kind) -> bool:
    """Whether only access is known: a denial without an entitlement, or a fallback without figures."""
    return answer.kind is None or (answer.is_fallback and answer.kind not in kinds)


def _require_kind(answer: Entitlement, wanted: str, *kinds: Kind) -> None:
    if answer.kind not in kinds:
        raise TypeMismatchError(f"{answer.feature_id} is a {answer.kind} feature, which is not {wanted}")


def _metadata(answer: Entitlement) -> dict[str, bool | int | float | str]:
    known: dict[str, bool | int | float | str] = {"fallback": answer.is_fallback}
    if answer.reason is not None:
        known["reason"] = str(answer.reason)
    if answer.usage_limit is not None:
        known["limit"] = answer.usage_limit
    if answer.kind in (Kind.METERED, Kind.CREDIT):
        known["usage"] = answer.current_usage
    return known


def _message(error: StiggGuardError | TargetingKeyMissingError) -> str:
    return str(error) if isinstance(error, StiggGuardError) else str(error.error_message)

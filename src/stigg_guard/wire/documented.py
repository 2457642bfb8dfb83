"""Adds to messages what the documented snippets use, and protobuf's own classes lack.

Its messages are always true, absent parts as well, and read a datetime without a zone as UTC.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from stigg_guard.wire import sidecar_pb2 as wire

KINDS = frozenset(field.name for field in wire.GetEntitlementResponse.DESCRIPTOR.oneofs_by_name["entitlement"].fields)


def by_kind(message: wire.GetEntitlementResponse) -> wire.GetEntitlementResponse:
    """The message, with a part for each kind of entitlement that is true exactly where ``HasField`` is.

    It reads, compares, copies and pickles as the message, and goes to ``json_format``. Where protobuf takes nothing but
    a message of its own (``CopyFrom``, ``MergeFrom``), give it ``.message``.
    """
    return cast(wire.GetEntitlementResponse, _Answer(message))


class _Stand:
    """Stands for a message, in all that is asked of it."""

    __slots__ = ("message",)
    message: Any

    def __init__(self, message: Message) -> None:
        object.__setattr__(self, "message", message)

    @property  # type: ignore[misc] # which a class may do, and typing does not know
    def __class__(self) -> Any:
        return type(self.message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.message, name, value)

    def __eq__(self, other: object) -> bool:
        compared = cast(_Stand, other).message if issubclass(type(other), _Stand) else other
        return bool(self.message == compared)

    __hash__ = None  # type: ignore[assignment] # nor has a message one

    def __repr__(self) -> str:
        return repr(self.message)

    def __str__(self) -> str:
        return str(self.message)

    def __dir__(self) -> list[str]:
        return dir(self.message)

    def __reduce__(self) -> Any:
        return self._remade()

    def __copy__(self) -> Any:
        make, arguments = self._remade()
        return make(*arguments)

    def __deepcopy__(self, _memo: object) -> Any:
        return self.__copy__()

    @abstractmethod
    def _remade(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What makes an equal one, and of what."""


class _Answer(_Stand):
    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        part = getattr(self.message, name)
        return _Part(part, self.message, name) if name in KINDS and not self.message.HasField(name) else part

    def _remade(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored, (self.message.SerializeToString(),)


class _Part(_Stand):
    """A part that is absent, until something is written into it."""

    __slots__ = ("_name", "_whole")

    def __init__(self, message: Message, whole: Message, name: str) -> None:
        super().__init__(message)
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_name", name)

    def __bool__(self) -> bool:
        return bool(self._whole.HasField(self._name))

    def _remade(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _part, (self._whole.SerializeToString(), self._name)


def _restored(serialized: bytes) -> _Answer:
    return _Answer(wire.GetEntitlementResponse.FromString(serialized))


def _part(serialized: bytes, name: str) -> Any:
    return getattr(_restored(serialized), name)


class _Timed(type):
    """Makes messages that have a ``timestamp``, and passes for their class."""

    message: type[Message]

    def __call__(cls, **fields: Any) -> Message:
        given = fields.get("timestamp")
        if isinstance(given, datetime):
            fields["timestamp"] = given.astimezone()  # which takes one without a zone as local time
        elif isinstance(given, Timestamp):
            fields["timestamp"] = {"seconds": given.seconds, "nanos": given.nanos}
        return cls.message(**fields)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.message)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.message, name)


if TYPE_CHECKING:

    class Event(wire.Event):
        """A raw event."""

        def __init__(
            self,
            event_name: str | None = ...,
            customer_id: str | None = ...,
            idempotency_key: str | None = ...,
            resource_id: str | None = ...,
            dimensions: Mapping[str, wire.EventDimensionValue] | None = ...,
            timestamp: datetime | Timestamp | Mapping[str, int] | None = ...,
        ) -> None: ...

    class ReportUsageRequest(wire.ReportUsageRequest):
        """Usage of one feature."""

        def __init__(
            self,
            customer_id: str | None = ...,
            resource_id: str | None = ...,
            feature_id: str | None = ...,
            value: float | None = ...,
            update_behavior: wire.UsageUpdateBehavior | str | None = ...,
            dimensions: Mapping[str, wire.EventDimensionValue] | None = ...,
            timestamp: datetime | Timestamp | Mapping[str, int] | None = ...,
        ) -> None: ...

else:

    class Event(metaclass=_Timed):
        """A raw event, as ``wire.sidecar_pb2.Event``; a ``timestamp`` without a zone is local time."""

        message = wire.Event

    class ReportUsageRequest(metaclass=_Timed):
        """Usage of one feature, as ``wire.sidecar_pb2.ReportUsageRequest``; a ``timestamp`` without a zone is local
        time."""

        message = wire.ReportUsageRequest

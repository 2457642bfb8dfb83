"""What each status of gRPC means: one table for checks, one for reports."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from stigg_guard.errors import (
    InvalidRequest,
    NotSupported,
    SidecarError,
    SidecarTimeout,
    SidecarUnauthenticated,
    SidecarUnavailable,
    StiggGuardError,
)

CHECKS: Mapping[grpc.StatusCode, type[SidecarError]] = {
    grpc.StatusCode.UNAVAILABLE: SidecarUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: SidecarTimeout,
    grpc.StatusCode.UNAUTHENTICATED: SidecarUnauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: SidecarUnauthenticated,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
}
"""What is not in the table is a plain ``SidecarError``: whatever the status, the check has no answer."""

_WRONG = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
)

REPORTS: Mapping[grpc.StatusCode, type[StiggGuardError]] = {**CHECKS, **dict.fromkeys(_WRONG, InvalidRequest)}
"""The same for reports; but one that is wrong would be wrong again."""

NOT_COUNTED = {
    *_WRONG,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""With these a sidecar turns a report away. After any other status a report that was sent may have been counted:
RESOURCE_EXHAUSTED is also what gRPC makes of an answer that is too large."""

_REMEDIES: Mapping[type[SidecarError], str] = {
    SidecarUnavailable: "start it, or correct the address",
    SidecarTimeout: "look whether it hangs, or allow it more time",
    SidecarUnauthenticated: "look at the sidecar's API key",
    NotSupported: "update the sidecar",
}


def error_of(
    status: grpc.RpcError, what: str, *, is_report: bool, sent: bool, proxy: str = "", fault: str = ""
) -> StiggGuardError:
    """Returns the error for a status. ``what`` was asked, and of whom.

    ``sent`` says whether the request may have reached the sidecar; ``fault`` is what is known to be wrong, with its
    remedy.
    """
    code, details = status.code(), _one_line(status.details() or "")
    kind = (REPORTS if is_report else CHECKS).get(code, SidecarError)
    if not issubclass(kind, SidecarError):
        return _rejection(details)
    remedies = [fault or _REMEDIES.get(kind, "")]
    if proxy and kind is SidecarUnavailable:
        what += f", through the proxy {proxy},"
        remedies.append("look at the proxy, or name the sidecar in no_proxy")
    message = "; ".join(filter(None, [f"{what} failed with {code.name} ({details})", *remedies]))
    unknown = is_report and sent and code not in NOT_COUNTED
    return kind(message, code=code.name, outcome_unknown=unknown)


def _rejection(details: str) -> InvalidRequest:
    field, separator, problem = details.partition(": ")
    return InvalidRequest(field, problem) if separator and " " not in field else InvalidRequest("", details)


def _one_line(details: str) -> str:
    """The words of a server, which cannot begin a line of a log."""
    return details if details.isprintable() else ascii(details)

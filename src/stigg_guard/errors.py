"""The exceptions of this library.

::

    StiggGuardError
    ├── ConfigError (ValueError)        a setting, a catalog or a fallback file is wrong
    ├── MissingExtra (ImportError)      an optional part is not installed
    ├── InvalidRequest (ValueError)     the request itself is wrong: an empty id, an amount that is no number
    ├── ClientClosed                    the client was closed before this call
    ├── FeatureDenied                   the customer may not use the feature
    ├── KeyTaken                        the key that came with a use is not free; nothing was held or counted
    │   ├── UsageInProgress             the use that it came with before goes on
    │   ├── UsageRepeated               that use was counted
    │   └── KeyReused                   that use was another one
    ├── LedgerUnavailable               the ledger cannot be read or written, or did not answer
    ├── SignInRequired                  the request comes from nobody that we know
    ├── SidecarError                    the sidecar did not answer the question
    │   ├── SidecarUnavailable          nothing answers there, and there is neither data nor fallback
    │   │   └── SidecarTimeout          the deadline passed; whether a report was counted is unknown
    │   ├── SidecarUnauthenticated      the sidecar does not accept our credentials
    │   ├── NotSupported                this sidecar is too old for the call, or nothing is reported offline
    │   └── SidecarStartError           the local sidecar did not start
    └── ApiError                        Stigg's API did not do what it was asked to
        ├── ApiUnavailable              it cannot be reached, or fails
        │   ├── ApiTimeout              the deadline passed
        │   └── ApiRateLimited          it takes no more requests for now
        ├── ApiUnauthenticated          it does not accept our key
        ├── ApiRejected                 it answered with errors, which say what is wrong with the request
        └── ApiUnreadable               what answers there does not answer as the API does

    RealLedgerWarning (UserWarning)     a test is about to use the ledger of the settings
"""

from __future__ import annotations

from copy import deepcopy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from stigg_guard.foreign import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stigg_guard.entitlements import Customer, Entitlement


class RealLedgerWarning(UserWarning):
    """A test is about to use the ledger of the settings, whose usage is reported, where nothing overrides it."""


class StiggGuardError(Exception):
    """The root of all errors of this library. They can be copied and pickled with their fields.

    Each argument is one line of the message, whatever characters it has.
    """

    _of_this_process: ClassVar[frozenset[str]] = frozenset()
    """Fields that pickling leaves out, and that copies share."""

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: value for name, value in vars(self).items() if name not in self._of_this_process}
        return _made_again, (type(self), self.args), fields

    def __copy__(self) -> StiggGuardError:
        return _made_again(type(self), self.args, vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> StiggGuardError:
        memo.update((id(value), value) for name, value in vars(self).items() if name in self._of_this_process)
        return _made_again(type(self), *deepcopy((self.args, vars(self)), memo))


def _made_again(
    kind: type[StiggGuardError], args: tuple[Any, ...], fields: Mapping[str, Any] = MappingProxyType({})
) -> StiggGuardError:
    """An error without its constructor, which makes the text of ``args`` from something else.

    The built-in exception that it is one of may keep more than ``args``.
    """
    error = kind.__new__(kind, *args)
    built_in = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    built_in.__init__(error, *args)  # type: ignore[misc] # it is that of a base
    vars(error).update(fields)
    return error


class ConfigError(StiggGuardError, ValueError):
    """A setting, a catalog or a fallback map is wrong; the message names it and the remedy."""


class MissingExtra(StiggGuardError, ImportError):
    """An optional part of the library is not installed; the message is the pip line that installs it."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an extra that is not installed: pip install 'stigg-guard[{extra}]'")


class InvalidRequest(StiggGuardError, ValueError):
    """The request is wrong and would be wrong again; it was not counted.

    ``field`` is the wire name of the offending field, with its index in a bulk (``usages[1].customer_id``), or empty
    when the fault lies in no single field.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field


class ClientClosed(StiggGuardError):
    """The client was closed before this call; make a new one."""


class FeatureDenied(StiggGuardError):
    """The customer may not use the feature. ``entitlement`` says why, with the figures; ``customer`` says who."""

    def __init__(self, entitlement: Entitlement, customer: Customer) -> None:
        super().__init__(f"{customer} may not use {entitlement.feature_id}: {entitlement.explanation}")
        self.entitlement = entitlement
        self.customer = customer


class SignInRequired(StiggGuardError):
    """No customer belongs to the request: the configured resolver answered None. Nothing was asked or held."""


class KeyTaken(StiggGuardError):
    """The idempotency key of a use is not free. Nothing was held or counted."""


class UsageInProgress(KeyTaken):
    """A use with the same idempotency key goes on: whether it will be counted is not known yet.

    ``retry_after`` is the number of seconds after which it is worth trying again.
    """

    retry_after: float = 1.0

    def __init__(self, message: str = "a use with this key is in progress; try again when it has ended") -> None:
        super().__init__(message)


class UsageRepeated(KeyTaken):
    """A use with the same idempotency key was counted."""

    def __init__(self, message: str = "a use with this key was counted before; a new use needs a new key") -> None:
        super().__init__(message)


class KeyReused(KeyTaken):
    """The idempotency key came with another use before: another method, path or amount. Each use needs its own."""

    def __init__(self, message: str = "this key came with another use before; each use needs a key of its own") -> None:
        super().__init__(message)


class LedgerUnavailable(StiggGuardError):
    """The ledger can neither be read nor written: its disk is full, its server is away.

    Nothing happened in it, unless a server was asked and did not answer, or too few replicas have what it did
    (``?wait=``): then units, and a key with them, may be held until ``HOLD_TTL`` is over.

    ``retry_after`` is the number of seconds after which it is worth trying again. Where the answer may only have been
    lost on its way, ``repeat`` makes the step again, for ``repeatable`` seconds without doing it twice.
    """

    _of_this_process = frozenset({"repeat"})

    retry_after: float = 1.0
    repeat: Callable[[], object] | None = None
    repeatable: float = 0.0


class SidecarError(StiggGuardError):
    """The sidecar did not answer the question.

    ``code`` is the name of the gRPC status (``"UNAVAILABLE"``), or empty when the sidecar was not asked.
    ``outcome_unknown`` is true when a report may have been counted although no answer came back.
    """

    def __init__(self, message: str, *, code: str = "", outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.outcome_unknown = outcome_unknown


class SidecarUnavailable(SidecarError):
    """Nothing answers at the sidecar's address, and there is neither data nor fallback to answer from.

    ``retry_after`` is the number of seconds after which it is worth asking again.
    """

    retry_after: float = 1.0


class SidecarTimeout(SidecarUnavailable):
    """The deadline passed before the answer came."""


class SidecarUnauthenticated(SidecarError):
    """The sidecar does not accept our credentials (UNAUTHENTICATED or PERMISSION_DENIED)."""


class NotSupported(SidecarError):
    """The sidecar does not know the call (UNIMPLEMENTED): it is older than this library's contract. Or usage would be
    reported offline, where nobody counts it."""


class SidecarStartError(SidecarError):
    """The local sidecar did not start; the message carries what it said."""


class ApiError(StiggGuardError):
    """Stigg's API did not do what it was asked to.

    ``operation`` is its name in GraphQL, ``status`` the HTTP status and None when there was no answer, ``code`` that of
    the first GraphQL error (``"CUSTOMER_NOT_FOUND"``) or empty. ``outcome_unknown`` is true when a mutation may have
    happened nonetheless; a query changes nothing, so it is never true there.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        status: int | None = None,
        code: str = "",
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(f"{operation}: {message}" if operation else message)
        self.operation = operation
        self.status = status
        self.code = code
        self.outcome_unknown = outcome_unknown


class ApiUnavailable(ApiError):
    """Stigg's API cannot be reached, or fails, and went on to do so when it was asked again.

    ``retry_after`` is the number of seconds after which it is worth asking again.
    """

    retry_after: float = 1.0


class ApiTimeout(ApiUnavailable):
    """The deadline passed before the answer was there."""


class ApiRateLimited(ApiUnavailable):
    """Stigg's API takes no more requests for now; this one was not carried out."""

    retry_after: float = 60.0


class ApiUnauthenticated(ApiError):
    """Stigg's API does not accept our key; set API_KEY to a server key of this environment."""


class ApiRejected(ApiError):
    """Stigg's API answered with errors. ``errors`` are these as they came, ``data`` is what it answered beside them.
    ``said`` is the message of the first, without our key. ``turned_away`` says that nothing was carried out, since what
    was asked is wrong; otherwise the API failed over it."""

    said: str = ""
    turned_away: bool = False
    errors: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] | None = None


class ApiUnreadable(ApiError):
    """What answers does not answer as the API does: with a page, a redirect, or more than anyone reads."""

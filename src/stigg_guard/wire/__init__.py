"""The Stigg Sidecar wire contract: ``sidecar.proto`` and the code that ``make wire`` generates from it.

``SERVICE`` is the descriptor of ``stigg.sidecar.v1.SidecarService``: the 12 methods and their message classes are read
off it by the channel and by the local sidecar, so neither keeps a list of its own. ``Answerer`` is whatever answers
them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from stigg_guard.wire import sidecar_pb2


class Method(NamedTuple):
    """One RPC: its path on the wire and its message classes."""

    path: str
    request: type[Message]
    response: type[Message]


class Answerer(Protocol):
    """Answers the 12 requests: a channel to a sidecar, an engine in this process, a test's one plan, Stigg's API."""

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The response to a request of this method, within ``timeout`` seconds where it has to be waited for.

        Raises:
            InvalidRequest: the request is wrong; nothing of it was counted.
            SidecarError: there is no answer; ``code`` is the name of the gRPC status that says why, or empty.
        """
        ...

    @property
    def honours_keys(self) -> bool | None:
        """Whether reports of one idempotency key count once: yes, no, or None before that is known."""
        ...

    def close(self) -> None:
        """Ends what was opened. Closing twice is harmless."""
        ...


# The contract has no idempotency. The local sidecar takes a key in the metadata of a report, and says so in that of its
# answers to these calls, if what it answers from honours keys.
TELLS_OF_KEYS = ("ReportUsage", "ReportUsageBulk", "ReloadEntitlements")
KEYS_HONOURED = ("idempotency-key", "honoured")

SERVICE = sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"]

METHODS: dict[str, Method] = {
    method.name: Method(
        f"/{SERVICE.full_name}/{method.name}",
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
    )
    for method in SERVICE.methods
}

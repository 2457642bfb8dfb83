"""Access to Stigg's durable queue: temporary credentials of AWS, which Stigg gives for a server key."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from stigg_guard.api.transport import Request, Transport
from stigg_guard.clock import utc_now
from stigg_guard.errors import ApiUnreadable

STIGG_EDGE = "https://edge.api.stigg.io"
PATH = "/v1/credentials/event-queue.json"
DURATION_SECONDS = 3600
"""The longest that Stigg gives."""
TIMEOUT_SECONDS = 10.0

_FIELDS = ("accessKeyId", "secretAccessKey", "sessionToken", "expiration")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What requests to AWS are signed with. ``seconds`` is for how long they hold."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    seconds: float


class EventQueueAccess:
    """Asks for the credentials of one queue, which are of the account and environment of the key.

    Raises:
        ConfigError: the key or the address is malformed.
    """

    def __init__(self, api_key: str, edge_url: str, queue_url: str) -> None:
        self._transport = Transport(api_key, f"{edge_url.rstrip('/')}{PATH}", setting="EDGE_API_URL")
        self._query = {"queueUrl": queue_url, "durationSeconds": str(DURATION_SECONDS)}

    def credentials(self) -> Credentials:
        """New ones.

        Raises:
            ApiError: Stigg does not give them; ``ApiUnauthenticated`` if the key may not read this queue.
        """
        request = Request("event queue", query=self._query)
        told = self._transport.send(request, TIMEOUT_SECONDS)
        try:
            key_id, secret, token, expiration = (_text(told[name]) for name in _FIELDS)
            expires = datetime.fromisoformat(expiration.replace("Z", "+00:00"))
            left = expires.replace(tzinfo=expires.tzinfo or timezone.utc) - (self._transport.server_time or utc_now())
            return Credentials(key_id, secret, token, left.total_seconds())
        except (KeyError, ValueError):  # what is wrong may quote a secret
            raise ApiUnreadable("sent credentials that cannot be read", operation=request.operation) from None

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("no text")
    return value

"""Stigg's webhooks: each invalidates the cache of the customer whose entitlements changed, everywhere."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest
from http import HTTPStatus
from weakref import WeakKeyDictionary

from stigg_guard.cache.messages import read_message
from stigg_guard.guard import Guard
from stigg_guard.runtime.log import logger

SECRET_HEADER = "Stigg-Webhooks-Secret"  # noqa: S105 - the name of the header, not what is in it
MAX_BYTES = 1024 * 1024
MESSAGES_KEPT = 10_000

# By guard, the ids of the messages that came. Twice the same one is harmless, so nothing is locked for it.
_received: WeakKeyDictionary[Guard, dict[str, object]] = WeakKeyDictionary()


def receive(guard: Guard, secret: str | None, read: Callable[[int], bytes]) -> HTTPStatus:
    """Takes one webhook; the status to answer it with.

    ``secret`` is what the request has in ``SECRET_HEADER``. ``read`` gives at most that many bytes of its body, and is
    not called without the right secret. Every message with a customer in it, whatever its type, invalidates
    the cache of that customer, in all processes that share a ``CACHE``. One that tells of a threshold is told to the
    observers. Nothing is sent to the sidecar here.
    """
    if not _is_stiggs(guard, secret):
        return HTTPStatus.FORBIDDEN
    body = read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    try:
        message = read_message(body)
    except ValueError:  # no JSON, or none that anybody would send
        return HTTPStatus.BAD_REQUEST
    if message.customer is not None and _is_new(guard, message.id):
        guard.forget(message.customer)
        if message.reached is not None:
            guard.tell_of_threshold(*message.reached, customer=message.customer)
    return HTTPStatus.NO_CONTENT


def _is_stiggs(guard: Guard, secret: str | None) -> bool:
    expected = guard.config.webhook_secret
    if expected is None:
        logger.error("a webhook is unauthenticated: set WEBHOOK_SECRET to the secret that Stigg shows for the webhook")
        return False
    if secret is None or not compare_digest(secret.encode(), expected.encode()):
        logger.warning("a webhook is unauthenticated: its %s is not that of WEBHOOK_SECRET", SECRET_HEADER)
        return False
    return True


def _is_new(guard: Guard, message_id: object) -> bool:
    if not isinstance(message_id, str):
        return True
    received = _received.setdefault(guard, {})
    if len(received) >= MESSAGES_KEPT:
        received.clear()
    this = object()
    return received.setdefault(message_id, this) is this

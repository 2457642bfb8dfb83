"""The URL that takes Stigg's webhooks: ``app.register_blueprint(webhooks)``."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, request

from stigg_guard.flask.current import app_guard
from stigg_guard.web.views import exempt
from stigg_guard.webhooks import SECRET_HEADER, receive

webhooks = Blueprint("stigg_guard_webhooks", __name__)
"""``POST /stigg/webhooks``; ``register_blueprint`` takes a ``url_prefix`` for another place. Where Flask-WTF protects
the app, ``csrf.exempt(webhooks)``."""


@webhooks.post("/stigg/webhooks")
@exempt
def receive_webhook() -> Response:
    """Invalidates the cache of a webhook's customer; ``STIGG_GUARD_WEBHOOK_SECRET`` says whose webhooks count."""
    status = receive(app_guard().guard, request.headers.get(SECRET_HEADER), _read)
    return current_app.response_class(status=status)


def _read(size: int) -> bytes:
    """At most this much of the body; what the app itself has read of it before is there as a whole."""
    return request.stream.read(size) or request.get_data()

"""The site for ASGI servers, which counts the requests that are under way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import traffic
from django.core.asgi import get_asgi_application

site = get_asgi_application()


async def application(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        return
    traffic.under_way += 1
    try:
        await site(scope, receive, send)
    finally:
        traffic.under_way -= 1

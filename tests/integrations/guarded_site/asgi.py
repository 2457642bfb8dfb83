"""The site for ASGI servers, which counts the requests that are under way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from django.core.asgi import get_asgi_application

under_way = 0
site = get_asgi_application()


async def application(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    global under_way
    if scope["type"] != "http":
        return
    under_way += 1
    try:
        await site(scope, receive, send)
    finally:
        under_way -= 1

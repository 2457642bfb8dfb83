"""One Django site under each kind of server, with eight clients at once: no unit too many, and no report lost."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from integrations.servers import ASKED, GUNICORN, LIMIT, Shop, answered, selling, serving

WSGI = "django.core.wsgi:get_wsgi_application()"
SERVERS = {
    "runserver": ["django", "runserver", "--noreload", "127.0.0.1:0"],
    "sync": [*GUNICORN, WSGI, "--workers", "3"],
    "gthread": [*GUNICORN, WSGI, "--workers", "2", "--threads", "4"],
    "preload": [*GUNICORN, WSGI, "--workers", "2", "--threads", "4", "--preload", "--config", "preload.py"],
    "uvicorn": ["uvicorn", "--log-level", "warning", "--factory", "django.core.asgi:get_asgi_application"],
}
LISTENS = {"runserver": [], "uvicorn": ["--fd", "{}"]}
ASKS_BEFORE_IT_FORKS = """
def when_ready(server):
    from stigg_guard.django import get_guard
    assert get_guard().check("exports", customer="ann")
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "preload.py").write_text(ASKS_BEFORE_IT_FORKS)
    with selling(tmp_path, DJANGO_SETTINGS_MODULE="settings") as shop:
        yield shop


def announced(process: subprocess.Popen[str]) -> str:
    """The address that ``runserver`` prints."""
    assert process.stdout is not None
    return next(found[1] for line in process.stdout if (found := re.search(r"http://([\d.:]+)/", line)))


@pytest.mark.parametrize("server", SERVERS)
def test_eight_clients_get_exactly_what_is_there_and_all_of_it_is_reported(server: str, shop: Shop) -> None:
    listens: Sequence[str] = LISTENS.get(server, ["--bind", "fd://{}"])
    with serving(shop, [*SERVERS[server], *listens]) as (address, process):
        if server == "runserver":
            address = announced(process)
        told = answered(address, ["plain", "create", "acreate", "astream" if server == "uvicorn" else "stream"])
    assert told == {"exported": ASKED, "created": LIMIT, "402": 3 * ASKED - LIMIT}
    assert shop.used() == LIMIT

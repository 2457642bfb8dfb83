"""One Flask site under each kind of server: no unit too many, no report lost, nothing held for who went away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from integrations.servers import ASKED, GUNICORN, LIMIT, Shop, answered, selling, serving

GUNICORN_SITE = [*GUNICORN, "flask_site:app", "--bind", "fd://{}"]
SERVERS = {
    "sync": [*GUNICORN_SITE, "--workers", "3"],
    "gthread": [*GUNICORN_SITE, "--workers", "2", "--threads", "4"],
    "gevent": [*GUNICORN_SITE, "--workers", "2", "--worker-class", "gevent"],
    "preload": [*GUNICORN_SITE, "--workers", "2", "--threads", "4", "--preload", "--config", "preload.py"],
    "waitress": ["flask_site", "{}"],
}
ASKS_BEFORE_IT_FORKS = """
def when_ready(server):
    assert server.app.wsgi().extensions["stigg_guard"].guard.check("exports", customer="ann")
"""
PATIENCE = 200


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "preload.py").write_text(ASKS_BEFORE_IT_FORKS)
    with selling(tmp_path) as shop:
        yield shop


@pytest.mark.parametrize("server", SERVERS)
def test_eight_clients_get_exactly_what_is_there_and_all_of_it_is_reported(server: str, shop: Shop) -> None:
    # Flask runs an async view by a loop of the thread, which under gevent all requests share: asgiref refuses that.
    asynchronous = "create" if server == "gevent" else "acreate"
    with serving(shop, SERVERS[server]) as (address, _):
        leave_in_mid_stream(address)
        told = answered(address, ["plain", "create", asynchronous, "stream"])
        wait_for_what_the_leaver_held(address)
    assert told == {"exported": ASKED, "created": LIMIT, "402": 3 * ASKED - LIMIT}
    assert shop.used() == LIMIT


def leave_in_mid_stream(address: str) -> None:
    with requests.get(f"http://{address}/letters", stream=True, timeout=30) as response:
        letters = response.iter_content(8)
        assert next(letters) == b"a letter"
        assert requests.get(f"http://{address}/letters", timeout=30).status_code == 402


def wait_for_what_the_leaver_held(address: str) -> None:
    """The one letter that there is can be had again, once the server has noticed."""
    for _ in range(PATIENCE):
        with requests.get(f"http://{address}/letters", stream=True, timeout=30) as response:
            if response.ok:
                return
    raise AssertionError("what was held for a client that left was never given back")

"""Clients that leave async views at random moments, under three servers: all guards of a view count, or none."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from time import monotonic

import pytest
import requests

from integrations.servers import Shop, selling, serving

SERVERS = {
    "uvicorn": ["uvicorn", "--log-level", "critical", "--lifespan", "off", "--fd", "{}", "asgi:application"],
    "daphne": ["daphne", "--verbosity", "0", "--fd", "{}", "asgi:application"],
    "hypercorn": ["hypercorn", "--log-level", "critical", "--bind", "fd://{}", "asgi:application"],
}
DISCONNECTS = 100
CLIENTS = 8
LONGEST_SECONDS = 0.02  # of a view


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with selling(tmp_path, DJANGO_SETTINGS_MODULE="settings") as shop:
        yield shop


def stay(address: str, seconds: float = 30) -> float:
    """How long a client has waited for its answer who is alone with others of its kind, or has left before."""
    begun_at = monotonic()
    host, _, port = address.partition(":")
    view, works = random.choice(["visit", "read"]), random.uniform(0, LONGEST_SECONDS)
    with socket.create_connection((host, int(port)), timeout=30) as client, suppress(TimeoutError):
        client.sendall(f"GET /{view}?seconds={works} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        client.settimeout(seconds)
        while (part := client.recv(4096)) and not part.endswith((b"0\r\n\r\n", b"visited")):
            pass
    return monotonic() - begun_at


def wait_until_idle(address: str) -> None:
    """Until nothing goes on, twice in a row: what came first may not have begun at the first time."""
    idle, deadline = 0, monotonic() + 60
    while idle < 2:
        assert monotonic() < deadline, "requests or holds do not end"
        state = requests.get(f"http://{address}/state", timeout=30).json()
        idle = idle + 1 if state == {"requests": 0, "held": 0} else 0


@pytest.mark.parametrize("server", SERVERS)
def test_a_hundred_disconnects_leave_exact_sums(server: str, shop: Shop) -> None:
    with serving(shop, SERVERS[server]) as (address, _), ThreadPoolExecutor(CLIENTS) as clients:
        assert requests.get(f"http://{address}/visit?seconds=0", timeout=30).text == "visited"
        longest = max(clients.map(stay, repeat(address, CLIENTS)))
        moments = [random.uniform(0.001, 1.5 * longest) for _ in range(DISCONNECTS)]
        list(clients.map(stay, repeat(address), moments))
        wait_until_idle(address)
    finished = len((shop.folder / "finished").read_bytes())
    assert finished > CLIENTS
    assert (shop.used("visits", held=0), shop.used("pages", held=0)) == (finished, finished)

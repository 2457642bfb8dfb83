"""The sidecars under test: ours as a process that is killed and restarted, and one that knows no idempotency keys."""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import requests

from stigg_guard import Config, Guard, SidecarUnavailable
from stigg_guard.sidecar.catalog import load_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS, SERVICE

TOKEN = secrets.token_hex()
PORTS = range(20_000, 30_000)  # below those that systems give to outgoing connections, so that none takes a dead one's


def write_catalog(folder: Path, limits: Mapping[str, int | None], customers: Sequence[str]) -> Path:
    """A catalog in which every customer has these features; a limit of None is none."""
    lines: list[str] = []
    for feature in limits:
        lines += [f"[features.{feature}]", 'type = "metered"', 'meter = "fluctuating"', 'units = "unit"']
    lines.append("[plans.plan.entitlements]")
    lines += [f"{name} = {'{ unlimited = true }' if n is None else f'{{ limit = {n} }}'}" for name, n in limits.items()]
    for customer in customers:
        lines += [f"[customers.{customer}]", 'plan = "plan"']
    path = folder / "catalog.toml"
    path.write_text("\n".join(lines))
    return path


class LocalSidecar:
    """The local sidecar in a process of its own, with its usage in a file. Killed, it starts again where it was.

    ``address`` is that of gRPC, or with ``api`` the URL of its GraphQL API. ``catalog`` is a text in place of one with
    these limits.
    """

    def __init__(
        self,
        folder: Path,
        limits: Mapping[str, int | None] = MappingProxyType({}),
        customers: Sequence[str] = (),
        *,
        api: bool = False,
        catalog: str = "",
    ) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._catalog = folder / "catalog.toml"
        self._catalog.write_text(catalog) if catalog else write_catalog(folder, limits, customers)
        self.port = _free_port()
        self.http_port = _free_port()
        self.address = f"http://127.0.0.1:{self.http_port}" if api else f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it is ready."""
        files = ["--catalog", str(self._catalog), "--state", str(self._folder / "state.sqlite3")]
        ports = ["--port", str(self.port), "--http-port", str(self.http_port)]
        with (self._folder / "sidecar.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stigg_guard.sidecar", "--exit-with-stdin", *files, *ports],
                env={**os.environ, "STIGG_SIDECAR_TOKEN": TOKEN},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith(b"ready"):
            raise RuntimeError(f"the sidecar did not start; see {log.name}")

    def kill(self) -> None:
        """Ends it without a chance to tidy up."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> LocalSidecar:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def change(self, name: str, **given: object) -> None:
        """Does what its command of this name does."""
        url = f"http://127.0.0.1:{self.http_port}/changes/{name}"
        requests.post(url, json=given, headers={"X-Sidecar-Token": TOKEN}, timeout=10).raise_for_status()

    def usage(self, customers: Sequence[str]) -> dict[tuple[str, str], float]:
        """The usage of each customer and feature that the sidecar has in its books."""
        return {
            (customer, feature): usage
            for customer, usages in usage_of(self.address, customers).items()
            for feature, usage in usages.items()
        }


def target(address: str) -> dict[str, object]:
    """The settings by which a guard asks there: a URL is that of the API."""
    if not address.startswith("http://"):
        return {"SIDECAR": address}
    return {"SIDECAR": "cloud", "API_KEY": "any", "API_URL": address, "TIMEOUT": 5.0}


def usage_of(address: str, customers: Sequence[str]) -> dict[str, dict[str, float]]:
    """The usage of each customer's features, as the sidecar tells it once it can be reached."""
    with Guard(Config.from_mapping(target(address))) as guard:
        while True:
            # A process shares its connections to one address, and after a refusal waits a moment before the next try.
            with suppress(SidecarUnavailable):
                return {
                    customer: {name: found.current_usage for name, found in guard.entitlements(customer).items()}
                    for customer in customers
                }
            time.sleep(0.1)


HEALTH = "grpc.health.v1.Health"


@contextmanager
def keyless_sidecar(catalog: Path, hears: Callable[[str], object] = lambda _method: None) -> Iterator[str]:
    """The address of a sidecar in this process that knows no idempotency keys, like Stigg's own.

    ``hears`` is called for each request before it is answered: its method, or ``Check`` of the health service.
    """
    with closing(Engine(load_catalog(str(catalog)), Store(None))) as engine:
        server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        handlers = {name: _keyless_handler(engine, name, hears) for name in METHODS}
        health = {"Check": grpc.unary_unary_rpc_method_handler(lambda _request, _context: hears("Check") or b"")}
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),
                grpc.method_handlers_generic_handler(HEALTH, health),
            )
        )
        address = f"127.0.0.1:{_free_port()}"
        server.add_insecure_port(address)
        server.start()
        try:
            yield address
        finally:
            server.stop(None).wait()


def _keyless_handler(engine: Engine, name: str, hears: Callable[[str], object]) -> Any:
    method = METHODS[name]
    return grpc.unary_unary_rpc_method_handler(
        lambda request, _context: hears(name) or engine.answer(name, request),
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

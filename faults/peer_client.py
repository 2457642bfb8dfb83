"""An application that reports usage with one SDK: ``python -m faults.peer_client SDK SERVER SCENARIO SECONDS``.

It runs in the environment of the SDK, so it imports nothing else. Each SDK is used at its defaults. ``SERVER`` is where
its events go; for stigg-guard the address of the sidecar and the URL of the ledger, with a space between.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import NamedTuple

CALLS = 500
BURST = 20_000
DURING_OUTAGE = 1_000
AFTER_OUTAGE_SECONDS = 10.0
PARENT_CALLS = 40
CHILDREN = 4
CALLS_OF_CHILD = 100
CLOSE_SECONDS = 15.0


class Client(NamedTuple):
    """How to report one use, told apart by its marker, and how to close."""

    track: Callable[[str], object]
    close: Callable[[], object]


def stigg_guard(server: str) -> Client:
    from stigg_guard import Config, Guard

    address, ledger = server.split()
    guard = Guard(Config.from_mapping({"SIDECAR": address, "LEDGER": ledger}))
    return Client(lambda _marker: guard.report("feature-units", 1, customer="customer"), guard.close)


def schematic(server: str) -> Client:
    from schematic.client import Schematic, SchematicConfig

    client = Schematic("key", SchematicConfig(base_url=server, event_capture_url=server))
    return Client(
        lambda marker: client.track("used", company={"id": "company"}, traits={"marker": marker}), client.shutdown
    )


def launchdarkly(server: str) -> Client:
    from ldclient import Context, LDClient
    from ldclient.config import Config
    from ldclient.integrations.test_data import TestData

    flags = TestData.data_source()  # so that only events go anywhere
    client = LDClient(Config("key", events_uri=server, update_processor_class=flags, diagnostic_opt_out=True))
    context = Context.create("customer")
    return Client(lambda marker: client.track("used", context, {"marker": marker}), client.close)


def segment(server: str) -> Client:
    from segment.analytics.client import Client as Segment

    client = Segment("key", host=server)
    return Client(lambda marker: client.track("customer", "used", {"marker": marker}), client.shutdown)


def posthog(server: str) -> Client:
    from posthog import Posthog

    client = Posthog("key", host=server)
    return Client(
        lambda marker: client.capture("used", distinct_id="customer", properties={"marker": marker}), client.shutdown
    )


SDKS = {client.__name__: client for client in (stigg_guard, schematic, launchdarkly, segment, posthog)}


def killed(client: Client, _seconds: float) -> None:
    _track(client, "m", CALLS)
    os.kill(os.getpid(), signal.SIGKILL)


def terminated(client: Client, _seconds: float) -> None:
    _track(client, "m", CALLS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CLOSE_SECONDS)


def forked(client: Client, _seconds: float) -> None:
    _track(client, "parent", PARENT_CALLS)
    children = [_fork(client, number) for number in range(CHILDREN)]
    for child in children:
        os.waitpid(child, 0)
    _close(client)


def burst(client: Client, _seconds: float) -> None:
    _track(client, "m", BURST)
    _close(client)


def outage(client: Client, seconds: float) -> None:
    """The caller makes the outage when the first line is printed."""
    print("ready", flush=True)
    sys.stdin.readline()
    over = time.monotonic() + seconds
    _track(client, "m", DURING_OUTAGE, pause=seconds / 2 / DURING_OUTAGE)
    time.sleep(max(0.0, over - time.monotonic()) + AFTER_OUTAGE_SECONDS)
    _close(client)


SCENARIOS = {scenario.__name__: scenario for scenario in (killed, terminated, forked, burst, outage)}


def _track(client: Client, name: str, calls: int, pause: float = 0.0) -> None:
    for number in range(calls):
        client.track(f"<{name}-{number}>")
        if pause:
            time.sleep(pause)


def _fork(client: Client, number: int) -> int:
    child = os.fork()
    if child == 0:
        _track(client, f"child{number}", CALLS_OF_CHILD)
        _close(client)
        os._exit(0)
    return child


def _close(client: Client) -> None:
    """Some never come back from it in a child."""
    closing = Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)


if __name__ == "__main__":
    sdk, server, scenario, seconds = sys.argv[1:]
    SCENARIOS[scenario](SDKS[sdk](server), float(seconds))

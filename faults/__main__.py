"""``python -m faults [name...]``: breaks things on this machine, and prints which promises were kept."""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from faults.cloud import cloud
from faults.cluster import cluster
from faults.credits import wallets
from faults.disk import disk
from faults.django_ledger import django_ledger
from faults.freshness import freshness
from faults.fuzz import fuzz
from faults.horses import horses
from faults.interrupted import interrupted
from faults.keys import keys
from faults.killed import killed
from faults.lockstep import lockstep
from faults.million import million
from faults.network import network
from faults.outage import outage
from faults.oversell import oversell
from faults.peers import peers
from faults.periods import periods
from faults.promise import Promise, Scale
from faults.travelling import travelling

SCENARIOS: Mapping[str, Callable[[Scale], Iterator[Promise]]] = {
    "oversell": oversell,
    "credits": wallets,
    "keys": keys,
    "killed": killed,
    "travelling": travelling,
    "django": django_ledger,
    "outage": outage,
    "disk": disk,
    "network": network,
    "periods": periods,
    "lockstep": lockstep,
    "interrupted": interrupted,
    "horses": horses,
    "cloud": cloud,
    "freshness": freshness,
    "cluster": cluster,
    "fuzz": fuzz,
    "million": million,
    "peers": peers,
}


def main() -> int:
    """Runs the named scenarios, or all; 1 if a promise was broken."""
    parser = ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of: {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of kill -9 (default: %(default)s)")
    parser.add_argument("--entries", type=int, default=100_000, help="unsent entries to drain (default: %(default)s)")
    parser.add_argument(
        "--outage", type=float, default=20.0, metavar="SECONDS", help="outage beside the peers (default: %(default)s)"
    )
    parser.add_argument(
        "--traffic", type=float, default=60.0, metavar="SECONDS", help="traffic beside the cache service (%(default)s)"
    )
    options = parser.parse_args()
    names = options.names or list(SCENARIOS)
    if unknown := set(names) - SCENARIOS.keys():
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; choose from {', '.join(SCENARIOS)}")
    with tempfile.TemporaryDirectory(prefix="stigg-guard-faults-") as folder:
        scale = Scale(Path(folder), options.rounds, options.entries, options.outage, options.traffic)
        broken = [promise for name in names for promise in _run(name, scale) if not promise.kept]
    print(f"{len(broken)} promises broken" if broken else "all promises kept")
    return 1 if broken else 0


def _run(name: str, scale: Scale) -> Iterator[Promise]:
    began = time.monotonic()
    for promise in SCENARIOS[name](scale):
        print(f"{'kept' if promise.kept else 'BROKEN':<7} {promise.text:<80} {promise.figures}", flush=True)
        yield promise
    print(f"        {name}: {time.monotonic() - began:.0f} s\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks [name...]``: measures, and prints one table."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import api, checks, large, memory, peers, usage, views
from benchmarks.measure import FULL, QUICK, Comparison, Effort, Row, measure
from benchmarks.report import HEAD, LINE, line, machine, markdown, method, publish, write_json
from benchmarks.servers import CORES, pin

FLOORS: Mapping[str, Callable[[], Iterator[Comparison | Row]]] = {
    "control": checks.control,
    "cached": checks.cached,
    "uncached": checks.uncached,
    "django": views.in_django,
    "flask": views.in_flask,
    "throughput": checks.throughput,
    "large": large.check,
    "sqlite": usage.in_sqlite,
    "redis": usage.in_redis,
    "postgres": usage.in_postgres,
    "consume": usage.in_request,
    "drain": usage.drain,
    "api": api.answer,
    "memory": memory.of_customers,
}
PEERS: Mapping[str, Callable[[], Iterator[Comparison | Row]]] = {
    "peer-checks": peers.checks,
    "peer-uses": peers.uses,
    "peer-reports": peers.reports,
}
BENCHMARKS = {**FLOORS, **PEERS}


def main() -> None:
    """Runs the named benchmarks, or all."""
    parser = ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds of the same rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the rows there, too")
    parser.add_argument(
        "--publish", action="store_true", help="puts the tables into docs/performance.md; of all rows only"
    )
    given = parser.parse_args()
    names = given.names or list(BENCHMARKS)
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    if given.publish and (given.names or given.quick):
        parser.error("--publish is for all rows at full length")
    effort = QUICK if given.quick else FULL
    run = {"machine": machine(), "method": method(effort)}
    print(run["machine"], run["method"], "", LINE.format(*HEAD), sep="\n", flush=True)
    pin(CORES[-1:])
    with TemporaryDirectory(prefix="stigg-guard-bench-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        rows = {name: list(_rows(name, effort)) for name in names}
    if given.json:
        write_json(given.json, _joined(rows, names), **run)
    if given.publish:
        where = f"`make bench`: {run['machine']}; {run['method']}:\n"
        publish("floors", f"{where}\n{markdown(_joined(rows, FLOORS))}")
        publish("peers", f"{where}\n{markdown(_joined(rows, PEERS))}")


def _rows(name: str, effort: Effort) -> Iterator[Row]:
    """The lines of a benchmark, each printed as soon as it is measured."""
    for found in BENCHMARKS[name]():
        row = found if isinstance(found, Row) else measure(found, effort)
        print(line(row), flush=True)
        yield row


def _joined(rows: Mapping[str, list[Row]], names: Iterable[str]) -> list[Row]:
    return [row for name in names for row in rows[name]]


if __name__ == "__main__":
    main()

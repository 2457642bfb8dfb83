"""``python -m benchmarks [name...]``: measures, and prints one table."""

from __future__ import annotations

import os
import platform
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from tempfile import mkdtemp

from benchmarks import api, checks, large, usage, views
from benchmarks.measure import CONTROL_RANGE, LAPS, ROUNDS, Comparison, Result, measure
from benchmarks.servers import CORES, pin

BENCHMARKS: Mapping[str, Callable[[], Iterator[Comparison]]] = {
    "cached": checks.cached,
    "uncached": checks.uncached,
    "django": views.in_django,
    "flask": views.in_flask,
    "throughput": checks.throughput,
    "large": large.check,
    "sqlite": usage.in_sqlite,
    "redis": usage.in_redis,
    "consume": usage.in_request,
    "drain": usage.drain,
    "api": api.answer,
}
PACKAGES = ("grpcio", "protobuf", "cachetools", "Django", "Flask")
ROW = "{:<50} {:>12} {:>12} {:>7} {:>10}  {:<14} {:<9} {:>5}"


def main() -> None:
    """Runs the named benchmarks, or all."""
    parser = ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of: {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    print_machine()
    os.environ["XDG_STATE_HOME"] = mkdtemp(prefix="stigg-guard-bench-")
    pin(CORES[-1:])
    print(ROW.format("ours / floor", "ours", "floor", "ratio", "adds", "aim", "reached", "A/A"))
    for result in results(names):
        print(row(result), flush=True)


def results(names: Iterable[str]) -> Iterator[Result]:
    """The result of each comparison of the benchmarks, as it is measured."""
    for name in names:
        for comparison in BENCHMARKS[name]():
            yield measure(comparison)


def print_machine() -> None:
    """Prints what the figures depend on, and how they come about."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {platform.system()} {platform.machine()}, {len(CORES) or os.cpu_count()} cores", end=", ")
    print(f"load {os.getloadavg()[0]:.1f}, " + ", ".join(f"{package} {version(package)}" for package in PACKAGES))
    low, high = CONTROL_RANGE
    print(f"medians of {ROUNDS} rounds of {LAPS} laps, floor - ours - floor; ", end="")
    print(f"A/A is the floor over itself, and outside {low:g}-{high:g} a row says nothing\n")


def row(result: Result) -> str:
    """A line of the table."""
    comparison = result.comparison
    aim = comparison.aim.text if comparison.aim else "-"
    shown = _per_second if comparison.per_second else _time
    adds = "" if comparison.per_second else f"{result.added * 1e6:+.2f} us"
    figures = (shown(result.ours), shown(result.floor), f"{result.ratio:.2f}", adds)
    return ROW.format(comparison.name, *figures, aim, result.verdict, f"{result.control:.2f}")


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds >= 1e-6 else f"{seconds * 1e9:.0f} ns"


def _per_second(seconds: float) -> str:
    return f"{1 / seconds:,.0f}/s"


if __name__ == "__main__":
    main()

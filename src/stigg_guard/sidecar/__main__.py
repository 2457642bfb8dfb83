"""The local sidecar as a process: ``python -m stigg_guard.sidecar``, or ``stigg-guard sidecar``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from threading import Thread

from stigg_guard.errors import StiggGuardError
from stigg_guard.fallbacks import parse_fallbacks
from stigg_guard.sidecar import HTTP_PORT, PORT
from stigg_guard.sidecar.catalog import demo_catalog, load_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.sidecar.watch import CatalogWatch
from stigg_guard.wire import Answerer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(
    *,
    catalog: str | None,
    state: str | None,
    host: str,
    port: int,
    http_port: int,
    reload: bool,
    exit_with_stdin: bool = False,
    upstream: Callable[[], Answerer] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or, if asked, the end of standard input. For the main thread of a process.

    Without ``catalog`` it is the demonstration, and without ``state`` usage is kept in memory. With ``reload`` the
    catalog is taken in again whenever its file changes. What ``upstream`` makes answers instead of a catalog.

    Raises ``ConfigError`` for a catalog, a state or a fallback that is wrong, and ``SidecarStartError`` for a port that
    cannot be had.
    """
    # Here, since the parser must work without the extra that the server needs.
    from stigg_guard.sidecar.server import Sidecar

    # Before any thread exists, so that all of them leave the signals to sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    watch = CatalogWatch(catalog) if catalog and reload and upstream is None else None
    with ExitStack() as running:
        answers = running.enter_context(closing(_engine(catalog, state) if upstream is None else upstream()))
        sidecar = running.enter_context(Sidecar(answers, host, port, http_port, os.environ.get("SERVER_API_KEY")))
        if watch is not None and isinstance(answers, Engine):
            running.enter_context(watch.over(answers))
        print(f"ready grpc={sidecar.address} http={sidecar.http_address}", flush=True)
        if exit_with_stdin:
            Thread(target=_stop_at_end_of_stdin, daemon=True).start()
        signal.sigwait(STOP_SIGNALS)


def _engine(catalog: str | None, state: str | None) -> Engine:
    fallbacks = parse_fallbacks(os.environ.get("ENTITLEMENTS_FALLBACK") or "{}")
    sold = load_catalog(catalog) if catalog else demo_catalog()
    return Engine(sold, Store(state), fallbacks=fallbacks)


def configure(parser: ArgumentParser) -> None:
    """Give a parser the options that :func:`run` takes."""
    parser.add_argument("--catalog", metavar="FILE", help="what is sold, TOML or JSON (default: a demonstration)")
    parser.add_argument("--state", metavar="FILE", help="where usage is kept (default: in memory, gone at the end)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=PORT, help="gRPC port, 0 for a free one (default: %(default)s)")
    parser.add_argument(
        "--http-port", type=_port, default=HTTP_PORT, metavar="PORT", help="HTTP port, likewise (default: %(default)s)"
    )
    parser.add_argument("--reload", action="store_true", help="take the catalog in again when its file changes")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input closes")


def run(options: Namespace, upstream: Callable[[], Answerer] | None = None) -> int:
    """Serve as the options say; returns the exit status. Raises what :func:`serve` and ``upstream`` raise."""
    serve(
        catalog=options.catalog,
        state=options.state,
        host=options.host,
        port=options.port,
        http_port=options.http_port,
        reload=options.reload,
        exit_with_stdin=options.exit_with_stdin,
        upstream=upstream,
    )
    return 0


def _stop_at_end_of_stdin() -> None:
    # Not sys.stdin.read, whose lock would still be held when the interpreter ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise ArgumentTypeError(f"{text!r} is no port; give a number from 0 to 65535")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sidecar with these arguments, or those of the process; returns the exit status."""
    parser = ArgumentParser(prog="python -m stigg_guard.sidecar", description="A Stigg sidecar that needs no account.")
    configure(parser)
    options = parser.parse_args(argv)
    try:
        return run(options)
    except StiggGuardError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())

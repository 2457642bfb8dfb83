"""The local sidecar as a process: ``python -m stigg_guard.sidecar``, or ``stigg-guard sidecar``."""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from threading import Thread
from typing import TYPE_CHECKING

from stigg_guard.cli.console import on_standard_output
from stigg_guard.errors import SidecarStartError, StiggGuardError
from stigg_guard.sidecar.catalog import demo_catalog, load_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.faults import Faults
from stigg_guard.sidecar.logs import log_to_stderr
from stigg_guard.sidecar.offline import FallbackAnswers
from stigg_guard.sidecar.settings import LEVELS, Settings, configure_settings, described, options_of, warn
from stigg_guard.sidecar.state import State
from stigg_guard.sidecar.store import Store
from stigg_guard.sidecar.watch import CatalogWatch
from stigg_guard.wire import Answerer

if TYPE_CHECKING:
    from stigg_guard.sidecar.metrics import Metrics

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(
    settings: Settings,
    *,
    reload: bool,
    exit_with_stdin: bool = False,
    upstream: Callable[[], Answerer] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or, if asked, the end of standard input. For the main thread of a process.

    With ``reload`` the catalog is taken in again whenever its file changes. What ``upstream`` makes answers instead of
    a catalog.

    Raises ``ConfigError`` for a catalog or a state that is wrong, and ``SidecarStartError`` for a port that cannot be
    had.
    """
    # Here, since the parser must work without the extra that the server needs.
    from stigg_guard.sidecar.metrics import Metrics
    from stigg_guard.sidecar.server import Sidecar, Tls

    if not hasattr(signal, "pthread_sigmask"):
        raise SidecarStartError(
            "the local sidecar waits for signals as POSIX has them: run it on Linux, macOS or in WSL"
        )
    # Before any thread exists, so that all of them leave the signals to sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    log_to_stderr(LEVELS[settings.log_level], settings.log_format)
    warn(os.environ)
    metrics = Metrics()
    watch = CatalogWatch(settings.catalog) if settings.catalog and reload and upstream is None else None
    with ExitStack() as running:
        made = _answers(settings, metrics) if upstream is None else upstream()
        answers = running.enter_context(closing(made))
        sidecar = running.enter_context(
            Sidecar(
                answers,
                settings.host,
                settings.grpc_port,
                settings.http_port,
                settings.server_api_key,
                require_api_key=settings.require_api_key,
                tls=Tls.of(settings),
                metrics=metrics,
                token=settings.token,
                faults=Faults(settings.faults),
            )
        )
        if watch is not None and isinstance(answers, Engine):
            running.enter_context(watch.over(answers))
        print(f"ready grpc={sidecar.address} http={sidecar.http_address}", flush=True)
        if not exit_with_stdin and isinstance(answers, Engine):
            shown = sidecar.page_url if settings.token is None else sidecar.page_url.partition("#")[0]
            print(f"page {shown}", flush=True)
        if exit_with_stdin:
            Thread(target=_stop_at_end_of_stdin, daemon=True).start()
        signal.sigwait(STOP_SIGNALS)


def configure(parser: ArgumentParser) -> None:
    """Give a parser the options that :func:`run` takes."""
    configure_settings(parser)
    parser.add_argument("--reload", action="store_true", help="take the catalog in again when its file changes")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input closes")
    parser.add_argument("--print-config", action="store_true", help="print every setting, and end")


def run(options: Namespace, upstream: Callable[[], Answerer] | None = None) -> int:
    """Serve as the options and the environment say; returns the exit status. Raises what :func:`serve` and
    ``upstream`` raise, and ``ConfigError`` for settings that are wrong."""
    given = options_of(vars(options))
    if options.print_config:
        for line in described(os.environ, given):
            on_standard_output(line)
        return 0
    settings = Settings.read(os.environ, given)
    serve(settings, reload=options.reload, exit_with_stdin=options.exit_with_stdin, upstream=upstream)
    return 0


def _answers(settings: Settings, metrics: Metrics) -> Engine | FallbackAnswers:
    if settings.offline:
        return FallbackAnswers(settings.entitlements_fallback)
    sold = load_catalog(settings.catalog) if settings.catalog else demo_catalog()
    return Engine(sold, _state(settings, metrics), fallbacks=settings.entitlements_fallback)


def _state(settings: Settings, metrics: Metrics) -> State:
    if settings.redis_environment_prefix is None or settings.redis_url is None:
        return Store(settings.state)
    from stigg_guard.sidecar.redis_store import RedisStore

    return RedisStore(settings.redis_environment_prefix, settings.redis_url, metrics)


def _stop_at_end_of_stdin() -> None:
    # Not sys.stdin.read, whose lock would still be held when the interpreter ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


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

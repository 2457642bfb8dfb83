"""The command ``stigg-guard``: its guard is that of the ``STIGG_GUARD_*`` environment variables."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version

from stigg_guard.cli.arguments import (
    configure_cache_service,
    configure_check,
    configure_doctor,
    configure_features,
    configure_ledger,
    configure_report,
)
from stigg_guard.cli.console import Console, on_standard_output
from stigg_guard.cli.operators import ledger_url, require_ledger
from stigg_guard.config import Config, ReportMode
from stigg_guard.errors import ConfigError, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.sidecar import __main__ as sidecar
from stigg_guard.sidecar.catalog import catalog_schema
from stigg_guard.sidecar.commands import configure_changes
from stigg_guard.sidecar.logs import log_to_stderr
from stigg_guard.sidecar.settings import LEVELS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. An error of ours is one message on stderr and status 2, or 1 where 2
    means something else."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except StiggGuardError as error:
        parser.exit(getattr(options, "error_status", 2), f"{parser.prog}: {error}\n")


def make_parser() -> ArgumentParser:
    """Returns the parser of all subcommands, each with the function that runs it."""
    parser = ArgumentParser(prog="stigg-guard", description="Guard views by what a customer has paid for.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('stigg-guard')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    local = commands.add_parser("sidecar", help="run a local Stigg sidecar that needs no account")
    sidecar.configure(local)
    local.add_argument(
        "--upstream",
        choices=["cloud"],
        help="ask Stigg's API with the key of SERVER_API_KEY, instead of a catalog (beta)",
    )
    configure_changes(local)
    local.set_defaults(run=_sidecar)

    check = commands.add_parser("check", help="ask what a customer may use")
    configure_check(check)
    # It writes nothing, so it makes no ledger.
    check.set_defaults(run=_acting(lambda _, config: replace(config, ledger=config.ledger or "memory://")))

    report = commands.add_parser("report", help="report usage that happened")
    configure_report(report)
    report.set_defaults(run=_acting(lambda _, config: replace(config, report=ReportMode.INLINE)))

    ledger = commands.add_parser("ledger", help="look after usage that is on its way")
    configure_ledger(ledger, _ledger_option())
    ledger.set_defaults(run=_acting(_with_ledger))

    features = commands.add_parser("features", help="compare the features named in code with those that are known")
    configure_features(features)
    features.set_defaults(run=_acting(lambda _, config: replace(config, ledger="memory://")), paths=["."])

    service = commands.add_parser("cache-service", help="keep fresh what processes share in a Redis")
    configure_cache_service(service)
    service.set_defaults(run=_cache_service)

    schema = commands.add_parser("schema", help="print the JSON Schema of catalogs, for editors")
    schema.set_defaults(run=_print_schema)

    doctor = commands.add_parser("doctor", help="tell what of the settings works, and what to do")
    configure_doctor(doctor)
    doctor.set_defaults(run=_acting(lambda _, config: config))
    return parser


def _sidecar(options: Namespace) -> int:
    if options.upstream is None:
        return sidecar.run(options)
    if options.catalog is not None or options.state is not None:
        raise ConfigError("--upstream: Stigg has what is sold and used; leave out --catalog and --state")
    from stigg_guard.cloud.cached import CachedAnswers, upstream_config  # a library takes its time

    config = upstream_config(os.environ)
    return sidecar.run(options, lambda: CachedAnswers(config))


def _cache_service(options: Namespace) -> int:
    from stigg_guard.cli.cache_service import serve  # it needs extras

    log_to_stderr(LEVELS[options.log_level], options.log_format)
    return serve(options, Config.from_env())


def _print_schema(_options: Namespace) -> int:
    on_standard_output(catalog_schema().rstrip("\n"))
    return 0


def _acting(adjust: Callable[[Namespace, Config], Config]) -> Callable[[Namespace], int]:
    """Acts as the options say, with a guard of its own; ``adjust`` has the last word on its configuration."""

    def run(options: Namespace) -> int:
        console = Console(ledger="stigg-guard ledger", json=options.json)
        with Guard(adjust(options, Config.from_env())) as guard:
            return int(options.act(options, guard, console))

    return run


def _ledger_option() -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    parser.add_argument(
        "--url", help="the ledger (default: STIGG_GUARD_LEDGER, or else the one in the user's state folder)"
    )
    return parser


def _with_ledger(options: Namespace, config: Config) -> Config:
    """The ledger that was asked for. It must be there, so that a wrong path does not make an empty one."""
    adjusted = replace(config, ledger=options.url or ledger_url(config))
    require_ledger(ledger_url(adjusted))
    return adjusted


if __name__ == "__main__":
    sys.exit(main())

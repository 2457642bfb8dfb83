"""The arguments of the commands that ``stigg-guard`` and ``manage.py`` share.

Each function gives a parser its arguments, and ``act``: a function of the parsed options, a guard and a console that
does what they say and returns the exit status.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import suppress
from math import isfinite

from stigg_guard.cli import operators
from stigg_guard.cli.console import Console
from stigg_guard.cli.doctor import doctor
from stigg_guard.cli.features import check_features
from stigg_guard.entitlements import Customer
from stigg_guard.guard import Guard
from stigg_guard.ledger import State


def configure_check(parser: ArgumentParser) -> None:
    """For :func:`~stigg_guard.cli.operators.check`."""
    parser.description = "Ask the sidecar what a customer may use. Exit status 1 means that access is denied."
    parser.add_argument("customer", help="customer id")
    parser.add_argument("feature", nargs="?", help="feature or currency id (default: all that the plan has)")
    parser.add_argument("--resource", help="id of the customer's resource")
    parser.add_argument("--requested-usage", type=float, metavar="N", help="whether N more units fit")
    _add_json(parser)
    parser.set_defaults(act=_check)


def configure_report(parser: ArgumentParser) -> None:
    """For :func:`~stigg_guard.cli.operators.report`."""
    parser.description = "Report usage that happened. Exit status 1 means that the sidecar did not take it yet."
    parser.add_argument("customer", help="customer id")
    parser.add_argument("feature", help="feature id")
    parser.add_argument("value", type=float, help="units more, or fewer when negative")
    parser.add_argument("--set", action="store_true", help="VALUE is the new total")
    parser.add_argument("--resource", help="id of the customer's resource")
    parser.set_defaults(act=_report, json=False)


def configure_ledger(parser: ArgumentParser, *common: ArgumentParser) -> None:
    """For what operators do with a ledger. ``common`` are parsers whose arguments each of the actions takes too."""
    output = ArgumentParser(add_help=False)
    _add_json(output)
    parents = [*common, output]
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    status = actions.add_parser("status", parents=parents, help="how much is in each state, and since when")
    status.set_defaults(act=lambda _, guard, console: operators.show_status(guard, console))

    listing = actions.add_parser("list", parents=parents, help="the entries, oldest first")
    states = [state.value for state in State]
    listing.add_argument(
        "--state",
        nargs="+",
        action="extend",
        choices=states,
        default=[],
        metavar="STATE",
        help=f"only {', '.join(states)}",
    )
    listing.add_argument("--limit", type=_count, default=100, metavar="N", help="at most N (default: %(default)s)")
    listing.set_defaults(act=_list)

    retry = actions.add_parser("retry", parents=parents, help="send what is dead or uncertain again")
    _add_choice(retry, "yes, although an uncertain one may count twice")
    retry.set_defaults(
        act=lambda options, guard, console: operators.retry(guard, console, _ids(options), yes=options.yes)
    )

    discard = actions.add_parser("discard", parents=parents, help="forget what is dead or uncertain, for good")
    _add_choice(discard, "yes, although it cannot be undone")
    discard.set_defaults(
        act=lambda options, guard, console: operators.discard(guard, console, _ids(options), yes=options.yes)
    )

    drain = actions.add_parser("drain", parents=parents, help="send what is unsent to the sidecar, now")
    drain.description = "Send what is unsent to the sidecar. Exit status 1 means that something is left."
    drain.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="give up after S seconds (default: 60)"
    )
    drain.set_defaults(act=lambda options, guard, console: operators.drain(guard, console, options.timeout))


def configure_cache_service(parser: ArgumentParser) -> None:
    """For :func:`~stigg_guard.cli.cache_service.serve`, which takes the options."""
    parser.description = "Keep fresh what processes share in the Redis of STIGG_GUARD_CACHE, until SIGTERM."
    parser.add_argument("--host", default="127.0.0.1", help="where probes and metrics are (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=8081, metavar="PORT", help="default: %(default)s")
    parser.add_argument(
        "--keep",
        type=_seconds,
        default=600.0,
        metavar="S",
        help="keep those fresh who were asked for within S seconds (default: 600)",
    )
    parser.add_argument(
        "--queue-url", metavar="URL", help="Stigg's durable queue, read with STIGG_GUARD_API_KEY (default: QUEUE_URL)"
    )
    parser.add_argument("--log-level", choices=["error", "warn", "info", "debug"], default="info")
    parser.add_argument("--log-format", choices=["text", "json"], default="text")


def configure_doctor(parser: ArgumentParser) -> None:
    """For :func:`~stigg_guard.cli.doctor.doctor`."""
    parser.description = "Tell what of the settings works. It only reads. Exit status 0: all is well; 1: something is "
    parser.description += "broken; 2: it works, and something is assumed that could not be verified."
    _add_json(parser)
    parser.set_defaults(act=lambda _, guard, console: doctor(guard, console), error_status=1)


def configure_features(parser: ArgumentParser) -> None:
    """For :func:`~stigg_guard.cli.features.check_features`. Without paths, ``paths`` is an empty list."""
    parser.description = "Compare the features named in code and templates with those that are known. Exit status 1 "
    parser.description += "means that some are unknown. Where a name is no literal, it is listed and not checked."
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files and folders to read (default: the project's)")
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--catalog",
        metavar="FILE",
        help="known is what this catalog or file of fallbacks has (default: CATALOG or OFFLINE_FILE of the settings)",
    )
    known.add_argument("--customer", metavar="ID", help="known is what the sidecar knows, asked as this customer")
    _add_json(parser)
    parser.set_defaults(act=_features)


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_choice(parser: ArgumentParser, consequence: str) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("ids", nargs="*", default=[], metavar="ID", help="id of an entry, as list shows it")
    choice.add_argument("--all", action="store_true", help="every dead and uncertain entry")
    parser.add_argument("--yes", action="store_true", help=f"do not ask: {consequence}")


def _check(options: Namespace, guard: Guard, console: Console) -> int:
    customer = Customer(options.customer, options.resource)
    return operators.check(guard, console, customer, options.feature, options.requested_usage)


def _report(options: Namespace, guard: Guard, console: Console) -> int:
    customer = Customer(options.customer, options.resource)
    return operators.report(guard, console, customer, options.feature, options.value, set_total=options.set)


def _list(options: Namespace, guard: Guard, console: Console) -> int:
    return operators.list_entries(guard, console, [State(name) for name in options.state], options.limit)


def _features(options: Namespace, guard: Guard, console: Console) -> int:
    customer = Customer(options.customer) if options.customer is not None else None
    return check_features(guard, console, options.paths, catalog=options.catalog, customer=customer)


def _ids(options: Namespace) -> list[str] | None:
    return None if options.all else options.ids


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= operators.MAX_LISTED:
        raise ArgumentTypeError(f"{text!r} is no number of entries; give 1 to {operators.MAX_LISTED}")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if isfinite(seconds := float(text)) and seconds > 0:
            return seconds
    raise ArgumentTypeError(f"{text!r} is no time; give a number of seconds above 0")

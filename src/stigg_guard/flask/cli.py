"""``flask stigg …``: the operators' commands, with the guard of the app."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import click
from flask import Flask, current_app
from flask.cli import AppGroup
from jinja2 import FileSystemLoader

from stigg_guard.cli import operators
from stigg_guard.cli.console import Console
from stigg_guard.cli.mentions import own_folders
from stigg_guard.entitlements import Customer
from stigg_guard.errors import StiggGuardError
from stigg_guard.flask.current import app_guard
from stigg_guard.guard import Guard
from stigg_guard.ledger import State
from stigg_guard.sidecar import HTTP_PORT, PORT


class _Failure(click.ClickException):
    exit_code = 2  # 1 is the answer no


class _Broken(_Failure):
    exit_code = 1  # and 2 that it cannot be told


stigg = AppGroup("stigg", help="What customers may use, usage on its way, and a local sidecar.")
ledger = AppGroup("ledger", help="Look after usage that is on its way to the sidecar.")
stigg.add_command(ledger)

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_resource = click.option("--resource", metavar="ID", help="A resource of the customer.")
_ids = click.argument("ids", nargs=-1, metavar="[ID]...")
_all = click.option("--all", "every", is_flag=True, help="Every dead and uncertain entry.")


@stigg.command()
@click.argument("customer")
@click.argument("feature", required=False)
@_resource
@click.option("--requested-usage", type=float, metavar="N", help="Whether N more units fit.")
@_as_json
def check(
    customer: str, feature: str | None, resource: str | None, requested_usage: float | None, as_json: bool
) -> None:
    """Ask whether CUSTOMER may use FEATURE, or show all that its plan has. Exit status 1 means no."""
    _act(
        lambda guard, console: operators.check(guard, console, Customer(customer, resource), feature, requested_usage),
        as_json,
    )


@stigg.command()
@click.argument("customer")
@_resource
@_as_json
def entitlements(customer: str, resource: str | None, as_json: bool) -> None:
    """Show all that CUSTOMER's plan has."""
    _act(
        lambda guard, console: operators.show_entitlements(guard, console, Customer(customer, resource)),
        as_json,
    )


@stigg.command(context_settings={"ignore_unknown_options": True})  # so that VALUE may be negative
@click.argument("customer")
@click.argument("feature")
@click.argument("value", type=float)
@click.option("--set", "set_total", is_flag=True, help="VALUE is the new total.")
@_resource
def report(customer: str, feature: str, value: float, set_total: bool, resource: str | None) -> None:
    """Report VALUE units that were used, fewer when negative. Exit status 1: the sidecar did not take it yet."""
    _act(
        lambda guard, console: operators.report(
            guard, console, Customer(customer, resource), feature, value, set_total=set_total
        )
    )


@ledger.command()
@_as_json
def status(as_json: bool) -> None:
    """Show how much is in each state, and since when."""
    _act(operators.show_status, as_json)


@ledger.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice([state.value for state in State]))
@click.option("--limit", type=click.IntRange(1, operators.MAX_LISTED), default=100, show_default=True)
@_as_json
def list_(states: Sequence[str], limit: int, as_json: bool) -> None:
    """List the entries, oldest first."""
    wanted = [State(name) for name in states]
    _act(lambda guard, console: operators.list_entries(guard, console, wanted, limit), as_json)


@ledger.command()
@_ids
@_all
@click.option("--yes", is_flag=True, help="Do not ask: yes, although an uncertain one may count twice.")
@_as_json
def retry(ids: Sequence[str], every: bool, yes: bool, as_json: bool) -> None:
    """Send what is dead or uncertain again."""
    chosen = _chosen(ids, every)
    _act(lambda guard, console: operators.retry(guard, console, chosen, yes=yes), as_json)


@ledger.command()
@_ids
@_all
@click.option("--yes", is_flag=True, help="Do not ask: yes, although it cannot be undone.")
@_as_json
def discard(ids: Sequence[str], every: bool, yes: bool, as_json: bool) -> None:
    """Forget what is dead or uncertain, for good."""
    chosen = _chosen(ids, every)
    _act(lambda guard, console: operators.discard(guard, console, chosen, yes=yes), as_json)


@ledger.command()
@click.option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), default=60, show_default=True)
@_as_json
def drain(timeout: float, as_json: bool) -> None:
    """Send what is unsent to the sidecar, now. Exit status 1 means that something is left."""
    _act(lambda guard, console: operators.drain(guard, console, timeout), as_json)


@stigg.command()
@click.option("--catalog", metavar="FILE", help="What is sold.  [default: STIGG_GUARD_CATALOG or a demonstration]")
@click.option("--state", metavar="FILE", help="Where usage is kept.  [default: in memory]")
@click.option("--host", metavar="HOST", help="Where it listens.  [default: 127.0.0.1]")
@click.option("--port", "grpc_port", metavar="PORT", help=f"For gRPC; 0 for a free one.  [default: {PORT}]")
@click.option("--http-port", metavar="PORT", help=f"For HTTP; 0 for a free one.  [default: {HTTP_PORT}]")
@click.option("--log-level", metavar="LEVEL", help="error, warn, info or debug.  [default: info]")
@click.option("--log-format", metavar="FORMAT", help="text or json.  [default: text]")
@click.option("--fault", "faults", multiple=True, metavar="FAULT", help="Faults on purpose, such as latency=0.2.")
@click.option("--print-config", is_flag=True, help="Print every setting, and end.")
def sidecar(print_config: bool, faults: tuple[str, ...], **given: str | None) -> None:
    """Run a local sidecar, which needs no account, until Ctrl-C. It takes its catalog in again when that changes."""
    from stigg_guard.sidecar.__main__ import run  # it is large, and every worker of the site has this file

    given["catalog"] = given["catalog"] or app_guard().guard.config.catalog
    try:
        run(
            Namespace(
                **given, faults=list(faults) or None, print_config=print_config, reload=True, exit_with_stdin=False
            )
        )
    except StiggGuardError as error:
        raise _Failure(str(error)) from error


@stigg.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--catalog",
    metavar="FILE",
    help="Known is what this catalog or file of fallbacks has.  [default: CATALOG or OFFLINE_FILE of the settings]",
)
@click.option("--customer", metavar="ID", help="Known is what the sidecar knows, asked as this customer.")
@_as_json
def features(paths: Sequence[str], catalog: str | None, customer: str | None, as_json: bool) -> None:
    """Compare the features named in code and templates with those that are known. Exit status 1: some are unknown.

    Without PATH it reads what the app and its blueprints have, except for installed packages.
    """
    from stigg_guard.cli.features import check_features  # as above

    if catalog and customer:
        raise click.UsageError("give either --catalog or --customer")
    _act(
        lambda guard, console: check_features(
            guard,
            console,
            paths or own_folders(_app_folders(current_app)),
            catalog=catalog,
            customer=None if customer is None else Customer(customer),
        ),
        as_json,
    )


@stigg.command()
@_as_json
def doctor(as_json: bool) -> None:
    """Tell what of the settings works. Exit status 1: something is broken; 2: something could not be verified."""
    from stigg_guard.cli.doctor import doctor as examine  # as above

    _act(examine, as_json, failure=_Broken)


def _act(act: Callable[[Guard, Console], int], as_json: bool = False, failure: type[_Failure] = _Failure) -> None:
    console = Console(
        ledger="flask stigg ledger",
        json=as_json,
        say=click.echo,
        tell=partial(click.echo, err=True),
        good=partial(click.style, fg="green"),
        bad=partial(click.style, fg="red"),
    )
    try:
        status = act(app_guard().guard, console)
    except StiggGuardError as error:
        raise failure(str(error)) from error
    click.get_current_context().exit(status)


def _chosen(ids: Sequence[str], every: bool) -> Sequence[str] | None:
    if every == bool(ids):
        raise click.UsageError("give either ids, as list shows them, or --all")
    return None if every else ids


def _app_folders(app: Flask) -> Iterator[str | os.PathLike[str]]:
    """Where the app and its blueprints have code and templates; also those of installed extensions."""
    for part in (app, *app.blueprints.values()):
        yield part.root_path
        if isinstance(part.jinja_loader, FileSystemLoader):
            yield from part.jinja_loader.searchpath

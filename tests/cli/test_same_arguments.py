"""``stigg-guard`` and ``manage.py`` have one declaration of their arguments; ``flask stigg`` has the same commands."""

from __future__ import annotations

from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import pytest

from stigg_guard.__main__ import make_parser
from stigg_guard.cli import arguments
from stigg_guard.django.management import commands
from stigg_guard.flask.cli import stigg

CONFIGURES: Mapping[str, Callable[[ArgumentParser], None]] = {
    "check": arguments.configure_check,
    "report": arguments.configure_report,
    "doctor": arguments.configure_doctor,
    "features": arguments.configure_features,
    "ledger": arguments.configure_ledger,
}
OF_NO_SITE = {"cache-service", "schema"}
"""The commands that need no guard of a site."""
DOCS = Path(__file__).parents[2] / "docs"


def subcommands(parser: ArgumentParser) -> Iterator[tuple[str, ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            yield from action.choices.items()


def of_argparse(parser: ArgumentParser) -> set[str]:
    """Options as they are written, and the names of arguments without a dash."""
    actions = [action for action in parser._actions if action.dest != "help"]
    return {option for action in actions for option in action.option_strings or [action.dest]}


def of_click(command: click.Command) -> set[str]:
    options = (
        parameter.opts if isinstance(parameter, click.Option) else [parameter.name] for parameter in command.params
    )
    return {str(name) for names in options for name in names}


def declared(name: str) -> Iterator[tuple[str, set[str]]]:
    """The command, or each of its actions, with its arguments."""
    parser = ArgumentParser(name)
    CONFIGURES[name](parser)
    below = {f"{name} {action}": of_argparse(its) for action, its in subcommands(parser)}
    yield from below.items() or [(name, of_argparse(parser))]


def test_all_three_have_the_same_commands() -> None:
    of_a_site = {name for name, _ in subcommands(make_parser())} - OF_NO_SITE
    assert of_a_site == {*CONFIGURES, "sidecar"}
    assert of_a_site == {path.stem.removeprefix("stigg_") for path in Path(*commands.__path__).glob("stigg_*.py")}
    assert of_a_site == set(stigg.commands) - {"entitlements"}


def test_every_command_is_in_the_manuals() -> None:
    manuals = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert [name for name, _ in subcommands(make_parser()) if f"stigg-guard {name}" not in manuals] == []


@pytest.mark.parametrize(("path", "arguments"), [pair for name in CONFIGURES for pair in declared(name)])
def test_flask_takes_the_same(path: str, arguments: set[str]) -> None:
    command: click.Command = stigg
    for name in path.split():
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert of_click(command) == arguments


def test_what_flask_shows_without_a_feature_is_a_command_of_its_own() -> None:
    assert of_click(stigg.commands["entitlements"]) == of_click(stigg.commands["check"]) - {
        "feature",
        "--requested-usage",
    }

"""What the commands that act on the site's own guard have in common."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from stigg_guard.cli.console import Console
from stigg_guard.django.conf import DEFAULT, get_guard
from stigg_guard.errors import StiggGuardError


class GuardCommand(BaseCommand):
    """Does what the arguments of :mod:`stigg_guard.cli.arguments` say, with the site's guard.

    A command's exit status is that of what it does; an error of ours is a ``CommandError`` with status 2, or
    1 where 2 means something else.
    """

    configure: Callable[[ArgumentParser], None]
    """The function of :mod:`stigg_guard.cli.arguments` that gives this command its arguments."""

    def add_arguments(self, parser: CommandParser) -> None:
        self.configure(parser)
        add_using(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        console = Console(
            ledger="manage.py stigg_ledger",
            json=options["json"],
            say=self.stdout.write,
            tell=partial(self.stderr.write, style_func=str),  # most of it is no error
            good=self.style.SUCCESS,
            bad=self.style.ERROR,
        )
        try:
            status = options["act"](Namespace(**options), get_guard(options["using"]), console)
        except (StiggGuardError, ImproperlyConfigured) as error:
            raise CommandError(str(error), returncode=options.get("error_status", 2)) from error
        if status:
            sys.exit(status)


def add_using(parser: ArgumentParser, default: str = DEFAULT) -> None:
    """Gives the parser the option that chooses one of the site's configurations."""
    parser.add_argument(
        "--using", default=default, metavar="NAME", help=f"which configuration of STIGG_GUARD (default: {DEFAULT})"
    )

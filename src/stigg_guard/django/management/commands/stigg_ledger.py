"""``manage.py stigg_ledger status|list|retry|discard|drain``: usage on its way to the sidecar."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser

from django.core.management.base import CommandParser

from stigg_guard.cli.arguments import configure_ledger
from stigg_guard.django.management.guard_command import GuardCommand, add_using


class Command(GuardCommand):
    help = "Look after usage that is on its way to the sidecar, in the site's own ledger."

    def add_arguments(self, parser: CommandParser) -> None:
        add_using(parser)
        using = ArgumentParser(add_help=False)
        add_using(using, default=SUPPRESS)  # without it an action leaves what stands before it
        configure_ledger(parser, using)

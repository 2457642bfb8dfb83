"""``manage.py stigg_sidecar``: a local sidecar to develop with, beside ``runserver``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from stigg_guard.django.conf import get_guard
from stigg_guard.django.management.guard_command import add_using
from stigg_guard.errors import StiggGuardError
from stigg_guard.sidecar import __main__ as sidecar


class Command(BaseCommand):
    help = (
        "Run a local Stigg sidecar, which needs no account, until Ctrl-C. Its catalog is STIGG_GUARD['CATALOG'] or a "
        "demonstration, and is taken in again when its file changes."
    )
    requires_system_checks: tuple[str, ...] = ()  # it is there before the site is right

    def add_arguments(self, parser: CommandParser) -> None:
        sidecar.configure(parser)
        parser.set_defaults(reload=True)
        add_using(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            catalog = options["catalog"] or get_guard(options["using"]).config.catalog
            sidecar.run(Namespace(**{**options, "catalog": catalog}))
        except (StiggGuardError, ImproperlyConfigured) as error:
            raise CommandError(str(error), returncode=2) from error

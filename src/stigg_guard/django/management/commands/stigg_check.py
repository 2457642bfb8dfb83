"""``manage.py stigg_check CUSTOMER [FEATURE]``: what a customer may use."""

from __future__ import annotations

from stigg_guard.cli.arguments import configure_check
from stigg_guard.django.management.guard_command import GuardCommand


class Command(GuardCommand):
    configure = staticmethod(configure_check)

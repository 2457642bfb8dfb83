"""``manage.py stigg_report CUSTOMER FEATURE VALUE``: usage that happened."""

from __future__ import annotations

from stigg_guard.cli.arguments import configure_report
from stigg_guard.django.management.guard_command import GuardCommand


class Command(GuardCommand):
    configure = staticmethod(configure_report)

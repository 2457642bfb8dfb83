"""``manage.py stigg_doctor``: what of the settings works, and what to do."""

from __future__ import annotations

from stigg_guard.cli.arguments import configure_doctor
from stigg_guard.django.management.guard_command import GuardCommand


class Command(GuardCommand):
    configure = staticmethod(configure_doctor)

"""``manage.py stigg_features [PATH…]``: the features named in the project against those that are known."""

from __future__ import annotations

from typing import Any

from stigg_guard.cli.arguments import configure_features
from stigg_guard.cli.mentions import own_folders
from stigg_guard.django.folders import project_folders
from stigg_guard.django.management.guard_command import GuardCommand


class Command(GuardCommand):
    configure = staticmethod(configure_features)

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **{**options, "paths": options["paths"] or own_folders(project_folders())})

"""Where a project has its code and its templates."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from django.apps import apps
from django.conf import settings
from django.template import engines


def project_folders() -> Iterator[str | Path]:
    """The folders of all apps, templates and URLs; those of installed packages are among them."""
    yield from (app.path for app in apps.get_app_configs())
    for engine in engines.all():
        yield from engine.template_dirs
    yield Path(str(import_module(settings.ROOT_URLCONF).__file__)).parent

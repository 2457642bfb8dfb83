"""The app: reads the settings at start, and has them checked."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.signals import setting_changed

from stigg_guard.django import checks, conf


class StiggGuardConfig(AppConfig):
    """``"stigg_guard.django"`` in ``INSTALLED_APPS``."""

    name = "stigg_guard.django"
    label = "stigg_guard"
    verbose_name = "Stigg Guard"

    def ready(self) -> None:
        conf.configure()
        setting_changed.connect(conf.follow_settings)
        checks.register_checks()

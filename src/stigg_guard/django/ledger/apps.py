"""The app that owns the ledger's tables."""

from __future__ import annotations

from django.apps import AppConfig


class LedgerConfig(AppConfig):
    """``"stigg_guard.django.ledger"`` in ``INSTALLED_APPS``."""

    name = "stigg_guard.django.ledger"
    label = "stigg_guard_ledger"
    verbose_name = "Stigg Guard ledger"
    default_auto_field = "django.db.models.BigAutoField"

"""The permissions of the admin's ledger page. The ledger itself is wherever the setting ``LEDGER`` says."""

from __future__ import annotations

from django.db import models
from django.utils.translation import pgettext_lazy


class _NothingStored(models.Manager["LedgerEntry"]):
    """There is no table to ask: ``dumpdata`` and the like find nothing."""

    def get_queryset(self) -> models.QuerySet[LedgerEntry]:
        nothing: models.QuerySet[LedgerEntry] = super().get_queryset().none()
        return nothing


class LedgerEntry(models.Model):
    """Who may see the ledger's entries (view), send them again (change) and forget them (delete). It has no table."""

    id = models.CharField(primary_key=True, max_length=255)

    objects = _NothingStored()

    class Meta:
        managed = False
        base_manager_name = "objects"  # which ``dumpdata --all`` asks
        default_permissions = ("view", "change", "delete")
        verbose_name = pgettext_lazy("stigg_guard", "ledger entry")
        verbose_name_plural = pgettext_lazy("stigg_guard", "usage ledger")

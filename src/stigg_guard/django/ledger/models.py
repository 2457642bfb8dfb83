"""The tables of the ledger. Times are in seconds since the epoch.

A key is a customer, a resource and a feature, each percent-encoded, with slashes between them. No table refers to
another: a foreign key would lock rows for as long as a user's transaction lasts.
"""

from __future__ import annotations

from django.db import models

from stigg_guard.django.ledger.apps import LedgerConfig

LABEL = LedgerConfig.label  # so that this can be imported where the app is missing, and somebody else can say so


class Entry(models.Model):
    """Usage on its way to the sidecar."""

    key = models.TextField()
    state = models.TextField()
    amount = models.FloatField()
    is_set = models.BooleanField(default=False)
    used_at = models.FloatField()
    period_start = models.FloatField(default=0.0)
    until = models.FloatField(null=True, default=0.0)  # the end of its lease; null while a person must decide
    batch = models.TextField(null=True)
    reason = models.TextField(default="")
    event = models.TextField(null=True)  # JSON: name, idempotency key, dimensions
    attempts = models.IntegerField(default=0)

    class Meta:
        app_label = LABEL
        verbose_name_plural = "entries"
        indexes = (
            models.Index(fields=["key", "state"], name="stigg_guard_entry_by_key"),
            models.Index(fields=["state", "id"], name="stigg_guard_entry_by_state"),
            models.Index(fields=["batch"], name="stigg_guard_entry_by_batch", condition=~models.Q(batch=None)),
        )


class HeldUnits(models.Model):
    """What one hold took off the limit of one key."""

    hold = models.TextField()
    key = models.TextField()
    amount = models.FloatField()
    taken_at = models.FloatField()
    until = models.FloatField()
    counts = models.BooleanField(default=True)  # until it is found to have expired, and nobody about to commit it

    class Meta:
        app_label = LABEL
        verbose_name_plural = "held units"
        indexes = (
            models.Index(fields=["hold"], name="stigg_guard_held_by_hold"),
            models.Index(fields=["key", "until"], name="stigg_guard_held_by_key"),
        )


class Usage(models.Model):
    """What is known of the usage of a key: nothing at first. Its row is the lock of the key's limit."""

    key = models.TextField(primary_key=True)
    used = models.FloatField(null=True)
    period_start = models.FloatField(default=0.0)
    ticket = models.BigIntegerField(default=0)
    settled_at = models.FloatField(default=0.0)  # when the sidecar last acknowledged a report of the key

    class Meta:
        app_label = LABEL
        verbose_name_plural = "usage"


class Ticket(models.Model):
    """A number that was drawn; those of the past are cleared away."""

    class Meta:
        app_label = LABEL


class LateCommit(models.Model):
    """A hold that was committed after it had expired."""

    class Meta:
        app_label = LABEL

"""The tables of the ledger.

Amounts are quanta. ``used_at`` and periods are text (see ``stigg_guard.ledger.entries``); all other times are
microseconds on the ledger's clock. A key is a customer, a resource and a feature, each percent-encoded, with slashes
between them. No table refers to another: a foreign key would lock rows for as long as a user's transaction lasts.

The tables of the version before had other names, so that its processes can write nothing into these.
"""

from __future__ import annotations

from django.db import models

from stigg_guard.django.ledger.apps import LedgerConfig


class Entry(models.Model):
    """Usage on its way to the sidecar. ``fresh`` are those that nobody has tried to add to the one before yet; for that
    ``present`` is the period that the ledger was in when they were written."""

    key = models.TextField()
    state = models.TextField()
    amount = models.BigIntegerField()
    is_set = models.BooleanField()
    used_at = models.TextField()
    first_at = models.BigIntegerField()
    period = models.TextField()
    event = models.TextField(default="")
    dimensions = models.TextField(default="")
    until = models.BigIntegerField(null=True, default=0)  # the end of a lease or a wait of `lasts`, or none
    lasts = models.BigIntegerField(default=0)
    batch = models.TextField(null=True)
    reason = models.TextField(default="")
    attempts = models.IntegerField(default=0)
    ticket = models.BigIntegerField(default=0)  # of the first sending, with what was known before it
    before = models.TextField(default="")
    fresh = models.BooleanField()
    present = models.TextField(default="/")

    class Meta:
        app_label = LedgerConfig.label
        db_table = "stigg_guard_ledger_entries"
        verbose_name_plural = "entries"
        indexes = (
            models.Index(fields=["key", "state"], name="stigg_guard_entries_by_key"),
            models.Index(fields=["state", "id"], name="stigg_guard_entries_by_state"),
            models.Index(fields=["batch"], name="stigg_guard_entries_by_batch", condition=~models.Q(batch=None)),
            models.Index(fields=["until"], name="stigg_guard_entries_by_end", condition=models.Q(until__gt=0)),
            models.Index(fields=["id"], name="stigg_guard_entries_fresh", condition=models.Q(fresh=True)),
        )


class Hold(models.Model):
    """What one hold took off the limit of one key."""

    hold = models.TextField()
    key = models.TextField()
    amount = models.BigIntegerField()
    period = models.TextField()
    taken_at = models.BigIntegerField()
    until = models.BigIntegerField()
    lasts = models.BigIntegerField()
    counts = models.BooleanField()  # although it expired, until nobody is found about to commit it

    class Meta:
        app_label = LedgerConfig.label
        db_table = "stigg_guard_ledger_holds"
        indexes = (
            models.Index(fields=["hold"], name="stigg_guard_holds_by_id"),
            models.Index(fields=["key", "until"], name="stigg_guard_holds_by_key"),
            models.Index(fields=["until"], name="stigg_guard_holds_by_end"),
        )


class CallersKey(models.Model):
    """A key by which a use counts once, until then: the hold that its use is in, or none once that was counted."""

    digest = models.TextField(primary_key=True)
    hold = models.TextField()
    until = models.BigIntegerField()
    binding = models.TextField()

    class Meta:
        app_label = LedgerConfig.label
        db_table = "stigg_guard_ledger_keys"
        indexes = (models.Index(fields=["until"], name="stigg_guard_keys_by_end"),)


class Usage(models.Model):
    """What is known of the usage of a key: nothing without a period. Its row is the lock of the key's limit."""

    key = models.TextField(primary_key=True)
    period = models.TextField(null=True)
    used = models.BigIntegerField(default=0)
    allowed = models.BigIntegerField(null=True)
    seen = models.BigIntegerField(default=0)
    settled = models.BigIntegerField(default=0)
    settled_at = models.BigIntegerField(null=True)
    moved_at = models.BigIntegerField(null=True)
    added = models.BigIntegerField(default=0)

    class Meta:
        app_label = LedgerConfig.label
        db_table = "stigg_guard_ledger_usages"
        verbose_name_plural = "usage"


class Ticket(models.Model):
    """A number that was drawn; those of the past are cleared away."""

    class Meta:
        app_label = LedgerConfig.label
        db_table = "stigg_guard_ledger_tickets"


class LateCommit(models.Model):
    """A hold that was committed after it had expired."""

    class Meta:
        app_label = LedgerConfig.label
        db_table = "stigg_guard_ledger_late"

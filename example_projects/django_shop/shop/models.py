"""What the studios make."""

from __future__ import annotations

from django.db import models


class Template(models.Model):
    """A document template of a studio."""

    class Kind(models.TextChoices):
        POSTER = "poster", "Poster"
        REPORT = "report", "Report"
        MENU = "menu", "Menu"
        COVER = "cover", "Cover"

    customer_id = models.CharField(max_length=100, db_index=True)
    name = models.CharField(max_length=60)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.POSTER)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.name

"""The studios and what they make."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Studio(models.Model):
    """A customer: ``customer_id`` is its id at Stigg. A customer is not a user, so it has its own table."""

    customer_id = models.CharField(max_length=100, unique=True)
    owner = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    name = models.CharField(max_length=60)
    trade = models.CharField(max_length=60)
    joined_with = models.CharField(max_length=30, help_text="The plan that the demonstration starts with.")

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.name


class Template(models.Model):
    """A document template of a studio."""

    class Kind(models.TextChoices):
        POSTER = "poster", "Poster"
        REPORT = "report", "Report"
        MENU = "menu", "Menu"
        COVER = "cover", "Cover"

    studio = models.ForeignKey(Studio, on_delete=models.CASCADE, related_name="templates")
    name = models.CharField(max_length=60)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.POSTER)
    words = models.TextField(blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.name

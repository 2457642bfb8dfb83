"""What the shop's staff look after; the ledger and the entitlements are stigg_guard's own pages."""

from __future__ import annotations

from django.contrib import admin

from shop.models import Studio, Template


@admin.register(Studio)
class StudioAdmin(admin.ModelAdmin):
    """The customers."""

    list_display = ("name", "customer_id", "trade")


@admin.register(Template)
class TemplateAdmin(admin.ModelAdmin):
    """What they have made."""

    list_display = ("name", "kind", "studio", "created_at")
    list_filter = ("kind", "studio")

"""The one form of the shop."""

from __future__ import annotations

from django import forms

from shop.models import Template


class TemplateForm(forms.ModelForm):
    """A new template."""

    class Meta:
        model = Template
        fields = ("name", "kind")
        widgets = {"name": forms.TextInput(attrs={"placeholder": "Summer poster", "autocomplete": "off"})}

"""The forms of the shop."""

from __future__ import annotations

from django import forms

from shop.models import Studio, Template


class StudioForm(forms.ModelForm):
    """A new studio."""

    class Meta:
        model = Studio
        fields = ("name",)


class TemplateForm(forms.ModelForm):
    """A new template."""

    class Meta:
        model = Template
        fields = ("name", "kind")
        widgets = {"name": forms.TextInput(attrs={"placeholder": "Summer poster", "autocomplete": "off"})}

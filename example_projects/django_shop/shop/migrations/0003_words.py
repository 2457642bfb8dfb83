"""What the language model has written for a template."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shop", "0002_demonstration")]
    operations = [migrations.AddField("template", "words", models.TextField(blank=True, default=""))]

"""The demonstration catalog's customers, with as many templates as it counts of each, and the shop's staff."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.hashers import make_password
from django.db import migrations

STUDIOS = [
    # username, customer id, name, trade, plan
    ("ada", "customer-demo-01", "Ada's studio", "Posters and print", "Essentials plan"),
    ("grace", "customer-demo-02", "Grace & Co.", "Annual reports", "Growth plan"),
    ("linus", "customer-demo-03", "Linus, freelancer", "Menus for small cafés", "Free plan"),
    ("edsger", "customer-demo-04", "Edsger, just looking", "Nothing made yet", "No plan yet"),
]
MADE = {
    "ada": [("Spring sale", "poster"), ("Jazz night", "poster"), ("Gift voucher", "cover")],
    "grace": [
        *((f"Quarter {quarter}, {year}", "report") for year in (2024, 2025) for quarter in (1, 2, 3, 4)),
        ("Annual report", "report"),
        ("Board dinner", "menu"),
        ("Open day", "poster"),
        ("Investor folder", "cover"),
    ],
    "linus": [("Breakfast", "menu")],
}


def make_studios(apps: Any, _schema_editor: Any) -> None:
    user, studio, template = (
        apps.get_model(*model) for model in (("auth", "User"), ("shop", "Studio"), ("shop", "Template"))
    )
    nobody_knows = make_password(None)
    for username, customer_id, name, trade, plan in STUDIOS:
        owner = user.objects.create(username=username, password=nobody_knows)
        made = studio.objects.create(customer_id=customer_id, owner=owner, name=name, trade=trade, joined_with=plan)
        template.objects.bulk_create(
            template(studio=made, name=title, kind=kind) for title, kind in MADE.get(username, [])
        )
    user.objects.create(username="staff", password=nobody_knows, is_staff=True, is_superuser=True)


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial"), ("auth", "0012_alter_user_first_name_max_length")]
    operations = [migrations.RunPython(make_studios, migrations.RunPython.noop)]

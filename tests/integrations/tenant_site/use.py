"""Uses a unit in a tenant's transaction, and prints, as JSON, which schema's ledger has it, and what checks find.

Arguments: the settings of the database as JSON, and whether the ledger is an app of SHARED_APPS, TENANT_APPS or both.
"""

# ruff: noqa: E402 - Django is set up before what needs it is imported
from __future__ import annotations

import json
import sys
from typing import Any

import django
from django.conf import settings

LEDGER = ["stigg_guard.django.ledger"]
SHARED = ["django_tenants", "tenants", "django.contrib.contenttypes", "stigg_guard.django"]
TENANT = ["django.contrib.contenttypes"]

database, place = json.loads(sys.argv[1]), sys.argv[2]
shared = SHARED + (LEDGER if place in ("shared", "both") else [])
tenant = TENANT + (LEDGER if place in ("tenant", "both") else [])
settings.configure(
    DATABASES={"default": {**database, "ENGINE": "django_tenants.postgresql_backend"}},
    DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
    SHARED_APPS=shared,
    TENANT_APPS=tenant,
    INSTALLED_APPS=list(dict.fromkeys([*shared, *tenant])),
    TENANT_MODEL="tenants.Client",
    TENANT_DOMAIN_MODEL="tenants.Domain",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    MIDDLEWARE=["stigg_guard.django.middleware.StiggGuardMiddleware"],
    STIGG_GUARD={
        "CUSTOMER": lambda request: "customer-demo-01",
        "SIDECAR": "local",
        "LEDGER": "django://default",
        "TIMEOUT": 20,
    },
)
django.setup()

from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection, transaction
from django_tenants.utils import schema_context
from tenants.models import Client

from stigg_guard import LedgerUnavailable
from stigg_guard.django import get_guard

SCHEMAS = "SELECT schemaname FROM pg_tables WHERE tablename = 'stigg_guard_ledger_holds'"


def counted(table: str) -> dict[str, Any]:
    """How many rows the table has in each schema that has it."""
    with connection.cursor() as cursor:
        cursor.execute(SCHEMAS)
        found = {}
        for (schema,) in cursor.fetchall():
            cursor.execute(f"SELECT count(*) FROM {schema}.stigg_guard_ledger_{table}")
            found[schema] = cursor.fetchone()[0]
        return found


told: dict[str, Any] = {}
call_command("migrate_schemas", shared=True, run_syncdb=True, verbosity=0)
Client.objects.create(schema_name="ann", name="Ann")
guard = get_guard()
try:
    with schema_context("ann"), transaction.atomic():
        with guard.consume("feature-templates", customer="customer-demo-01"):
            told["held"] = [counted("holds"), guard.stats()["held"]]
        told["entered"] = counted("entries")
    told["acknowledged"] = guard.flush(20) == 0 and guard.stats()["acknowledged"]
except LedgerUnavailable as error:
    told["refused"] = str(error)
told["checks"] = [check.id for check in run_checks(tags=["stigg_guard"], databases=["default"])]
guard.close()
print("\n" + json.dumps(told))

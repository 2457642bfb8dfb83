"""A ledger beside django-tenants: one for all schemas, or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from postgres_server import PostgresServer

SITE = Path(__file__).parents[1] / "tenant_site"


def use(postgres: PostgresServer, place: str) -> Any:
    """What comes of a use in a tenant's transaction."""
    database = json.dumps(postgres.database(f"tenants_{place}"), default=str)
    run = [sys.executable, "use.py", database, place]
    done = subprocess.run(
        run, cwd=SITE, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_holds_transactions_and_figures_are_of_one_table_although_each_schema_has_one(
    postgres: PostgresServer,
) -> None:
    one = {"public": 1, "ann": 0}
    assert use(postgres, "both") == {"held": [one, 1], "entered": one, "acknowledged": 1, "checks": []}


def test_a_ledger_of_the_tenants_alone_is_refused_and_found(postgres: PostgresServer) -> None:
    told = use(postgres, "tenant")
    assert told["checks"] == ["stigg_guard.E006"]
    assert "has no tables" in told["refused"]

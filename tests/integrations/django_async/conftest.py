"""The settings of the site."""

from __future__ import annotations

from typing import Any

import pytest

from integrations.django_async.views import TEMPLATES, of_gateway, runs
from stigg_guard.sidecar.server import Sidecar


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar."""
    rules = [
        {"path": "/ruled/analytics", "feature": "feature-analytics"},
        {"path": "/ruled/", "feature": TEMPLATES, "consume": 1},
    ]
    settings.STIGG_GUARD = {
        **settings.STIGG_GUARD,
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "CUSTOMER": of_gateway,
        "RULES": rules,
        "RATE_LIMIT_HEADERS": True,
    }
    runs.clear()
    return settings

"""Fixtures of Flask apps that are guarded over a sidecar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from integrations.flask_shop import ESSENTIALS, TEMPLATES, guard_of, signed_in
from stigg_guard import Guard
from stigg_guard.flask import StiggGuard
from stigg_guard.sidecar.server import Sidecar


@pytest.fixture
def make_app(sidecar: Sidecar, tmp_path: Path) -> Iterator[Callable[..., Flask]]:
    """Makes apps with an extension and settings."""
    apps: list[Flask] = []

    def make(extension: StiggGuard | None = None, **settings: Any) -> Flask:
        app = Flask("shop", instance_path=str(tmp_path))
        app.config.update(
            STIGG_GUARD_SIDECAR=sidecar.address, STIGG_GUARD_CUSTOMER=signed_in, STIGG_GUARD_LEDGER="memory://"
        )
        app.config.update({f"STIGG_GUARD_{name}": value for name, value in settings.items()})
        (extension or StiggGuard()).init_app(app)
        apps.append(app)
        return app

    yield make
    for app in apps:
        guard_of(app).close()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def used(guard: Guard, app: Flask) -> Callable[..., float]:
    """How many templates the sidecar has counted, once the app has reported them."""

    def count(feature: str = TEMPLATES) -> float:
        assert guard_of(app).flush() == 0
        guard.reload(ESSENTIALS)
        return guard.check(feature, customer=ESSENTIALS).current_usage

    return count

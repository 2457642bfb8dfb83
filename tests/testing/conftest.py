"""A guard that only an override can answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stigg_guard import Guard
from testing.guards import make


@pytest.fixture
def unreachable() -> Iterator[Guard]:
    """A guard whose own sidecar cannot be asked."""
    with make() as guard:
        yield guard

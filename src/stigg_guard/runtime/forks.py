"""Registers callbacks around forks, on systems that fork. What they do stands with those that register them."""

from __future__ import annotations

import os
from collections.abc import Callable


def _nothing() -> None:
    pass


def follow_forks(
    *,
    before: Callable[[], object] = _nothing,
    after_in_parent: Callable[[], object] = _nothing,
    after_in_child: Callable[[], object] = _nothing,
) -> None:
    """As ``os.register_at_fork``; nothing where processes cannot fork, as on Windows."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)

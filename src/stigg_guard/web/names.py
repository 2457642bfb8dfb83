"""The display names of features."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from stigg_guard.config import Config
from stigg_guard.entitlements import Entitlement
from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.catalog import demo_catalog, load_catalog


def feature_name(answer: Entitlement, config: Config) -> str:
    """The name that the sidecar or the catalog of the settings has for people, else that of ``FEATURE_NAMES``, else the
    id."""
    feature = answer.feature_id
    for name in (answer.display_name, _names(config).get(feature), config.feature_names.get(feature)):
        if name is not None:
            return str(name)
    return feature


def _names(config: Config) -> Mapping[str, str]:
    catalog = config.catalog or config.offline_file
    if catalog is None:
        return _demo_names() if config.sidecar == "local" else {}
    with suppress(OSError):
        return _catalog_names(catalog, Path(catalog).stat().st_mtime_ns)
    return {}


@lru_cache
def _demo_names() -> Mapping[str, str]:
    return demo_catalog().names


@lru_cache
def _catalog_names(catalog: str, _changed_at: int) -> Mapping[str, str]:
    with suppress(ConfigError):  # whoever starts the sidecar is told
        return load_catalog(catalog).names
    return {}

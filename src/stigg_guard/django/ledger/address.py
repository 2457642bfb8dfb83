"""The URL of a ledger in a database: ``django://alias``, or ``django://alias?via=other``."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from stigg_guard.errors import ConfigError

SCHEME = "django://"


class Address(NamedTuple):
    """``alias`` is the database in whose transactions usage is, ``via`` the alias by which the ledger's own connections
    reach the same one."""

    alias: str
    via: str | None


def address_of(url: str) -> Address:
    """Raises:
    ConfigError: there is something else in it.
    """
    parts = urlsplit(url)
    given = parse_qsl(parts.query, keep_blank_values=True)
    others = [name for name, _ in given if name != "via"] or [part for part in (parts.path, parts.fragment) if part]
    if others or len(given) > 1:
        raise ConfigError(f"LEDGER: {url} has more than django://alias?via=alias; leave the rest away")
    return Address(unquote(parts.netloc), dict(given).get("via"))

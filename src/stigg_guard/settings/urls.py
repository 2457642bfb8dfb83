"""The URLs of ledgers, caches and APIs. What is wrong in one, or would be ignored, is an error.

The errors are for whoever names the setting. They never quote the URL, which may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

REDIS = (
    *("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://"),
    *("redis+sentinel://", "rediss+sentinel://"),
)
"""What the URL of a Redis begins with."""
SQLITE = "sqlite://"
"""What the URL of a SQLite file begins with."""

REDIS_FORM = (
    "expected redis://user:password@host:port/number, rediss://…, unix:///path?db=number, "
    "redis+cluster://host:port,host:port or redis+sentinel://host:port,host:port/service"
)
"""How the URL of a Redis is spelled."""
_SQLITE_FORM = "expected memory://, sqlite:///path, or sqlite:////path from the root on"

_REDIS_PARTS = re.compile(
    r"\w+://(?:[^/?#]*@)?(?P<host>\[[^]/?#]*\]|[^][:/?#]*)(?::(?P<port>[^/?#]*))?(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_COUNT, _SOME, _SECONDS = "[0-9]{1,9}", "[1-9][0-9]{0,8}", r"(?=.*[1-9])[0-9]{0,6}(\.[0-9]{1,6})?"
_TEXT, _TRUTH = ".+", "(?i:true|false|yes|no|1|0)"
_OPTIONS = {
    **dict.fromkeys(("username", "password", "client_name"), _TEXT),
    **dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _SECONDS),
    **dict.fromkeys(("max_connections", "socket_read_size"), _SOME),
    "db": _COUNT,
    "health_check_interval": _COUNT,
    "protocol": "[23]",
    "socket_keepalive": _TRUTH,
}
_TLS_OPTIONS = {
    **_OPTIONS,
    **dict.fromkeys(("ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile"), _TEXT),
    **dict.fromkeys(("ssl_ciphers", "ssl_keyfile", "ssl_password"), _TEXT),
    "ssl_check_hostname": _TRUTH,
    "ssl_min_version": _SOME,
}
_LEDGER_OPTIONS = {"wait": "[1-9]"}
_SENTINEL_OPTIONS = dict.fromkeys(("sentinel_username", "sentinel_password"), _TEXT)
_SEVERAL = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>cluster|sentinel)://(?P<access>[^/?#]*@)?(?P<hosts>[^/?#]*)(?P<path>/[^?#]*)?"
    r"(?:\?(?P<query>[^#]*))?"
)
_SHARED = {"mode": "0?6[046][046]", "group": "[^\x00-\x1f:]+"}


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """A SQLite file, and whom it lets in: its owner alone without ``mode``, else as the bits of the mode say.

    ``group`` is the name or the number of the group that is let in; None is the owner's own.
    """

    path: str
    mode: int | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where a Redis is: ``one`` is the URL of one server, as redis-py reads it.

    ``kind`` is ``cluster`` where that and the others in ``hosts`` are nodes of a cluster, ``sentinel`` where they are
    sentinels that know the master of ``service`` and are asked with what is in ``sentinel``; else it is empty.
    ``wait`` is how many replicas must have what a ledger writes.
    """

    one: str = field(repr=False)
    kind: str = ""
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    wait: int = 0
    sentinel: Mapping[str, str] = field(default_factory=dict, repr=False)


def require_parts(url: str) -> None:
    """Looks through the URL of a ledger; one with a scheme that is not known here is let through.

    Raises:
        ValueError: a part of it is wrong, or would be ignored.
    """
    if url.startswith(REDIS):
        redis_url(url, of_ledger=True)
    elif url.startswith(SQLITE):
        ledger_file(url)


def ledger_file(url: str) -> LedgerFile:
    """What ``sqlite:///path?mode=0660&group=web`` says. The path is relative, or absolute with a fourth slash.

    Raises:
        ValueError: as from :func:`require_parts`.
    """
    place, _, query = url.removeprefix(SQLITE).partition("?")
    path = unquote(place[1:])
    if not place.startswith("/") or not path or "\0" in path or "#" in url:
        raise ValueError(f"{_SQLITE_FORM}, in which % ? # are written %25 %3F %23")
    if path == ":memory:":
        raise ValueError(f"{_SQLITE_FORM}, and :memory: is memory:// here")
    options = _options(query, _SHARED, _SQLITE_FORM)
    mode, group = options.get("mode"), options.get("group")
    if group is not None and (mode is None or mode[-2] == "0"):
        raise ValueError(f"{_SQLITE_FORM}, and group is whom mode lets in: ?mode=0660&group=…")
    return LedgerFile(path, None if mode is None else int(mode, 8), group)


def redis_url(url: str, *, of_ledger: bool = False) -> RedisUrl:
    """What a URL says that begins as one of ``REDIS``; redis-py would ignore most of what it cannot read.

    Raises:
        ValueError: as from :func:`require_parts`.
    """
    more = _LEDGER_OPTIONS if of_ledger else {}
    if "+" not in url.partition(":")[0]:
        alone = _redis_options(url, more)
        return RedisUrl(_with_options(url.partition("?")[0], alone), wait=int(alone.get("wait", 0)))
    several = _whole(_SEVERAL, url)
    kind, path = several["kind"], unquote(several["path"] or "")[1:]
    server, query = f"{several['scheme']}://{several['access'] or ''}", f"/?{several['query'] or ''}"
    more = {**more, **(_SENTINEL_OPTIONS if kind == "sentinel" else {})}
    names = several["hosts"].split(",")
    options: dict[str, str] = {}
    for name in names:
        options = _redis_options(f"{server}{name}{query}", more)
    problem = _path_problem(kind, path, options)
    if problem:
        raise ValueError(f"{REDIS_FORM}, and this URL {problem}")
    return RedisUrl(
        _with_options(f"{server}{names[0]}", options),
        kind,
        tuple(_host_and_port(name, 6379 if kind == "cluster" else 26379) for name in names),
        path if kind == "sentinel" else "",
        int(options.get("wait", 0)),
        {name.removeprefix("sentinel_"): options[name] for name in _SENTINEL_OPTIONS if name in options},
    )


def prefix_at(url: str, prefix: str) -> str:
    """What keys begin with that must all be on one node of the Redis at a URL: in a cluster a hash tag."""
    return f"{{{quote(prefix, safe='')}}}" if redis_url(url).kind == "cluster" else prefix


def _whole(pattern: re.Pattern[str], url: str) -> re.Match[str]:
    """The parts of a URL in which nothing stands that has to be written otherwise."""
    parts = pattern.fullmatch(url)
    if parts is None or not url.isprintable() or " " in url or "@" in f"{parts['path']}{parts['query']}":
        raise ValueError(f"{REDIS_FORM}; what a URL cannot carry, such as / ? # @ of a password, is percent-encoded")
    return parts


def _redis_options(url: str, more: Mapping[str, str]) -> dict[str, str]:
    """The options of the URL of one server, of which each part is looked at."""
    parts = _whole(_REDIS_PARTS, url)
    known = _TLS_OPTIONS if url.startswith("rediss") else _OPTIONS
    options = _options(parts["query"], {**known, **more}, REDIS_FORM)
    problem = _socket_problem(parts) if url.startswith("unix") else _server_problem(parts, "db" in options)
    if problem:
        raise ValueError(f"{REDIS_FORM}, and this URL {problem}")
    return options


def _with_options(url: str, options: Mapping[str, str]) -> str:
    """The URL with those options that redis-py knows."""
    known = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    return f"{url}?{urlencode(known, quote_via=quote)}" if known else url


def _host_and_port(name: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{name}")
    return parts.hostname or "", parts.port or port


def _path_problem(kind: str, path: str, options: Mapping[str, str]) -> str:
    if kind == "cluster":
        return "names a database, and a cluster has only one" if path not in ("", "0") or "db" in options else ""
    return (
        "" if path and "/" not in path else "names no service that sentinels know, as in redis+sentinel://host/mymaster"
    )


def _server_problem(parts: re.Match[str], names_database: bool) -> str:
    path = (parts["path"] or "")[1:]
    if not parts["host"]:
        return "names no host"
    if parts["port"] is not None and not (re.fullmatch("[0-9]{1,5}", parts["port"]) and 0 < int(parts["port"]) < 65536):
        return "has a port that is no number from 1 to 65535"
    if path and not re.fullmatch(_COUNT, path):
        return "has a path that is no number of a database"
    return "names a database twice" if path and names_database else ""


def _socket_problem(parts: re.Match[str]) -> str:
    if parts["host"] or parts["port"] is not None:
        return "has a host, which a socket has not"
    return "" if len(parts["path"] or "") > 1 else "has no path of a socket"


def _options(query: str | None, known: Mapping[str, str], form: str) -> dict[str, str]:
    """What stands behind the question mark; ``known`` has the pattern of each option's value."""
    if not query:
        return {}
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:  # it quotes a piece
        raise ValueError(f"{form}, and behind ? name=value, with & between several") from None
    for name, value in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"{form}, and this URL has an option that does not exist; {remedy}")
        if not re.fullmatch(known[name], value):
            raise ValueError(f"{form}, and {name} has a value in this URL that it cannot have")
    options = dict(given)
    if len(options) < len(given):
        raise ValueError(f"{form}, and this URL has one option twice")
    return options


def is_http_url(url: object) -> bool:
    """Whether it is an address of a server, with or without a path, and nothing else."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or set(url) & set(" ?#"):
        return False
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        return False


def is_api_key(key: object) -> bool:
    """Whether it can be the key of an API: a text that a header can carry."""
    return isinstance(key, str) and key.isascii() and key.isprintable() and key != "" and " " not in key

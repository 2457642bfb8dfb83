"""The local sidecar's settings: variables of Stigg's container and of its own, and the options of its command."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from stigg_guard.errors import ConfigError
from stigg_guard.fallbacks import Fallback, parse_fallbacks
from stigg_guard.foreign import quoted
from stigg_guard.runtime.log import logger
from stigg_guard.settings.urls import REDIS, REDIS_FORM, is_api_key, redis_url
from stigg_guard.sidecar import HTTP_PORT, PORT
from stigg_guard.sidecar.faults import Fault, parse_faults

PREFIX = "STIGG_SIDECAR_"
"""What the variables begin with that Stigg's container does not have."""
LEVELS = {"error": "ERROR", "warn": "WARNING", "info": "INFO", "debug": "DEBUG"}
FORMATS = ("text", "json")

_MASK = "********"
_KEYS_TTL = ("REDIS_KEYS_TTL_IN_SECS", "KEYS_TTL_IN_SECS")
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _text(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError(f"expected a text without line breaks and spaces around it, not {quoted(value)}")
    return value


def _key(value: str) -> str:
    if not is_api_key(value):
        raise ValueError("expected a text of ASCII without spaces; copy it again")
    return value


def _secret(value: str) -> str:
    """Anything that UTF-8 can say; a message does not repeat it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected a text in UTF-8; copy it again") from None
    return value


def _host(value: str) -> str:
    if set(_text(value)) & set(" /@?#"):
        raise ValueError(f"expected a name or an address, not {quoted(value)}")
    return value


def _redis(value: str) -> str:
    if not value.startswith(REDIS):
        raise ValueError(REDIS_FORM)
    redis_url(value)
    return value


def _flag(value: str) -> bool:
    truth = _TRUTH.get(value.lower())
    if truth is None:
        raise ValueError(f"expected 1 or 0, true or false, not {quoted(value)}")
    return truth


def _whole(lowest: int | None, highest: int | None, expected: str) -> Callable[[str], int]:
    def read(value: str) -> int:
        if value.removeprefix("-").isascii() and value.removeprefix("-").isdecimal() and len(value) < 20:
            number = int(value)
            if (lowest is None or lowest <= number) and (highest is None or number <= highest):
                return number
        raise ValueError(f"{quoted(value)} is no {expected}")

    return read


_port = _whole(0, 65535, "port; give a number from 0 to 65535")


def _url(*schemes: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if not _text(value).startswith(tuple(f"{scheme}://" for scheme in schemes)) or set(value) & set(" @"):
            raise ValueError(f"expected a URL, as {schemes[-1]}://api.stigg.io, without user and password")
        return value

    return read


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, not {quoted(value)}")
        return value.lower()

    return read


def _setting(
    default: Any,
    reader: Callable[[str], Any],
    meaning: str,
    *,
    variable: str = "",
    option: str = "",
    is_secret: bool = False,
    has_effect: bool = True,
) -> Any:
    """A field of :class:`Settings`. ``reader`` makes its value of a text, or raises ``ValueError``. Without
    ``variable`` it is read from the upper-case name of the field."""
    metadata = {
        "default": default,
        "reader": reader,
        "meaning": meaning,
        "variable": variable,
        "option": option,
        "is_secret": is_secret,
        "has_effect": has_effect,
    }
    return field(default_factory=lambda: default, repr=not is_secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of a local sidecar. An option goes before a variable, and both before the default."""

    catalog: str | None = _setting(
        None, _text, "What is sold, TOML or JSON; none is a demonstration.", variable="CATALOG", option="--catalog"
    )
    state: str | None = _setting(
        None,
        _text,
        "File in which usage is kept; none is memory, gone at the end.",
        variable="STATE",
        option="--state",
    )
    host: str = _setting("127.0.0.1", _text, "Address to listen on.", variable="HOST", option="--host")
    grpc_port: int = _setting(PORT, _port, "gRPC port; 0 picks a free one.", option="--port")
    http_port: int = _setting(
        HTTP_PORT, _port, "HTTP port; 0 picks a free one.", variable="HTTP_PORT", option="--http-port"
    )
    log_level: str = _setting("info", _one_of(*LEVELS), "error, warn, info or debug.", option="--log-level")
    log_format: str = _setting(
        "text", _one_of(*FORMATS), "text, or json: an object a line.", variable="LOG_FORMAT", option="--log-format"
    )
    faults: Mapping[str, Fault] = _setting(
        MappingProxyType({}),
        parse_faults,
        "Faults on purpose: METHOD:latency=SECONDS,error=STATUS:PART,drop=PART; without a method for all.",
        variable="FAULTS",
        option="--fault",
    )
    token: str | None = _setting(
        None,
        _key,
        "What changes on the status page must carry; none is a new one at each start.",
        variable="TOKEN",
        is_secret=True,
    )
    server_api_key: str | None = _setting(None, _key, "The key that the GraphQL API wants.", is_secret=True)
    require_api_key: bool = _setting(
        False, _flag, "Whether gRPC calls, too, must carry SERVER_API_KEY, as the metadata x-api-key."
    )
    tls_cert_file: str | None = _setting(
        None, _text, "PEM file of the certificate; none is plaintext.", variable="TLS_CERT_FILE", option="--tls-cert"
    )
    tls_key_file: str | None = _setting(
        None, _text, "PEM file of its key.", variable="TLS_KEY_FILE", option="--tls-key"
    )
    tls_client_ca_file: str | None = _setting(
        None,
        _text,
        "PEM file of the authority that clients' certificates must be of; none asks for none.",
        variable="TLS_CLIENT_CA_FILE",
        option="--tls-client-ca",
    )
    entitlements_fallback: Mapping[str, Fallback] = _setting(
        MappingProxyType({}), parse_fallbacks, "JSON: answers for features that the catalog does not know."
    )
    offline: bool = _setting(
        False, _flag, "Whether ENTITLEMENTS_FALLBACK answers for any customer, and nothing else is done."
    )
    redis_environment_prefix: str | None = _setting(
        None, _text, "What the keys of this environment begin with; it turns Redis on."
    )
    redis: str | None = _setting(
        None, _redis, "The URL of Redis, which goes before REDIS_HOST and the others.", variable="REDIS", is_secret=True
    )
    redis_host: str = _setting("localhost", _host, "Where Redis is.")
    redis_port: int = _setting(6379, _whole(1, 65535, "port; give a number from 1 to 65535"), "Its port.")
    redis_db: int = _setting(0, _whole(0, 999_999, "number of a database"), "The number of the database.")
    redis_username: str | None = _setting(None, _text, "Redis' user.")
    redis_password: str | None = _setting(None, _secret, "Its password.", is_secret=True)
    redis_tls: bool = _setting(False, _flag, "Whether Redis speaks TLS.")
    redis_keys_ttl_in_secs: int = _setting(
        604_800,
        _whole(None, None, "whole number of seconds; negative is never"),
        "For cached answers of Stigg's cloud; KEYS_TTL_IN_SECS is the same.",
        has_effect=False,
    )
    api_url: str = _setting("https://api.stigg.io", _url("http", "https"), "Stigg's API.", has_effect=False)
    edge_enabled: bool = _setting(True, _flag, "Whether Stigg's edge is asked.", has_effect=False)
    edge_api_url: str = _setting("https://edge.api.stigg.io", _url("http", "https"), "Its address.", has_effect=False)
    ws_enabled: bool = _setting(True, _flag, "Whether Stigg's cloud tells of changes.", has_effect=False)
    ws_url: str = _setting("wss://api.stigg.io", _url("ws", "wss"), "Where it does.", has_effect=False)
    cache_max_size_bytes: int | None = _setting(
        None, _whole(1, None, "number of bytes"), "Bound of the cache of Stigg's sidecar.", has_effect=False
    )

    @classmethod
    def read(cls, environ: Mapping[str, str], options: Mapping[str, str | None] = MappingProxyType({})) -> Settings:
        """The settings of these variables, and of the options by the names of their fields. Empty variables count as
        absent. Those of Redis are read only where ``REDIS_ENVIRONMENT_PREFIX`` turns it on: containers inherit others
        of their names.

        Raises:
            ConfigError: values are wrong; the message names every one, and the remedy.
        """
        values, faults = {}, []
        for name, (source, text) in _given(environ, options).items():
            try:
                values[name] = _FIELDS[name].metadata["reader"](text)
            except ValueError as error:
                faults.append(f"{source}: {error}")
        made = cls(**values)
        if made.require_api_key and not made.server_api_key:
            faults.append("REQUIRE_API_KEY: there is no key to require; set SERVER_API_KEY")
        if (made.tls_cert_file is None) is not (made.tls_key_file is None):
            faults.append("STIGG_SIDECAR_TLS_CERT_FILE: a certificate and its key go together; name both")
        if made.tls_client_ca_file and not made.tls_cert_file:
            faults.append("STIGG_SIDECAR_TLS_CLIENT_CA_FILE: clients show certificates over TLS; name --tls-cert, too")
        if made.redis_environment_prefix and made.state:
            faults.append("STIGG_SIDECAR_STATE: usage is kept in Redis (REDIS_ENVIRONMENT_PREFIX); keep one of them")
        if made.redis and not made.redis_environment_prefix:
            faults.append("STIGG_SIDECAR_REDIS: set REDIS_ENVIRONMENT_PREFIX, too, with what keys begin with")
        if faults:
            raise ConfigError("; ".join(faults))
        return made

    @property
    def redis_url(self) -> str | None:
        """Where usage is kept; None without Redis. It may hold a password."""
        if not self.redis_environment_prefix:
            return None
        if self.redis:
            return self.redis
        user, password = (quote(part or "", safe="") for part in (self.redis_username, self.redis_password))
        access = f"{user}:{password}@" if user or password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return f"redis{'s' if self.redis_tls else ''}://{access}{host}:{self.redis_port}/{self.redis_db}"


_FIELDS = {entry.name: entry for entry in fields(Settings)}
VARIABLES: Mapping[str, str] = {
    name: PREFIX + entry.metadata["variable"] if entry.metadata["variable"] else name.upper()
    for name, entry in _FIELDS.items()
}
"""The variable of each setting."""


def configure_settings(parser: ArgumentParser) -> None:
    """Give a parser the options; those that are not given are None."""
    for name, entry in _FIELDS.items():
        if entry.metadata["option"]:
            default, meaning = entry.metadata["default"], entry.metadata["meaning"]
            shown = f" Default: {default}." if isinstance(default, str | int) else ""
            read = f"{meaning} Also the variable {VARIABLES[name]}.{shown}"
            # One that is given again is added to the others; where there can be one, the last one counts.
            parser.add_argument(entry.metadata["option"], dest=name, metavar=name.upper(), action="append", help=read)


def options_of(given: Mapping[str, Any]) -> dict[str, str | None]:
    """Those of parsed arguments that are settings."""
    return {name: _joined(name, given.get(name)) for name, entry in _FIELDS.items() if entry.metadata["option"]}


def described(environ: Mapping[str, str], options: Mapping[str, str | None] = MappingProxyType({})) -> Iterator[str]:
    """A line for each setting: the variable, its value with secrets masked, and where that is from. Raises
    ``ConfigError`` as :meth:`Settings.read` does."""
    settings, given = Settings.read(environ, options), _given(environ, options)
    for name, entry in _FIELDS.items():
        value = getattr(settings, name)
        if entry.metadata["is_secret"] and value is not None:
            value = _MASK
        source = given[name][0] if name in given else "default"
        effect = "" if entry.metadata["has_effect"] else ", without effect here"
        yield f"{VARIABLES[name]}={_spelled(value)}  # {source}{effect}"


def warn(environ: Mapping[str, str]) -> None:
    """Log the variables that are set and have no effect, and those of our prefix that nobody knows: each kind once."""
    given = _given(environ, {})
    idle = [VARIABLES[name] for name in given if not _FIELDS[name].metadata["has_effect"]]
    if idle:
        logger.warning("without effect on the local sidecar, which has no cloud behind it: %s", ", ".join(idle))
    if not environ.get(VARIABLES["redis_environment_prefix"]):
        of_redis = [VARIABLES[name] for name in _FIELDS if name.startswith("redis_") and environ.get(VARIABLES[name])]
        if of_redis:
            logger.info("Redis is not used without REDIS_ENVIRONMENT_PREFIX; not read: %s", ", ".join(of_redis))
    unknown = sorted(key for key in environ if key.startswith(PREFIX) and key not in VARIABLES.values())
    if unknown:
        logger.warning("unknown variables of the local sidecar: %s", ", ".join(map(_nearest, unknown)))


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a sidecar that is configured by its parent alone."""
    own = {*VARIABLES.values(), *_KEYS_TTL}
    return {key: value for key, value in environ.items() if key not in own}


def _given(environ: Mapping[str, str], options: Mapping[str, str | None]) -> dict[str, tuple[str, str]]:
    """Where each setting is from, and its text; without those that are left at their default."""
    found = {}
    uses_redis = bool(environ.get(VARIABLES["redis_environment_prefix"]))
    for name, entry in _FIELDS.items():
        names = _KEYS_TTL if VARIABLES[name] in _KEYS_TTL else (VARIABLES[name],)
        for variable in names:
            if environ.get(variable) and (uses_redis or not name.startswith("redis_")):
                found[name] = (variable, environ[variable])
        option = options.get(name)
        if option is not None:
            found[name] = (entry.metadata["option"], option)
    return found


def _joined(name: str, given: str | list[str] | None) -> str | None:
    if not isinstance(given, list):
        return given
    return " ".join(given) if name == "faults" else given[-1]


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Mapping):
        return f"{len(value)} given" if value else ""
    return "" if value is None else str(value)


def _nearest(variable: str) -> str:
    own = {name.removeprefix(PREFIX): name for name in VARIABLES.values() if name.startswith(PREFIX)}
    close = get_close_matches(variable.removeprefix(PREFIX), own, n=1)
    return f"{variable} (did you mean {own[close[0]]}?)" if close else variable

"""The sidecar's address, and how it is reached: in plaintext or by TLS, straight or through a proxy."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import grpc

from stigg_guard.channel.tls import Authority, read_authority, tls_fault
from stigg_guard.errors import ConfigError
from stigg_guard.settings.urls import is_api_key
from stigg_guard.wire import API_KEY

# gRPC waits up to two minutes between attempts to connect: right for a network, wrong for a sidecar on this host.
# Channels of equal options would share their connections, those that are dead or a parent's as well.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # which is how long gRPC lets one attempt last: a busy host is slow
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),  # gRPC's error would look as if the sidecar had turned us away
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)

_UNIX = "unix:"

# Of each, gRPC takes the first that is set.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Target:
    """A sidecar's ``host`` and ``port``; without an ``authority`` it speaks plaintext. ``metadata`` goes with each call
    and may hold a key."""

    host: str
    port: int
    authority: Authority | None
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        host: str,
        port: int | str,
        tls_ca_file: str | os.PathLike[str] | None = None,
        tls_cert_file: str | os.PathLike[str] | None = None,
        tls_key_file: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
    ) -> Target:
        """The target that these settings of a client name.

        Raises:
            ConfigError: the host, the port or the key is none, or a file cannot be read or holds no certificate.
        """
        if tls_ca_file is None and (tls_cert_file or tls_key_file):
            raise ConfigError("TLS_CERT_FILE: a certificate of our own is shown over TLS; name TLS_CA_FILE, too")
        if api_key is not None and not is_api_key(api_key):
            raise ConfigError("SIDECAR_API_KEY: expected a text of ASCII without spaces; copy it again")
        authority = None if tls_ca_file is None else read_authority(tls_ca_file, tls_cert_file, tls_key_file)
        metadata = () if api_key is None else ((API_KEY, api_key),)
        return cls(_checked_host(host), checked_port("remote_sidecar_port", port), authority, metadata)

    @property
    def address(self) -> str:
        """As gRPC takes it, and errors show it."""
        if self.host.startswith(_UNIX):
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def proxy(self) -> str:
        """The proxy of the environment on the way, as gRPC chooses it, without its password; empty if there is none."""
        variable = next((name for name in _PROXY_VARIABLES if name in os.environ), "")
        place = _place_of(os.environ.get(variable, ""))
        excepted = next((os.environ[name] for name in _NO_PROXY_VARIABLES if name in os.environ), "")
        straight = self._is_here or any(_covers(entry.strip(), self.host) for entry in excepted.split(",") if entry)
        return f"{place} of the variable {variable}" if place and not straight else ""

    def open(self) -> grpc.Channel:
        """A channel that shares no connection with another one. It connects with its first call."""
        _adapt_to_gevent()
        options = (*_OPTIONS, ("grpc.enable_http_proxy", int(not self._is_here)))
        if self.authority is None:
            return grpc.insecure_channel(self.address, options=options)
        credentials = grpc.ssl_channel_credentials(
            self.authority.pem, private_key=self.authority.key, certificate_chain=self.authority.certificate
        )
        return grpc.secure_channel(self.address, credentials, options=options)

    def tls_fault(self, timeout: float) -> str:
        """What is wrong as to TLS, with the remedy; empty if nothing is known to be."""
        straight = not self.host.startswith(_UNIX) and not self.proxy
        return tls_fault(self.host, self.port, self.authority, timeout) if straight else ""

    @property
    def _is_here(self) -> bool:
        """Whether it is on this machine, where no proxy has a part."""
        if self.host.startswith(_UNIX) or f".{self.host.rstrip('.').lower()}".endswith(".localhost"):
            return True
        with suppress(ValueError):
            address = ip_address(self.host)
            return (getattr(address, "ipv4_mapped", None) or address).is_loopback
        return False


def checked_port(name: str, port: int | str, *, lowest: int = 1) -> int:
    """The number of a port, which is a text when it comes from the environment.

    Raises:
        ConfigError: it is none; the message names the setting.
    """
    digits = str(port)
    if isinstance(port, bool) or not (digits.isascii() and digits.isdigit() and lowest <= int(digits) <= 65535):
        raise ConfigError(f"{name}: expected a whole number from {lowest} to 65535, not {port!r}")
    return int(digits)


def _checked_host(host: str) -> str:
    if isinstance(host, str) and host.startswith(f"{_UNIX}/"):
        return host
    bare = host if isinstance(host, str) else ""
    if ":" in bare:
        bare = bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare
        with suppress(ValueError):
            return str(ip_address(bare))
    if not bare or not bare.isprintable() or set(bare) & set(" :/@?#,[]"):
        raise ConfigError(
            f"remote_sidecar_host: expected a name or an address alone, as 'sidecar' or '10.0.0.5', not {host!r}; its "
            "port is remote_sidecar_port"
        )
    return bare


def _place_of(proxy: str) -> str:
    """Host and port of a proxy's URL; empty if gRPC would not go there."""
    with suppress(ValueError):
        url = urlsplit(proxy)
        return url.netloc.rpartition("@")[2] if url.scheme == "http" else ""
    return ""


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of ``no_proxy`` is for the host: the end of its name, or a network that it is in."""
    if host.lower().endswith(entry.lower()):
        return True
    with suppress(ValueError):
        return "/" in entry and ip_address(host) in ip_network(entry, strict=False)
    return False


def _adapt_to_gevent() -> None:
    """Under gevent's monkey patches a blocking gRPC call would stop every greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        import grpc.experimental.gevent

        grpc.experimental.gevent.init_gevent()

"""The authority that a sidecar's certificate is checked by, and what is wrong when no connection can be made."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from stigg_guard.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Authority:
    """The certificates of a PEM file."""

    pem: bytes
    context: ssl.SSLContext


def read_authority(path: str | os.PathLike[str]) -> Authority:
    """The authority in a PEM file.

    Raises:
        ConfigError: the file cannot be read, or holds no certificate.
    """
    context = _context()
    try:
        pem = Path(path).read_bytes()
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(f"TLS_CA_FILE: {path} holds no certificate; name the authority's PEM file") from None
    except OSError as error:
        raise ConfigError(f"TLS_CA_FILE: {path} cannot be read: {error.strerror}") from error
    return Authority(pem, context)


def tls_fault(host: str, port: int, authority: Authority | None, timeout: float) -> str:
    """What keeps us and the sidecar from a connection as to TLS, with the remedy; empty if nothing, or nobody knows.

    A handshake of our own finds it: what gRPC says of it changes from version to version.
    """
    place = f"{host} port {port}"
    try:
        with socket.create_connection((host, port), timeout) as plain:
            (authority.context if authority else _trusting()).wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message.rstrip(".")
        return f"the certificate of {place} is not accepted: {reason}; renew it, or look at TLS_CA_FILE"
    except ssl.SSLError as error:
        remedy = "look whether it speaks plaintext, and at TLS_CA_FILE"
        return f"{place} does not answer as TLS does ({error.reason}); {remedy}" if authority else ""
    except (OSError, ValueError):  # ValueError: the host is written as no certificate can name it
        return ""
    return "" if authority else f"{place} speaks TLS; name the authority of its certificate in TLS_CA_FILE"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    return context


def _trusting() -> ssl.SSLContext:
    """For finding out whether TLS is spoken at all; nothing is sent over it."""
    context = _context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

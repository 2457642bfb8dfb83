"""The authority that a sidecar's certificate is checked by, and what is wrong when no connection can be made."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from stigg_guard.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Authority:
    """The certificates of a PEM file, and our own certificate with its key, for a sidecar that asks for one."""

    pem: bytes
    context: ssl.SSLContext
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def read_authority(
    path: str | os.PathLike[str],
    cert_file: str | os.PathLike[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> Authority:
    """The authority in a PEM file, and our own certificate and key in two others.

    Raises:
        ConfigError: a file cannot be read, holds no certificate, or certificate and key do not belong together.
    """
    context = _context()
    try:
        pem = Path(path).read_bytes()
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(f"TLS_CA_FILE: {path} holds no certificate; name the authority's PEM file") from None
    except OSError as error:
        raise ConfigError(f"TLS_CA_FILE: {path} cannot be read: {error.strerror}") from error
    if cert_file is None or key_file is None:
        if cert_file is not key_file:
            raise ConfigError("TLS_CERT_FILE, TLS_KEY_FILE: a certificate and its key go together; name both")
        return Authority(pem, context)
    try:
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
        return Authority(pem, context, Path(cert_file).read_bytes(), Path(key_file).read_bytes())
    except ssl.SSLError:
        raise ConfigError(
            f"TLS_CERT_FILE, TLS_KEY_FILE: {cert_file} and {key_file} are no certificate and its key without password"
        ) from None
    except OSError as error:
        raise ConfigError(f"TLS_CERT_FILE, TLS_KEY_FILE: cannot be read: {error.strerror}") from None


def tls_fault(host: str, port: int, authority: Authority | None, timeout: float) -> str:
    """What keeps us and the sidecar from a connection as to TLS, with the remedy; empty if nothing, or nobody knows.

    A handshake of our own finds it: what gRPC says of it changes from version to version.
    """
    place = f"{host} port {port}"
    try:
        context = authority.context if authority else _trusting()
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            is_turned_away = authority is not None and _ends(secure)
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message.rstrip(".")
        return f"the certificate of {place} is not accepted: {reason}; renew it, or look at TLS_CA_FILE"
    except ssl.SSLError as error:
        remedy = "look whether it speaks plaintext, and at TLS_CA_FILE"
        return f"{place} does not answer as TLS does ({error.reason}); {remedy}" if authority else ""
    except (OSError, ValueError):  # ValueError: the host is written as no certificate can name it
        return ""
    if is_turned_away:
        remedy = "look whether it asks for a certificate of ours, TLS_CERT_FILE"
        return f"{place} ends the connection after the TLS handshake; {remedy}"
    return "" if authority else f"{place} speaks TLS; name the authority of its certificate in TLS_CA_FILE"


def _ends(secure: ssl.SSLSocket) -> bool:
    """Whether the server, which speaks first, ends the connection instead: it looks at our certificate only now."""
    try:
        return not secure.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


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

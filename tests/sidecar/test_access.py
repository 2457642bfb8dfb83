"""Who may call: the key that gRPC calls carry, and certificates of the server and of clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import trustme

from sidecar.contract import DEMO, Client
from stigg_guard import Config, ConfigError, Guard, SidecarUnauthenticated, SidecarUnavailable, Stigg
from stigg_guard.errors import SidecarStartError
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar, Tls
from stigg_guard.sidecar.settings import Settings
from stigg_guard.wire.sidecar_pb2 import GetBooleanEntitlementRequest, ReportUsageRequest

ASK = GetBooleanEntitlementRequest(customer_id=DEMO, feature_id="feature-exports")


class TestKey:
    @pytest.fixture
    def locked(self, engine: Engine) -> Iterator[Sidecar]:
        with Sidecar(engine, api_key="server-key", require_api_key=True) as sidecar:
            yield sidecar

    def place(self, sidecar: Sidecar) -> dict[str, Any]:
        host, _, port = sidecar.address.rpartition(":")
        return {"remote_sidecar_host": host, "remote_sidecar_port": port, "timeout": 5.0}

    def test_a_call_with_it_is_answered(self, locked: Sidecar) -> None:
        with Stigg(sidecar_api_key="server-key", **self.place(locked)) as stigg:
            assert stigg.get_boolean_entitlement(ASK).has_access
            report = ReportUsageRequest(customer_id=DEMO, feature_id="feature-templates", value=1)
            assert stigg.report_usage(report).current_usage == 4
        with Guard(Config(sidecar=locked.address, sidecar_api_key="server-key", ledger="memory://")) as guard:
            assert guard.check("feature-exports", customer=DEMO)

    @pytest.mark.parametrize("key", [None, "another", "server-keys"])
    def test_a_call_without_it_is_refused_and_counted(self, locked: Sidecar, key: str | None) -> None:
        with (
            Stigg(sidecar_api_key=key, **self.place(locked)) as stigg,
            pytest.raises(SidecarUnauthenticated, match="send the sidecar's key as x-api-key") as refused,
        ):
            stigg.get_boolean_entitlement(ASK)
        assert "server-key " not in str(refused.value)
        text = requests.get(f"http://{locked.http_address}/metrics", timeout=10).text
        assert "sidecar_invalid_api_key_errors_total 1.0" in text

    def test_a_key_in_binary_is_refused_in_order(self, locked: Sidecar) -> None:
        with grpc.insecure_channel(locked.address) as channel:
            client = Client(channel)
            with pytest.raises(grpc.RpcError) as refused:
                client("GetBooleanEntitlement", key="ignored", customer_id=DEMO, feature_id="feature-exports")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    def test_a_wrong_key_of_the_graphql_api_is_counted(self, locked: Sidecar) -> None:
        place = f"http://{locked.http_address}"
        requests.post(f"{place}/graphql", json={"query": "{x}"}, headers={"X-API-KEY": "guess"}, timeout=10)
        assert "sidecar_invalid_api_key_errors_total 1.0" in requests.get(f"{place}/metrics", timeout=10).text

    def test_a_key_that_is_none_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(ConfigError, match="SIDECAR_API_KEY: expected") as refused:
            Stigg(remote_sidecar_host="sidecar", sidecar_api_key="two words")
        assert "two words" not in str(refused.value)
        assert "secret" not in repr(Config(sidecar_api_key="secret"))


class Files:
    """An authority, and certificates of it in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()

    def ca(self) -> str:
        path = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(path))
        return str(path)

    def pair(self, name: str, authority: trustme.CA | None = None) -> tuple[str, str]:
        """A certificate for a name, and its key."""
        made = (authority or self.authority).issue_cert(name)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        made.cert_chain_pems[0].write_to_path(str(certificate))
        made.private_key_pem.write_to_path(str(key))
        return str(certificate), str(key)


class TestCertificates:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Files:
        return Files(tmp_path)

    @pytest.fixture
    def port(self, engine: Engine, files: Files) -> Iterator[str]:
        """That of a sidecar that asks for certificates."""
        certificate, key = files.pair("localhost")
        settings = Settings(tls_cert_file=certificate, tls_key_file=key, tls_client_ca_file=files.ca())
        with Sidecar(engine, "localhost", tls=Tls.of(settings)) as sidecar:
            yield sidecar.address.rpartition(":")[2]

    def test_a_client_with_one_is_answered(self, port: str, files: Files) -> None:
        certificate, key = files.pair("client")
        config = Config(
            sidecar=f"localhost:{port}",
            tls_ca_file=files.ca(),
            tls_cert_file=certificate,
            tls_key_file=key,
            ledger="memory://",
            timeout=5,
        )
        with Guard(config) as guard:
            assert guard.check("feature-exports", customer=DEMO)

    def test_a_client_without_one_or_with_another_s_is_not(self, port: str, files: Files) -> None:
        certificate, key = files.pair("stranger", trustme.CA())
        for own in ({}, {"tls_cert_file": certificate, "tls_key_file": key}):
            with (
                Stigg(
                    remote_sidecar_host="localhost",
                    remote_sidecar_port=port,
                    tls_ca_file=files.ca(),
                    timeout=5.0,
                    **own,
                ) as stigg,
                pytest.raises(SidecarUnavailable),
            ):
                stigg.get_boolean_entitlement(ASK)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"tls_cert_file": "x", "tls_key_file": "y"}, "name TLS_CA_FILE, too"),
            ({"tls_ca_file": "CA", "tls_cert_file": "x"}, "name both"),
            ({"tls_ca_file": "CA", "tls_cert_file": "/nowhere", "tls_key_file": "/nowhere"}, "cannot be read"),
            ({"tls_ca_file": "CA", "tls_cert_file": "CA", "tls_key_file": "CA"}, "are no certificate and its key"),
        ],
    )
    def test_wrong_files_are_refused(self, options: dict[str, str], said: str, files: Files) -> None:
        given = {name: files.ca() if value == "CA" else value for name, value in options.items()}
        with pytest.raises(ConfigError, match=said):
            Stigg(remote_sidecar_host="localhost", **given)

    def test_wrong_settings_of_the_sidecar_are_refused(self, files: Files) -> None:
        with pytest.raises(ConfigError, match="go together"):
            Settings.read({"STIGG_SIDECAR_TLS_CERT_FILE": "x"})
        with pytest.raises(ConfigError, match="TLS_CLIENT_CA_FILE: clients show certificates over TLS"):
            Settings.read({"STIGG_SIDECAR_TLS_CLIENT_CA_FILE": "x"})
        with pytest.raises(ConfigError, match="/nowhere: cannot be read"):
            Tls.of(Settings(tls_cert_file="/nowhere", tls_key_file="/nowhere"))
        assert Tls.of(Settings()) is None

    def test_files_that_make_no_certificate_are_told_as_such(self, engine: Engine, files: Files) -> None:
        certificate, key = files.pair("localhost")
        for wrong in (
            Settings(tls_cert_file=key, tls_key_file=certificate),
            Settings(tls_cert_file=certificate, tls_key_file=key, tls_client_ca_file=key),
        ):
            with pytest.raises(SidecarStartError, match="TLS: gRPC takes neither file"):
                Sidecar(engine, tls=Tls.of(wrong)).start()

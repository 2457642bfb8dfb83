"""The way to the sidecar's host: proxies, certificates and the settings of both."""

from __future__ import annotations

import datetime
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from channel.books import CHECK, Books, check, is_unknown
from rpc_server import http_proxy, serving
from stigg_guard import ConfigError, LocalSidecarConfig, SidecarUnavailable, Stigg
from stigg_guard.channel import Channel
from stigg_guard.channel.target import Target


class TestProxies:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)

    @pytest.mark.parametrize(
        "name", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"]
    )
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.5.6.7", "localhost", "LOCALHOST"])
    def test_have_no_part_in_what_is_on_this_machine(
        self, name: str, host: str, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        with serving(books.handlers, host="0.0.0.0") as port, closing(Channel(host, port)) as channel:
            assert check(channel).has_access

    @pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")
    @pytest.mark.parametrize("host", ["::1", "[::1]", "::ffff:127.0.0.1"])
    def test_have_no_part_in_what_is_on_this_machine_by_ipv6(
        self, host: str, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
        with serving(books.handlers, host="[::]") as port, closing(Channel(host, port)) as channel:
            assert check(channel).has_access

    def test_have_no_part_in_sockets_of_a_file_system(
        self, tmp_path: Path, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
        place = f"unix:{tmp_path}/sidecar.sock"
        with serving(books.handlers, host=place), closing(Channel(place, 80)) as channel:
            assert (check(channel).has_access, channel.address) == (True, place)

    def test_are_used_on_the_way_to_others(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        with http_proxy(port) as (proxy, asked), closing(Channel("sidecar.example", 80)) as channel:
            monkeypatch.setenv("https_proxy", f"http://somebody:secret@127.0.0.1:{proxy}")
            assert check(channel).has_access
            assert asked == ["CONNECT sidecar.example:80 HTTP/1.1"]

    def test_are_named_in_errors_without_their_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "http://somebody:secret@127.0.0.1:9")
        with closing(Channel("sidecar.example", 80)) as channel, pytest.raises(SidecarUnavailable) as failed:
            check(channel)
        assert "through the proxy 127.0.0.1:9 of the variable https_proxy" in str(failed.value)
        assert "secret" not in str(failed.value)

    @pytest.mark.parametrize(
        ("variables", "named"),
        [
            ({"grpc_proxy": "http://a:1", "https_proxy": "http://b:2"}, "a:1 of the variable grpc_proxy"),
            ({"http_proxy": "http://c:3"}, "c:3 of the variable http_proxy"),
            ({"http_proxy": "http://c:3", "no_proxy": "other.example, sidecar.example"}, ""),
            ({"http_proxy": "http://c:3", "no_proxy": ".example"}, ""),
            ({"http_proxy": "http://c:3", "no_proxy": "sidecar.example", "no_grpc_proxy": "x"}, "c:3 of the variable"),
            ({"grpc_proxy": "", "http_proxy": "http://c:3"}, ""),
            ({"http_proxy": "socks5://c:3"}, ""),
            ({"http_proxy": "http://[c"}, ""),
        ],
    )
    def test_are_chosen_as_grpc_does(
        self, variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert Target.of("sidecar.example", 80, None).proxy.startswith(named)
        assert bool(Target.of("sidecar.example", 80, None).proxy) is bool(named)

    def test_leave_out_networks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://c:3")
        monkeypatch.setenv("no_proxy", "10.0.0.0/8")
        assert Target.of("10.1.2.3", 80, None).proxy == ""
        assert Target.of("11.1.2.3", 80, None).proxy == "c:3 of the variable http_proxy"


class Certificates:
    """Authorities and what a server shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ours = trustme.CA()

    def server(self, name: str = "localhost", *, asks_for_ours: bool = False, **options: Any) -> grpc.ServerCredentials:
        issued = self.ours.issue_cert(name, **options)
        shown = [(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())]
        accepted = self.ours.cert_pem.bytes() if asks_for_ours else None
        return grpc.ssl_server_credentials(shown, accepted, require_client_auth=asks_for_ours)

    def file(self, authority: trustme.CA) -> Path:
        path = self._folder / "ca.pem"
        authority.cert_pem.write_to_path(str(path))
        return path


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


class TestCertificates:
    LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)

    def test_of_another_authority(self, certificates: Certificates, books: Books) -> None:
        self._is_told(
            books,
            certificates.server(),
            certificates.file(trustme.CA()),
            "is not accepted: .*; renew it, or look at TLS_CA_FILE",
        )

    def test_that_are_expired(self, certificates: Certificates, books: Books) -> None:
        shown = certificates.server(not_before=self.LONG_AGO, not_after=self.LONG_AGO + datetime.timedelta(days=1))
        self._is_told(books, shown, certificates.file(certificates.ours), "is not accepted: certificate has expired")

    def test_of_another_host(self, certificates: Certificates, books: Books) -> None:
        shown = certificates.server("other.example")
        self._is_told(books, shown, certificates.file(certificates.ours), "is not accepted: Hostname mismatch")

    def test_that_nobody_shows(self, certificates: Certificates, books: Books) -> None:
        self._is_told(books, None, certificates.file(certificates.ours), "does not answer as TLS does")

    def test_that_nobody_asks_for(self, certificates: Certificates, books: Books) -> None:
        self._is_told(books, certificates.server(), None, "speaks TLS; name the authority")

    def test_that_we_have_none_of(self, certificates: Certificates, books: Books) -> None:
        shown = certificates.server(asks_for_ours=True)
        self._is_told(
            books, shown, certificates.file(certificates.ours), "asks for a certificate of ours, TLS_CERT_FILE"
        )

    def test_that_went_bad_meanwhile(self, certificates: Certificates, books: Books) -> None:
        trusted = certificates.file(certificates.ours)
        with serving(books.handlers, host="localhost", tls=certificates.server()) as port:
            channel = Channel("localhost", port, tls_ca_file=trusted)
            check(channel)
        certificates.ours = trustme.CA()
        with (
            serving(books.handlers, host="localhost", port=port, tls=certificates.server()),
            closing(channel),
            pytest.raises(SidecarUnavailable, match="is not accepted"),
        ):
            check(channel)

    @staticmethod
    def _is_told(books: Books, shown: grpc.ServerCredentials | None, trusted: Path | None, words: str) -> None:
        with (
            serving(books.handlers, host="localhost", tls=shown) as port,
            closing(Channel("localhost", port, tls_ca_file=trusted)) as channel,
        ):
            with pytest.raises(SidecarUnavailable, match=words) as failed:
                check(channel)
            assert "start it" not in str(failed.value)
            assert is_unknown(channel) is False


class TestSettings:
    @pytest.mark.parametrize(
        "host", ["", " ", "http://sidecar", "sidecar:80", "side car", "a/b", "u@h", "[::1", "::g", 5]
    )
    def test_a_host_that_is_none_is_told(self, host: Any) -> None:
        with pytest.raises(ConfigError, match=r"remote_sidecar_host: expected .*; its port is remote_sidecar_port"):
            Stigg(remote_sidecar_host=host)

    @pytest.mark.parametrize("port", [0, 65536, -1, "x", "", 80.0, True, None])
    def test_a_port_that_is_none_is_told(self, port: Any) -> None:
        with pytest.raises(ConfigError, match="remote_sidecar_port: expected a whole number from 1 to 65535, not"):
            Stigg(remote_sidecar_host="sidecar", remote_sidecar_port=port)
        with pytest.raises(ConfigError, match="local_sidecar_port: expected"):
            Stigg(local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=port or "0x")

    @pytest.mark.parametrize("name", ["timeout", "report_timeout"])
    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e300, "1", None, True])
    def test_a_timeout_that_is_none_is_told(self, name: str, seconds: Any) -> None:
        with pytest.raises(ConfigError, match=f"^{name}: expected a number of seconds above 0 and up to a year, not"):
            Stigg(remote_sidecar_host="sidecar", **{name: seconds})

    def test_ports_of_the_environment_are_texts(self, port: int) -> None:
        with Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=str(port)) as client:
            assert client.get_metered_entitlement(CHECK).has_access

    @pytest.mark.parametrize(
        "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"]
    )
    def test_a_file_without_certificates_is_told(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text(text)
        with pytest.raises(ConfigError, match=r"TLS_CA_FILE: .*ca\.pem holds no certificate"):
            Stigg(remote_sidecar_host="sidecar", tls_ca_file=tmp_path / "ca.pem")

    @pytest.mark.parametrize("file", ["nowhere.pem", "."])
    def test_a_file_that_cannot_be_read_is_told(self, file: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"TLS_CA_FILE: .* cannot be read"):
            Stigg(remote_sidecar_host="sidecar", tls_ca_file=tmp_path / file)

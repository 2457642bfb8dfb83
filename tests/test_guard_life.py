"""What a guard is made of and asks: settings, a file, nothing at all; and that it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from conftest import ManualClock
from stigg_guard import (
    ClientClosed,
    Config,
    ConfigError,
    Fallback,
    FeatureDenied,
    Guard,
    NotSupported,
    OfflineReports,
    ReportUsageRequest,
    SidecarUnavailable,
    Source,
    Stigg,
)
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"
NOBODY_LISTENS = "127.0.0.1:1"

MakeGuard = Callable[..., Guard]


class TestLife:
    def test_disabled_allows_everything_and_asks_nobody(self, make_guard: MakeGuard) -> None:
        guard = make_guard(SIDECAR=NOBODY_LISTENS, ENABLED=False)
        assert guard.check("feature-x", customer=CUSTOMER).is_fallback
        with guard.consume("feature-x", 3, customer=CUSTOMER):
            pass
        guard.report("feature-x", 3, customer=CUSTOMER)
        assert guard.reload(CUSTOMER)
        assert guard.entitlements(CUSTOMER) == {}
        assert guard.flush() == 0

    @pytest.fixture
    def offline(self, tmp_path: Path) -> dict[str, Any]:
        """The settings of a guard that answers from a file."""
        file = tmp_path / "catalog.json"
        file.write_text('{"customers": {"c": {"entitlements": {"f": {"type": "METERED", "usageLimit": 5}}}}}')
        return {"sidecar": "offline", "offline_file": str(file)}

    def test_a_file_answers_until_the_sidecar_has_answered_once(self, offline: dict[str, Any]) -> None:
        engine = Engine(demo_catalog(), Store(None))
        fallback = Fallback(has_access=True)
        with Sidecar(engine) as sidecar:
            address = sidecar.address
        clock = ManualClock()
        with Guard(
            Config(sidecar=address, offline_file=offline["offline_file"], ledger="memory://"), clock=clock
        ) as guard:
            seeded = guard.check("f", customer="c", requested_usage=5)
            assert (bool(seeded), seeded.source, seeded.usage_limit) == (True, Source.OFFLINE, 5)
            assert not guard.check("f", customer="c", requested_usage=6)
            with guard.consume("f", 1, customer="c"):
                pass
            assert guard.check("f", customer="nobody", fallback=fallback).is_fallback
            with pytest.raises(SidecarUnavailable):
                guard.check("f", customer="nobody")
            with Sidecar(engine, port=int(address.rpartition(":")[2])):
                for _ in range(100):  # gRPC does not connect again at once
                    clock.advance(10)
                    with suppress(SidecarUnavailable):
                        assert guard.check(TEMPLATES, customer=CUSTOMER).source is not Source.OFFLINE
                        break
                    threading.Event().wait(0.1)
            clock.advance(10)
            with pytest.raises(SidecarUnavailable):
                guard.check("f", customer="c")
        engine.close()

    def test_offline_answers_from_the_file_and_refuses_what_nobody_counts(self, offline: dict[str, Any]) -> None:
        with Guard(Config(**offline)) as guard:
            assert guard.check("f", customer="c").source is Source.OFFLINE
            assert guard.check("f", customer="c").source is Source.OFFLINE
            with pytest.raises(NotSupported, match="OFFLINE_REPORTS = keep"), guard.consume("f", 5, customer="c"):
                pytest.fail("the work must not begin")
            with pytest.raises(NotSupported, match="nothing is reported offline"):
                guard.report("f", 5, customer="c")

    def test_offline_it_may_count_in_the_process(self, offline: dict[str, Any]) -> None:
        with Guard(Config(**offline, offline_reports=OfflineReports.KEEP)) as guard:
            with guard.consume("f", 4, customer="c"):
                pass
            assert guard.flush() == 0
            assert guard.check("f", customer="c").current_usage == 4
            with pytest.raises(FeatureDenied), guard.consume("f", 2, customer="c"):
                pytest.fail("the limit is 5")

    def test_offline_it_may_ignore_usage(self, offline: dict[str, Any]) -> None:
        with Guard(Config(**offline, offline_reports=OfflineReports.IGNORE)) as guard:
            with guard.consume("f", 5, customer="c"):
                pass
            guard.report("f", 5, customer="c")
            assert guard.flush() == 0
            assert guard.check("f", customer="c").current_usage == 0

    @pytest.mark.parametrize("settings", [{"sidecar": "local"}, {"enabled": False}, {"sidecar": "offline"}])
    def test_needs_no_folder_where_nothing_outlives_it(
        self, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
        if settings.get("sidecar") == "offline":
            settings = {**settings, "offline_file": str(tmp_path / "catalog.json")}
            (tmp_path / "catalog.json").write_text('{"customers": {}}')
        with Guard(Config(**settings)) as guard:
            assert guard.flush() == 0
        with Guard(Config(sidecar=NOBODY_LISTENS)) as guard, pytest.raises(ConfigError, match="LEDGER: the folder"):
            guard.stats()

    def test_configured_from_the_environment_by_default(
        self, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STIGG_GUARD_SIDECAR", sidecar.address)
        with Guard() as guard:
            assert guard.check(TEMPLATES, customer=CUSTOMER)

    def test_uses_a_client_that_it_was_given_and_leaves_it_open(self, sidecar: Sidecar) -> None:
        host, _, port = sidecar.address.rpartition(":")
        with Stigg(remote_sidecar_host=host, remote_sidecar_port=int(port)) as stigg:
            with Guard(Config(), stigg=stigg) as guard:
                assert guard.check(TEMPLATES, customer=CUSTOMER)
            stigg.report_usage(ReportUsageRequest(customer_id=CUSTOMER, feature_id=TEMPLATES, value=1))

    def test_closed_says_so(self, make_guard: MakeGuard) -> None:
        guard = make_guard()
        guard.close()
        guard.close()
        with pytest.raises(ClientClosed, match="make a new one"):
            guard.check(TEMPLATES, customer=CUSTOMER)

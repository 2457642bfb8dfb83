"""Makes the client of a guard: of the sidecar, of a local one, of a file, or of Stigg's API."""

from __future__ import annotations

from typing import Any

from stigg_guard.client import ApiConfig, LocalSidecarConfig, Stigg
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.settings.readers import split_address
from stigg_guard.wire import Answerer

REPEATED_AT_ONCE = (0.0,)
"""The pauses before repetitions in the place of a sidecar: one repetition, for a connection that was closed. What is
known and the ledger bridge what lasts longer, and a view waits for neither."""


def cloud_answers(config: Config, clock: Clock) -> Answerer:
    """Stigg's API in the place of a sidecar, within its rate limits."""
    from stigg_guard.api import Api  # the library that it is asked with takes a tenth of a second
    from stigg_guard.cloud.answers import Cloud
    from stigg_guard.cloud.rates import gate_of

    assert config.api_key is not None  # the configuration saw to that
    api = Api(config.api_key, config.api_url, gate=gate_of(config, clock), pauses=REPEATED_AT_ONCE)
    return Cloud(api, now=clock.now)


def client_of(config: Config, clock: Clock) -> Stigg:
    """Makes the client that ``SIDECAR`` names."""
    options: dict[str, Any] = {"timeout": config.timeout}
    api = ApiConfig(config.api_key, config.api_url) if config.api_key else None
    if config.sidecar == "local":
        local = LocalSidecarConfig()
        return Stigg(
            api, local_sidecar_config=local, local_sidecar_port=0, local_sidecar_catalog=config.catalog, **options
        )
    if config.sidecar == "offline":
        return Stigg(api, offline_file=config.offline_file, offline_reports=config.offline_reports, **options)
    if config.sidecar == "cloud":
        return Stigg(api, answers=cloud_answers(config, clock), **options)
    host, port = split_address(config.sidecar)
    return Stigg(
        api,
        remote_sidecar_host=host,
        remote_sidecar_port=port,
        tls_ca_file=config.tls_ca_file,
        tls_cert_file=config.tls_cert_file,
        tls_key_file=config.tls_key_file,
        sidecar_api_key=config.sidecar_api_key,
        **options,
    )

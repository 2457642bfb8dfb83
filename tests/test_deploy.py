"""What is in deploy/: each file is held to what it configures, and to the tools that read it, where there are any."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from stigg_guard import Clock, Config, Guard
from stigg_guard.api.event_queue import EventQueueAccess
from stigg_guard.cache.service import CacheService, Figures
from stigg_guard.cache.sqs import Queue, QueueReader
from stigg_guard.cli.arguments import configure_cache_service
from stigg_guard.metrics import GuardCollector
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.settings import VARIABLES, Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
MANUAL = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")


def document(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def known_metrics() -> set[str]:
    """The names of all samples that a sidecar, a guard and a cache service expose."""
    metrics, service = Metrics(), Figures()
    url = "https://sqs.eu-west-1.amazonaws.com/1/q"
    access = EventQueueAccess("key", "https://edge.api.stigg.io", url)
    QueueReader(Queue(url, access, Clock()), lambda _: True, service.registry)
    metrics.seconds.labels("GetEntitlement")
    metrics.requests.labels("GetEntitlement", "OK")
    registries = (metrics.registry, service.registry)
    names = {sample.name for one in registries for family in one.collect() for sample in family.samples}
    with Guard(Config(sidecar="offline", offline_file=str(DEPLOY.parent / "tests" / "data" / "offline.json"))) as guard:
        names |= {sample.name for family in GuardCollector(guard).collect() for sample in family.samples}
    return names


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:sidecar|stigg_guard)_\w+", expression))


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Prometheus and Grafana


def rules() -> Iterator[Any]:
    for group in document("alerts.yml")["groups"]:
        yield from group["rules"]


def test_alerts_ask_for_metrics_that_there_are() -> None:
    assert set().union(*(named(rule["expr"]) for rule in rules())) <= known_metrics()


def test_alerts_of_the_manual_are_those_of_the_file() -> None:
    told = {rule["alert"]: rule for rule in rules()}
    for alert, expression in re.findall(r"- alert: (\w+).*\n  expr: (.+)\n", MANUAL):
        assert told[alert]["expr"] == expression


def test_promtool_takes_the_alerts() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    run("promtool", "check", "rules", str(DEPLOY / "alerts.yml"))


def test_panels_ask_for_metrics_that_there_are_and_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    asked = set().union(*(named(target["expr"]) for panel in panels for target in panel["targets"]))
    assert asked <= known_metrics()
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


# Containers


def test_the_image_runs_the_command_as_nobody_in_particular() -> None:
    variables = dict(re.findall(r"(\w+)=(\S+)", re.findall(r"^ENV (.+)$", CONTAINERFILE, re.MULTILINE)[0]))
    settings = Settings.read(variables)
    exposed = re.findall(r"^EXPOSE (.+)$", CONTAINERFILE, re.MULTILINE)[0].split()
    assert [str(settings.grpc_port), str(settings.http_port)] == exposed
    assert settings.host == "0.0.0.0"
    assert re.search(r"^USER (?!0|root)\w+$", CONTAINERFILE, re.MULTILINE)
    assert CONTAINERFILE.rstrip().endswith('ENTRYPOINT ["stigg-guard", "sidecar"]')


def test_compose_opens_ports_to_this_machine_alone_and_sets_what_is_known() -> None:
    services = document("compose.yaml")["services"]
    ours = [service for service in services.values() if "build" in service]
    sidecars = [service for service in ours if "entrypoint" not in service]
    assert (len(ours), len(sidecars)) == (3, 2)
    for service in sidecars:
        assert Settings.read(service["environment"]).redis_url == "redis://redis:6379/0"
        assert service["environment"].keys() <= set(VARIABLES.values())
        assert [port.rpartition(":")[2] for port in service["ports"]] == ["8433", "8080"]
    for service in ours:
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service["depends_on"]) <= services.keys()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    published = [port.split(":")[1] for service in ours for port in service["ports"]]
    assert len(set(published)) == len(published)


def test_the_cache_service_is_given_what_it_takes_and_probed_where_it_answers() -> None:
    service = document("compose.yaml")["services"]["cache-service"]
    assert_takes(service["entrypoint"], service["environment"])
    (port,) = service["ports"]
    probed = re.findall(r"http://127.0.0.1:(\d+)/readyz", CONTAINERFILE)  # the image's own health check
    assert [*probed, port.rpartition(":")[2]] == [service["entrypoint"][-1]] * 2


def assert_takes(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Whether the cache service takes the command line and the variables."""
    name, action, *options = command
    assert (name, action) == ("stigg-guard", "cache-service")
    parser = ArgumentParser()
    configure_cache_service(parser)
    parser.parse_args(options)
    config = Config.from_env(environment)
    CacheService(config, keep=60)


def test_compose_takes_the_file() -> None:
    file = str(DEPLOY / "compose.yaml")
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file)


# Kubernetes

DEPLOYMENTS = ("kubernetes/sidecar.yaml", "kubernetes/cache-service.yaml")


@pytest.mark.parametrize("name", DEPLOYMENTS)
@pytest.mark.parametrize("version", ["1.29", "1.33"])  # since 1.29 containers restart beside others
def test_kubernetes_takes_the_deployment(name: str, version: str) -> None:
    kubernetes_validate.validate(document(name), version, strict=True)


def test_the_pod_of_the_cache_service_is_given_what_it_takes_and_probed_where_it_answers() -> None:
    pod = document("kubernetes/cache-service.yaml")["spec"]["template"]["spec"]
    (beside,), (service,) = pod["initContainers"], pod["containers"]
    given = {one["name"]: one.get("value", "a-secret") for one in service["env"]}
    assert_takes(service["command"], given)
    assert given["STIGG_GUARD_SIDECAR"] == f"localhost:{beside['ports'][0]['containerPort']}"
    (port,) = service["ports"]
    assert str(port["containerPort"]) == service["command"][-1]
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert service[probe]["httpGet"] == {"path": path, "port": port["name"]}


def test_the_pod_s_sidecar_is_where_the_application_looks_and_is_probed_where_it_answers(sidecar: Sidecar) -> None:
    pod = document("kubernetes/sidecar.yaml")["spec"]["template"]["spec"]
    (beside,), (application,) = pod["initContainers"], pod["containers"]
    variables = {one["name"] for one in beside["env"]}
    assert variables <= set(VARIABLES.values())
    assert not [one for one in beside["env"] if "value" in one and ("KEY" in one["name"] or "PASSWORD" in one["name"])]
    ports = {port["name"]: port["containerPort"] for port in beside["ports"]}
    given = {one["name"].removeprefix("STIGG_GUARD_"): one["value"] for one in application["env"]}
    assert Config.from_mapping(given).sidecar == f"localhost:{ports['grpc']}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = beside[probe]["httpGet"]
        assert ports[asked["port"]] == 8080
        assert requests.get(f"http://{sidecar.http_address}{asked['path']}", timeout=10).json() == {"status": "UP"}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_selects_its_own_pods(name: str) -> None:
    spec = document(name)["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_values_of_stigg_s_chart_have_no_secret() -> None:
    values = document("kubernetes/stigg-chart-values.yaml")
    assert (values["serverApiKey"], values["persistentCaching"]) == ("", True)


# systemd


def test_the_unit_sets_what_is_known() -> None:
    unit = (DEPLOY / "stigg-sidecar.service").read_text(encoding="utf-8")
    settings = Settings.read(dict(re.findall(r"^Environment=(\w+)=(.+)$", unit, re.MULTILINE)))
    assert settings.state == "/var/lib/stigg-sidecar/state.sqlite3"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The command is not installed here where it is on a host.
    unit = (
        (DEPLOY / "stigg-sidecar.service")
        .read_text(encoding="utf-8")
        .replace("/opt/stigg-guard/bin/stigg-guard", "/bin/true")
    )
    (tmp_path / "stigg-sidecar.service").write_text(unit, encoding="utf-8")
    run("systemd-analyze", "verify", "--man=no", str(tmp_path / "stigg-sidecar.service"))

"""What is in deploy/: each file is held to what it configures, and to the tools that read it, where there are any."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from stigg_guard import Config, Guard
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
    """The names of all samples that a sidecar and a guard expose."""
    metrics = Metrics()
    metrics.seconds.labels("GetEntitlement")
    metrics.requests.labels("GetEntitlement", "OK")
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
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
    sidecars = [service for service in services.values() if "build" in service]
    assert len(sidecars) == 2
    for service in sidecars:
        assert Settings.read(service["environment"]).redis_url == "redis://redis:6379/0"
        assert service["environment"].keys() <= set(VARIABLES.values())
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service["depends_on"]) <= services.keys()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert [port.rpartition(":")[2] for port in service["ports"]] == ["8433", "8080"]
    published = [port.split(":")[1] for service in sidecars for port in service["ports"]]
    assert len(set(published)) == len(published)


# Kubernetes


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


def test_the_deployment_selects_its_own_pods() -> None:
    spec = document("kubernetes/sidecar.yaml")["spec"]
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

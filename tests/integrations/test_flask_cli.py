"""``flask stigg …``: the operators' commands with the app's own guard, over a real sidecar."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from flask import Blueprint, Flask
from jinja2 import DictLoader

from stigg_guard import Clock, Guard
from stigg_guard.flask import StiggGuard
from stigg_guard.ledger import State, UsageKey, Use, ledger_from_url
from stigg_guard.sidecar.server import Sidecar

ESSENTIALS = "customer-demo-01"
TEMPLATES = "feature-templates"
READY = "ready grpc="

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the app."""
    (tmp_path / "shop" / "templates").mkdir(parents=True)
    (tmp_path / "shop" / "views.py").write_text('requires_feature("feature-tempaltes")\n')
    (tmp_path / "shop" / "templates" / "page.html").write_text('{{ usage("feature-pages") }}\n')
    return tmp_path / "shop"


@pytest.fixture
def app(folder: Path, sidecar: Sidecar, tmp_path: Path) -> Iterator[Flask]:
    app = Flask("shop", root_path=str(folder), instance_path=str(tmp_path / "instance"))
    app.config.update(STIGG_GUARD_SIDECAR=sidecar.address, STIGG_GUARD_LEDGER=f"sqlite:///{tmp_path}/ledger.db")
    StiggGuard(app)
    yield app
    guard_of(app).close()


@pytest.fixture
def run(app: Flask) -> Run:
    """Runs ``flask stigg`` with these arguments."""
    runner = app.test_cli_runner()
    return lambda *arguments, **options: runner.invoke(args=["stigg", *arguments], **options)


def guard_of(app: Flask) -> Guard:
    with app.app_context():
        return StiggGuard().guard


def test_check_answers_for_one_feature(run: Run) -> None:
    answer = run("check", ESSENTIALS, TEMPLATES)
    assert (answer.exit_code, answer.stdout) == (0, f"{TEMPLATES}  yes  3 of 6 templates\n")


def test_check_of_what_is_denied_is_status_1(run: Run) -> None:
    answer = run("check", ESSENTIALS, TEMPLATES, "--requested-usage", "4")
    assert answer.exit_code == 1
    assert answer.stdout.startswith(f"{TEMPLATES}  no   REQUESTED_USAGE_EXCEEDING_LIMIT")


def test_check_without_a_feature_shows_all_that_the_plan_has(run: Run) -> None:
    assert run("check", ESSENTIALS).stdout == run("entitlements", ESSENTIALS).stdout
    answer = run("check", ESSENTIALS, "--requested-usage", "4")
    assert (answer.exit_code, "name it" in answer.output) == (2, True)


def test_check_prints_json_of_a_resource(run: Run) -> None:
    (answer,) = json.loads(run("check", ESSENTIALS, TEMPLATES, "--resource", "site-01", "--json").stdout)
    assert (answer["has_access"], answer["current_usage"]) == (True, 0)


def test_check_colours_the_answer_on_a_terminal(run: Run) -> None:
    assert "\x1b[32myes\x1b[0m" in run("check", ESSENTIALS, TEMPLATES, color=True).stdout


def test_entitlements_shows_all_that_the_plan_has(run: Run) -> None:
    answer = run("entitlements", ESSENTIALS)
    assert answer.exit_code == 0
    assert f"{TEMPLATES}         yes  3 of 6 templates\n" in answer.stdout


def test_an_error_is_told_with_status_2(run: Run) -> None:
    answer = run("entitlements", "nobody")
    assert (answer.exit_code, answer.stderr) == (2, "Error: customer_id: the sidecar knows no customer 'nobody'\n")


@pytest.mark.parametrize(("value", "used"), [("2", 5), ("-1", 2)])
def test_report_is_counted_when_the_command_ends(run: Run, app: Flask, value: str, used: float) -> None:
    answer = run("report", ESSENTIALS, TEMPLATES, value)
    assert (answer.exit_code, answer.stdout) == (0, f"reported {value}\n")
    guard_of(app).reload(ESSENTIALS)
    assert guard_of(app).check(TEMPLATES, customer=ESSENTIALS).current_usage == used


def test_report_sets_a_new_total(run: Run) -> None:
    assert run("report", ESSENTIALS, TEMPLATES, "5", "--set").stdout == "set to 5\n"


class TestLedger:
    @pytest.fixture
    def entries(self, app: Flask) -> dict[State, str]:
        """The ids of one dead and one unsent entry, which another process has left in the app's ledger."""
        ledger = ledger_from_url(str(guard_of(app).config.ledger), Clock())
        ledger.record(Use(UsageKey(ESSENTIALS, "", "no-feature"), 1))
        batch = ledger.take_batch(1, 30)
        assert batch is not None
        ledger.bury(batch.reports[0], "there is no such feature")
        ledger.record(Use(UsageKey(ESSENTIALS, "", TEMPLATES), 1))
        ids = {state: ledger.entries((state,), 1)[0].id for state in (State.DEAD, State.UNSENT)}
        ledger.close()
        return ids

    @pytest.mark.usefixtures("entries")
    def test_status_counts_each_state(self, run: Run) -> None:
        states = json.loads(run("ledger", "status", "--json").stdout)["states"]
        assert (states["dead"]["entries"], states["unsent"]["entries"]) == (1, 1)

    def test_status_of_one_that_was_never_used_makes_none(self, run: Run, tmp_path: Path) -> None:
        answer = run("ledger", "status")
        assert (answer.exit_code, "there is no file" in answer.stderr) == (2, True)
        assert list(tmp_path.glob("*.db")) == []

    @pytest.mark.usefixtures("entries")
    def test_list_shows_the_states_that_are_named(self, run: Run) -> None:
        found = json.loads(run("ledger", "list", "--state", "dead", "--state", "held", "--json").stdout)
        assert [entry["feature_id"] for entry in found] == ["no-feature"]

    @pytest.mark.usefixtures("entries")
    def test_list_says_on_standard_error_that_there_are_more(self, run: Run) -> None:
        assert run("ledger", "list", "--limit", "1").stderr == "there are more than these 1; raise --limit\n"

    def test_retry_makes_an_entry_unsent(self, run: Run, entries: dict[State, str]) -> None:
        expected = "1 unsent again: the application sends them, or flask stigg ledger drain\n"
        assert run("ledger", "retry", entries[State.DEAD]).stdout == expected

    @pytest.mark.usefixtures("entries")
    def test_discard_forgets_all_when_it_may(self, run: Run) -> None:
        assert run("ledger", "discard", "--all", "--yes").stdout == "1 discarded\n"

    @pytest.mark.usefixtures("entries")
    def test_discard_without_a_terminal_wants_yes(self, run: Run) -> None:
        answer = run("ledger", "discard", "--all")
        assert (answer.exit_code, "give --yes" in answer.stderr) == (2, True)

    @pytest.mark.parametrize("choice", [[], ["--all", "1"]])
    def test_ids_and_all_exclude_each_other_and_one_is_needed(self, run: Run, choice: list[str]) -> None:
        assert "give either ids, as list shows them, or --all" in run("ledger", "retry", *choice).stderr

    @pytest.mark.usefixtures("entries")
    def test_drain_sends_what_is_unsent(self, run: Run) -> None:
        answer = run("ledger", "drain")
        assert (answer.exit_code, answer.stdout) == (0, "1 acknowledged, 0 left\n")
        assert "see flask stigg ledger list --state dead" in answer.stderr


class TestFeatures:
    @pytest.fixture
    def catalog(self, tmp_path: Path) -> str:
        path = tmp_path / "catalog.toml"
        path.write_text(f'[features.{TEMPLATES}]\ntype = "boolean"\n')
        return str(path)

    def test_reads_the_app_and_its_blueprints(self, run: Run, app: Flask, tmp_path: Path, catalog: str) -> None:
        (tmp_path / "admin").mkdir()
        (tmp_path / "admin" / "views.py").write_text('requires_feature("feature-admin")')
        blueprint = Blueprint("admin", "admin", root_path=str(tmp_path / "admin"))
        blueprint.jinja_loader = DictLoader({})
        app.register_blueprint(blueprint)
        answer = run("features", "--catalog", catalog, "--json")
        unknown = [one["feature"] for one in json.loads(answer.stdout)["unknown"]]
        assert (answer.exit_code, unknown) == (1, ["feature-admin", "feature-pages", "feature-tempaltes"])

    def test_reads_the_paths_that_are_named_and_asks_the_sidecar(self, run: Run, folder: Path) -> None:
        answer = run("features", str(folder / "views.py"), "--customer", ESSENTIALS)
        assert answer.exit_code == 1
        assert "did you mean 'feature-templates'?" in answer.stdout

    def test_catalog_and_customer_exclude_each_other(self, run: Run, catalog: str) -> None:
        answer = run("features", "--catalog", catalog, "--customer", ESSENTIALS)
        assert (answer.exit_code, "either --catalog or --customer" in answer.stderr) == (2, True)


class TestSidecar:
    FREE_PORTS = ("--port", "0", "--http-port", "0")

    @pytest.fixture
    def command(self, tmp_path: Path) -> list[str]:
        """The command line of an app of its own."""
        (tmp_path / "site.toml").write_text("")
        (tmp_path / "shop.py").write_text(f"""
from flask import Flask
from stigg_guard.flask import StiggGuard

app = Flask(__name__, instance_path={str(tmp_path)!r})
app.config.update(STIGG_GUARD_SIDECAR="local", STIGG_GUARD_CATALOG={str(tmp_path / "site.toml")!r})
StiggGuard(app)
""")
        return [sys.executable, "-m", "flask", "--app", str(tmp_path / "shop.py"), "stigg", "sidecar", *self.FREE_PORTS]

    def test_serves_the_apps_catalog_until_ctrl_c_and_takes_it_in_again(
        self, command: list[str], tmp_path: Path
    ) -> None:
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ}) as running:
            try:
                assert running.stdout is not None
                assert running.stderr is not None
                assert running.stdout.readline().startswith(READY)
                (tmp_path / "site.toml").write_text('[features.f]\ntype = "boolean"\n')
                assert "has changed and is in force" in running.stderr.readline()
                running.send_signal(signal.SIGINT)
                assert running.wait(30) == 0
            finally:
                running.kill()

    def test_what_is_wrong_is_told_with_status_2(self, command: list[str], tmp_path: Path) -> None:
        told = subprocess.run(
            [*command, "--catalog", str(tmp_path / "nowhere.toml")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (told.returncode, told.stderr.count("\n")) == (2, 1)
        assert "nowhere.toml: cannot be read" in told.stderr


def test_doctor_tells_what_works(run: Run) -> None:
    told = run("doctor", "--json")
    assert {each["subject"]: each["health"] for each in json.loads(told.output)}["SIDECAR"] == "ok"
    assert told.exit_code == 0


def test_doctor_has_no_status_of_its_own_for_errors(run: Run, app: Flask) -> None:
    guard_of(app).close()
    assert run("doctor").exit_code == 1

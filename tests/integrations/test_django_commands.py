"""``manage.py stigg_…``: the operators' commands with the site's own guard, over a real sidecar."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from stigg_guard import Clock
from stigg_guard.django import get_guard
from stigg_guard.ledger import UsageKey, Use, ledger_from_url
from stigg_guard.sidecar.server import Sidecar

ESSENTIALS = "customer-demo-01"
TEMPLATES = "feature-templates"
READY = "ready grpc="

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def ledger_url(settings: Any, sidecar: Sidecar, tmp_path: Path) -> Iterator[str]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    settings.STIGG_GUARD = {"SIDECAR": sidecar.address, "TIMEOUT": 20, "LEDGER": url}
    yield url
    get_guard().close()


@pytest.fixture
def run() -> Run:
    """Runs a command; its exit status, and what it said on its standard output and standard error."""

    def run(*arguments: str, **options: Any) -> tuple[int, str, str]:
        out, err = StringIO(), StringIO()
        try:
            call_command(*arguments, stdout=out, stderr=err, **options)
        except SystemExit as end:
            return int(str(end.code)), out.getvalue(), err.getvalue()
        return 0, out.getvalue(), err.getvalue()

    return run


@pytest.fixture
def manage(tmp_path: Path, sidecar: Sidecar, ledger_url: str) -> Callable[..., list[str]]:
    """The command line of a project of its own."""
    project = tmp_path / "project"
    (project / "shop" / "templates").mkdir(parents=True)
    (project / "shop" / "__init__.py").write_text("")
    (project / "shop" / "urls.py").write_text("urlpatterns = []\n")
    (project / "shop" / "views.py").write_text('requires_feature("feature-tempaltes")\n')
    (project / "pages").mkdir()
    (project / "pages" / "page.html").write_text('{% usage "feature-pages" %}\n')
    (project / "site_settings.py").write_text(f"""
INSTALLED_APPS = ["stigg_guard.django", "django.contrib.contenttypes", "shop"]
MIDDLEWARE = ["stigg_guard.django.middleware.StiggGuardMiddleware"]
TEMPLATES = [{{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [{str(project / "pages")!r}]}}]
ROOT_URLCONF = "shop.urls"
STIGG_GUARD = {{"SIDECAR": {sidecar.address!r}, "LEDGER": {ledger_url!r}, "CUSTOMER": str}}
""")

    def command(*arguments: str) -> list[str]:
        settings = ["--settings", "site_settings", "--pythonpath", str(project)]
        return [sys.executable, "-m", "django", *arguments, *settings]

    return command


def ended(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )


class TestCheck:
    def test_shows_all_that_the_plan_has(self, run: Run) -> None:
        status, said, _ = run("stigg_check", ESSENTIALS)
        assert status == 0
        assert re.search(rf"^{TEMPLATES} +yes  3 of 6 templates$", said, re.MULTILINE)

    def test_a_denial_is_status_1(self, run: Run) -> None:
        status, said, _ = run("stigg_check", ESSENTIALS, TEMPLATES, "--requested-usage", "4")
        assert status == 1
        assert said.startswith(f"{TEMPLATES}  no   REQUESTED_USAGE_EXCEEDING_LIMIT")

    def test_prints_json(self, run: Run) -> None:
        (answer,) = json.loads(run("stigg_check", ESSENTIALS, TEMPLATES, "--json")[1])
        assert (answer["has_access"], answer["usage_limit"]) == (True, 6)

    def test_takes_its_options_from_a_caller(self, run: Run) -> None:
        (answer,) = json.loads(run("stigg_check", ESSENTIALS, TEMPLATES, resource="site-01", json=True)[1])
        assert answer["current_usage"] == 0

    @pytest.mark.parametrize(("color", "said"), [("force_color", "\x1b[32;1myes\x1b[0m"), ("no_color", "  yes  ")])
    def test_colours_the_answer_as_the_options_say(self, run: Run, color: str, said: str) -> None:
        assert said in run("stigg_check", ESSENTIALS, TEMPLATES, **{color: True})[1]

    def test_uses_the_configuration_that_is_named(self, run: Run, settings: Any) -> None:
        settings.STIGG_GUARD = {"default": {"SIDECAR": "127.0.0.1:1"}, "eu": settings.STIGG_GUARD}
        assert run("stigg_check", ESSENTIALS, "--using", "eu")[0] == 0

    def test_a_configuration_that_is_not_there_is_a_command_error(self, run: Run) -> None:
        with pytest.raises(CommandError, match="no configuration 'eu'") as error:
            run("stigg_check", ESSENTIALS, "--using", "eu")
        assert error.value.returncode == 2

    def test_an_error_is_a_command_error_with_status_2(self, run: Run) -> None:
        with pytest.raises(CommandError, match="the sidecar knows no customer 'nobody'") as error:
            run("stigg_check", "nobody")
        assert error.value.returncode == 2


class TestReport:
    def test_is_counted_when_the_command_ends(self, run: Run) -> None:
        assert run("stigg_report", ESSENTIALS, TEMPLATES, "2") == (0, "reported 2\n", "")
        get_guard().reload(ESSENTIALS)
        assert get_guard().check(TEMPLATES, customer=ESSENTIALS).current_usage == 5

    def test_without_a_sidecar_says_where_the_usage_is(self, run: Run, settings: Any, ledger_url: str) -> None:
        settings.STIGG_GUARD = {"SIDECAR": "127.0.0.1:1", "LEDGER": ledger_url, "REPORT": "inline"}
        assert run("stigg_report", ESSENTIALS, TEMPLATES, "2") == (
            1,
            "",
            "not taken by the sidecar: kept in the ledger, from where the application sends it, "
            "or manage.py stigg_ledger drain\n",
        )


class TestLedger:
    @pytest.mark.parametrize("command", ["status --using eu", "--using eu status", "--using us status --using eu"])
    def test_uses_the_configuration_that_is_named(self, run: Run, settings: Any, unsent: None, command: str) -> None:
        settings.STIGG_GUARD = {
            "default": {"SIDECAR": "127.0.0.1:1", "LEDGER": "memory://"},
            "eu": settings.STIGG_GUARD,
        }
        assert "unsent     1" in run("stigg_ledger", *command.split())[1]

    @pytest.fixture
    def unsent(self, ledger_url: str) -> None:
        """Usage that another process has left in the site's ledger."""
        ledger = ledger_from_url(ledger_url, Clock())
        ledger.record(Use(UsageKey(ESSENTIALS, "", TEMPLATES), 1))
        ledger.close()

    @pytest.fixture
    def dead(self, ledger_url: str) -> str:
        """The id of an entry that the sidecar has refused."""
        ledger = ledger_from_url(ledger_url, Clock())
        ledger.record(Use(UsageKey(ESSENTIALS, "", "no-feature"), 1))
        batch = ledger.take_batch(1, 30)
        assert batch is not None
        ledger.bury(batch.reports[0], "there is no such feature")
        ledger.close()
        return batch.reports[0].id

    @pytest.mark.usefixtures("unsent")
    def test_is_the_sites_own(self, run: Run) -> None:
        status, said, _ = run("stigg_ledger", "list")
        assert (status, said.count("\n")) == (0, 2)
        assert f"unsent  {ESSENTIALS}            {TEMPLATES}  +1" in said

    @pytest.mark.usefixtures("unsent")
    def test_status_prints_json(self, run: Run) -> None:
        assert json.loads(run("stigg_ledger", "status", "--json")[1])["states"]["unsent"]["entries"] == 1

    @pytest.mark.usefixtures("unsent")
    def test_drain_sends_what_is_unsent(self, run: Run) -> None:
        assert run("stigg_ledger", "drain")[:2] == (0, "1 acknowledged, 0 left\n")
        assert get_guard().check(TEMPLATES, customer=ESSENTIALS).current_usage == 4

    def test_retry_makes_an_entry_unsent(self, run: Run, dead: str) -> None:
        expected = "1 unsent again: the application sends them, or manage.py stigg_ledger drain\n"
        assert run("stigg_ledger", "retry", dead)[:2] == (0, expected)

    @pytest.mark.usefixtures("dead")
    def test_discard_forgets_entries(self, run: Run) -> None:
        assert run("stigg_ledger", "discard", "--all", "--yes")[:2] == (0, "1 discarded\n")

    @pytest.mark.parametrize("action", ["status", "list", "drain", "retry 1", "discard --all"])
    def test_one_that_was_never_used_is_told_and_not_made(self, run: Run, ledger_url: str, action: str) -> None:
        path = ledger_url.removeprefix("sqlite:///")
        with pytest.raises(CommandError, match=f"LEDGER: there is no file {path}: nothing was used yet"):
            run("stigg_ledger", *action.split())
        assert not Path(path).exists()

    @pytest.mark.usefixtures("unsent")
    def test_a_wrong_id_is_a_command_error_with_the_remedy(self, run: Run) -> None:
        with pytest.raises(CommandError, match=r"nothing was changed; see manage\.py stigg_ledger list"):
            run("stigg_ledger", "retry", "77")

    def test_an_unknown_action_is_a_command_error(self, run: Run) -> None:
        with pytest.raises(CommandError, match="invalid choice: 'empty'"):
            run("stigg_ledger", "empty")

    def test_one_in_memory_cannot_be_seen(self, run: Run, settings: Any) -> None:
        settings.STIGG_GUARD = {"LEDGER": "memory://"}
        with pytest.raises(CommandError, match="only its own process can see"):
            run("stigg_ledger", "list")


class TestFeatures:
    @pytest.fixture
    def catalog(self, tmp_path: Path) -> str:
        path = tmp_path / "catalog.toml"
        path.write_text(f'[features.{TEMPLATES}]\ntype = "boolean"\n')
        return str(path)

    def test_reads_the_projects_apps_and_templates_and_no_installed_ones(
        self, manage: Callable[..., list[str]], catalog: str
    ) -> None:
        told = ended(manage("stigg_features", "--catalog", catalog, "--json"))
        found = json.loads(told.stdout)
        assert (told.returncode, found["mentions"]) == (1, 2)
        assert [one["feature"] for one in found["unknown"]] == ["feature-pages", "feature-tempaltes"], told.stderr

    def test_reads_the_paths_that_are_named(self, run: Run, tmp_path: Path, catalog: str) -> None:
        views = tmp_path / "views.py"
        views.write_text(f"requires_feature({TEMPLATES!r})")
        assert run("stigg_features", str(views), catalog=catalog)[:2] == (0, "1 places, 0 unknown, 0 not checked\n")

    def test_asks_the_sites_sidecar(self, run: Run, tmp_path: Path) -> None:
        views = tmp_path / "views.py"
        views.write_text("requires_feature('feature-tempaltes')")
        status, said, _ = run("stigg_features", str(views), "--customer", ESSENTIALS)
        assert status == 1
        assert "did you mean 'feature-templates'?" in said

    def test_something_to_compare_with_is_needed(self, run: Run) -> None:
        with pytest.raises(CommandError, match="give --catalog FILE, or --customer ID"):
            run("stigg_features", __file__)


class TestSidecar:
    FREE_PORTS = ("--port", "0", "--http-port", "0")

    def test_serves_a_catalog_until_ctrl_c_and_takes_it_in_again(
        self, manage: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        catalog = tmp_path / "catalog.toml"
        catalog.write_text("")
        command = manage("stigg_sidecar", *self.FREE_PORTS, "--catalog", str(catalog))
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
            try:
                assert running.stdout is not None
                assert running.stderr is not None
                assert running.stdout.readline().startswith(READY)
                catalog.write_text('[features.f]\ntype = "boolean"\n')
                assert "has changed and is in force" in running.stderr.readline()
                running.send_signal(signal.SIGINT)
                assert running.wait(30) == 0
            finally:
                running.kill()

    def test_what_is_wrong_is_told_with_status_2(self, manage: Callable[..., list[str]], tmp_path: Path) -> None:
        told = ended(manage("stigg_sidecar", *self.FREE_PORTS, "--catalog", str(tmp_path / "nowhere.toml")))
        assert (told.returncode, told.stderr.count("\n")) == (2, 1)
        assert "nowhere.toml: cannot be read" in told.stderr


class TestDoctor:
    def test_tells_what_works(self, run: Run) -> None:
        status, said, _ = run("stigg_doctor", "--json")
        assert {each["subject"]: each["health"] for each in json.loads(said)}["SIDECAR"] == "ok"
        assert status == 0

    def test_has_no_status_of_its_own_for_errors(self, run: Run) -> None:
        with pytest.raises(CommandError) as failed:
            run("stigg_doctor", "--using", "another")
        assert failed.value.returncode == 1

"""The features that a project names against those that a catalog has, or that a real sidecar knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stigg_guard import ConfigError, Customer, Guard, InvalidRequest, SidecarUnavailable
from stigg_guard.__main__ import main
from stigg_guard.cli.console import Console
from stigg_guard.cli.features import check_features, known_features

CATALOG = """
[features.feature-templates]
type = "boolean"
[features.feature-exports]
type = "boolean"
[currencies.api-credits]
"""
VIEWS = """
requires_feature("feature-templates")
requires_feature("feature-tempaltes")
requires_feature("something else")
requires_feature(name)
"""
ESSENTIALS = Customer("customer-demo-01")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG)
    return str(path)


@pytest.fixture
def views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "views.py"
    path.write_text(VIEWS)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def run(guard: Guard, views: Path) -> Run:
    """Compares the views; the exit status and what was said."""

    def run(*, json: bool = False, **known: object) -> tuple[int, str]:
        said: list[str] = []
        console = Console(ledger="stigg-guard ledger", json=json, say=said.append)
        return check_features(guard, console, [views], **known), "\n".join(said)

    return run


def test_what_is_unknown_is_told_with_its_place_and_the_nearest_known_feature(run: Run, catalog: str) -> None:
    assert run(catalog=catalog) == (
        1,
        "views.py:3: 'feature-tempaltes' is unknown; did you mean 'feature-templates'?\n"
        "views.py:4: 'something else' is unknown\n"
        "views.py:5: name is not a literal, not checked\n"
        "known, and not named here: api-credits, feature-exports\n"
        "4 places, 2 unknown, 1 not checked",
    )


def test_the_same_is_said_in_json(run: Run, catalog: str, views: Path) -> None:
    status, said = run(catalog=catalog, json=True)
    place = {"path": str(views)}
    assert (status, json.loads(said)) == (
        1,
        {
            "unknown": [
                {**place, "line": 3, "feature": "feature-tempaltes", "nearest": "feature-templates"},
                {**place, "line": 4, "feature": "something else", "nearest": None},
            ],
            "unchecked": [{**place, "line": 5, "problem": "name is not a literal"}],
            "unused": ["api-credits", "feature-exports"],
            "mentions": 4,
        },
    )


def test_only_what_is_unknown_is_a_failure(run: Run, catalog: str, views: Path) -> None:
    views.write_text('requires_feature(name); requires_feature("feature-exports")')
    assert run(catalog=catalog)[0] == 0


def test_all_is_said_in_one_line_when_everything_is_known_and_named(run: Run, catalog: str, views: Path) -> None:
    known = ("feature-templates", "feature-exports", "api-credits")
    views.write_text("\n".join(f"requires_feature({name!r})" for name in known))
    assert run(catalog=catalog) == (0, "3 places, 0 unknown, 0 not checked")


def test_the_sidecar_tells_what_it_knows_beside_the_plan(run: Run, views: Path) -> None:
    beyond_the_plan = "feature-analytics"
    views.write_text(f"requires_feature({beyond_the_plan!r})\n" + VIEWS)
    status, said = run(customer=ESSENTIALS)
    assert (status, said.count("unknown\n"), said.count("did you mean 'feature-templates'?")) == (1, 1, 1)
    assert beyond_the_plan not in said


def test_a_fallback_does_not_make_a_feature_known(make_guard: Callable[..., Guard], views: Path) -> None:
    guard = make_guard(FALLBACKS={"feature-tempaltes": True})
    said: list[str] = []
    check_features(guard, Console(ledger="", say=said.append), [views], customer=ESSENTIALS)
    assert "'feature-tempaltes' is unknown" in said[0]


@pytest.mark.parametrize("customer", ["customer-demo-04", "nobody"])
def test_a_customer_without_a_plan_is_refused(run: Run, customer: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{customer} has no plan.*name one who has"):
        run(customer=Customer(customer))


def test_a_sidecar_that_is_away_is_an_error(make_guard: Callable[..., Guard], views: Path) -> None:
    guard = make_guard(SIDECAR="127.0.0.1:1")
    with pytest.raises(SidecarUnavailable):
        check_features(guard, Console(ledger=""), [views], customer=ESSENTIALS)


@pytest.mark.parametrize(
    "settings",
    [{"SIDECAR": "local", "CATALOG": "catalog.toml"}, {"SIDECAR": "offline", "OFFLINE_FILE": "catalog.toml"}],
)
def test_what_the_guard_answers_from_is_compared_with_by_default(
    make_guard: Callable[..., Guard], views: Path, catalog: str, settings: dict[str, str]
) -> None:
    said: list[str] = []
    assert check_features(make_guard(**settings), Console(ledger="", say=said.append), [views]) == 1
    assert "did you mean 'feature-templates'?" in said[0]


def test_something_to_compare_with_is_needed(run: Run) -> None:
    with pytest.raises(ConfigError, match="give --catalog FILE, or --customer ID"):
        run()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("catalog.toml", '[features.f]\ntype = "boolean"\n'),
        ("offline.json", '{"customers": {"c": {"entitlements": {"f": {"type": "BOOLEAN"}}}}}'),
        ("fallbacks.json", '{"f": {"hasAccess": true}}'),
    ],
)
def test_each_form_of_a_catalog_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert known_features(tmp_path / name) == {"f"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("catalog.toml", "[features.f]\n", "needs type"),
        ("fallbacks.json", '{"f": {"hasAcess": true}}', "did you mean 'hasAccess'"),
        ("list.json", "[]", "must be a table"),
        ("broken.json", "{", "not JSON"),
        ("empty.json", "{}", None),
    ],
)
def test_a_wrong_catalog_is_told_by_its_own_reader(tmp_path: Path, name: str, text: str, said: str | None) -> None:
    (tmp_path / name).write_text(text)
    if said is None:
        assert known_features(tmp_path / name) == set()
    else:
        with pytest.raises(ConfigError, match=said):
            known_features(tmp_path / name)


def test_a_catalog_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        known_features(tmp_path / "nowhere.toml")


class TestCommand:
    """``stigg-guard features``."""

    @pytest.mark.usefixtures("views")
    def test_reads_the_folder_that_it_is_run_in_and_makes_no_ledger(
        self, catalog: str, state_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["features", "--catalog", catalog]) == 1
        assert "views.py:3: 'feature-tempaltes' is unknown" in capsys.readouterr().out
        assert not state_folder.exists()

    def test_reads_the_paths_that_are_named(
        self, catalog: str, views: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = views.with_name("other.py")
        other.write_text('requires_feature("feature-templates")')
        assert main(["features", "--catalog", catalog, "--json", str(other)]) == 0
        assert json.loads(capsys.readouterr().out)["mentions"] == 1

    def test_asks_the_sidecar_as_a_customer(
        self, guard: Guard, views: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("STIGG_GUARD_SIDECAR", guard.config.sidecar)
        assert main(["features", "--customer", ESSENTIALS.id, str(views)]) == 1
        assert "2 unknown" in capsys.readouterr().out

    @pytest.mark.usefixtures("views")
    def test_what_is_wrong_is_one_line_and_status_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            main(["features"])
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith("stigg-guard: there is nothing to compare with")

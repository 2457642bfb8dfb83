"""The manuals name what there is: each setting with its default, each name, tag, command, check and signal."""

from __future__ import annotations

import ast
import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from django.conf.locale import LANG_INFO

import stigg_guard
import stigg_guard.django
import stigg_guard.django.checks
import stigg_guard.flask
from stigg_guard import Config
from stigg_guard.django import jinja2
from stigg_guard.django.templatetags.stigg_guard import register
from stigg_guard.flask.cli import stigg
from stigg_guard.flask.templating import TEMPLATE_GLOBALS, TEMPLATE_TESTS
from stigg_guard.sidecar.graph.resolvers import CHANGES, QUESTIONS
from stigg_guard.web.denial import Denial, page_source
from stigg_guard.web.views import succeeded

DOCS = Path(__file__).parents[1] / "docs"
MANUALS = {
    name: "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / name).glob("*.md")))
    for name in ("django", "flask")
}
PAGES = [*sorted(DOCS.rglob("*.md")), *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
PACKAGE = Path(stigg_guard.__file__).parent
COMMANDS = PACKAGE / "django" / "management" / "commands"
DEFAULT = r"##+ `(?:STIGG_GUARD_)?{}`\n\n.+, default `(.+)`"


@pytest.mark.parametrize("name", [entry.name.upper() for entry in fields(Config)])
@pytest.mark.parametrize("manual", MANUALS)
def test_every_setting_has_a_heading_and_its_default(manual: str, name: str) -> None:
    found = re.search(DEFAULT.format(name), MANUALS[manual])
    assert found is not None
    assert Config.from_mapping({name: ast.literal_eval(found[1])}) == Config()


@pytest.mark.parametrize("manual", MANUALS)
def test_every_public_name_is_there(manual: str) -> None:
    skin = {"django": stigg_guard.django, "flask": stigg_guard.flask}[manual]
    assert [name for name in skin.__all__ if f"`{name}" not in MANUALS[manual]] == []


@pytest.mark.parametrize("manual", MANUALS)
def test_every_name_of_a_denial_is_there(manual: str) -> None:
    names = [*(entry.name for entry in fields(Denial)), "used_fraction"]
    assert [name for name in names if f"`denial.{name}`" not in MANUALS[manual]] == []


@pytest.mark.parametrize("manual", MANUALS)
def test_the_hash_of_the_built_in_style_is_right(manual: str) -> None:
    style = page_source().partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in MANUALS[manual]


def test_every_tag_and_filter_of_django_is_there() -> None:
    assert [tag for tag in register.tags if f"## `{{% {tag} %}}`" not in MANUALS["django"]] == []
    assert [name for name in register.filters if f"|{name}" not in MANUALS["django"]] == []


def test_every_function_of_jinja_is_there() -> None:
    assert [name for name in TEMPLATE_GLOBALS if f"## `{name}`" not in MANUALS["flask"]] == []
    assert [name for name in TEMPLATE_TESTS if f"is {name} %}}" not in MANUALS["flask"]] == []
    assert [name for name in TEMPLATE_GLOBALS if name in vars(jinja2) and f"`{name}`" not in MANUALS["django"]] == []


def test_every_command_is_there() -> None:
    names = [path.stem for path in COMMANDS.glob("stigg_*.py")]
    assert [name for name in names if f"`manage.py {name}" not in MANUALS["django"]] == []
    assert [name for name in stigg.commands if f"`flask stigg {name}" not in MANUALS["flask"]] == []


def test_every_system_check_is_there() -> None:
    checks = Path(stigg_guard.django.checks.__file__)
    others = (checks.with_name("checks_of_urls.py"), checks.parent / "ledger" / "checks.py")
    source = "".join(path.read_text(encoding="utf-8") for path in (checks, *others))
    ids = set(re.findall(r'id="(stigg_guard\.[EWI]\d+)"', source))
    assert ids == set(re.findall(r"\| `(stigg_guard\.[EWI]\d+)` \|", MANUALS["django"]))


def test_every_root_field_that_the_local_sidecar_models_is_there() -> None:
    listed = (DOCS / "sidecar.md").read_text(encoding="utf-8").partition("| root field |")[2].partition("\n\n")[0]
    first_cells = "".join(line.partition(" | ")[0] for line in listed.splitlines())
    assert set(re.findall(r"`(\w+)`", first_cells)) == {*CHANGES, *QUESTIONS}


def test_every_room_is_in_the_picture() -> None:
    picture = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = [path.name for path in PACKAGE.iterdir() if path.suffix == ".py" and path.name != "__init__.py"]
    folders = [f"{path.name}/" for path in PACKAGE.iterdir() if any(path.glob("*.py"))]
    assert [room for room in rooms + folders if f"\n  {room} " not in picture] == []


def test_places_to_change_are_there() -> None:
    table = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("## To change something")[2]
    files = {path.relative_to(DOCS.parent).as_posix(): path for path in repository_files()}
    places = re.findall(r"`([\w/.]+\.\w+)`(?: \(([^)]*)\))?", table.partition("## Seams")[0])
    found = {name: [path for file, path in files.items() if f"/{file}".endswith(f"/{name}")] for name, _ in places}
    assert [name for name, paths in found.items() if not paths] == []
    texts = {name: "".join(path.read_text(encoding="utf-8") for path in paths) for name, paths in found.items()}
    named = [(name, word) for name, words in places for word in re.findall(r"`(\w+)`", words)]
    assert len(named) > 10
    assert [(name, word) for name, word in named if not re.search(rf"\b{word}\b", texts[name])] == []


def test_every_language_that_comes_along_is_named() -> None:
    languages = [LANG_INFO[path.name]["name"] for path in (PACKAGE / "django" / "locale").iterdir()]
    assert [name for name in languages if f"{name} comes with the app" not in MANUALS["django"]] == []


def test_every_status_has_its_row_in_what_is_counted() -> None:
    page = (DOCS / "counted.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\dto, ]+) \| (reported|given back)", page, re.MULTILINE)
    said = {
        status: units == "reported"
        for statuses, units in rows
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", statuses)
        for status in range(int(first), int(last or first) + 1)
    }
    assert said == {status: succeeded(status) for status in range(100, 600)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    assert [link for link, _ in links if not (page.parent / link).exists()] == []
    anchored = [(page.parent / link if link else page, anchor) for link, anchor in links if anchor]
    assert [(target.name, anchor) for target, anchor in anchored if anchor not in anchors(target)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_examples_are_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        ast.parse(block)


def test_every_claim_about_security_has_its_test() -> None:
    page = (DOCS / "security.md").read_text(encoding="utf-8")
    claims = [row for row in re.findall(r"^\| .+ \|$", page, re.MULTILINE) if "::" in row]
    named = [re.fullmatch(r"\| .+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|", row) for row in claims]
    assert len(claims) > 20
    assert [row for row, found in zip(claims, named, strict=True) if found is None] == []
    tests = [(DOCS.parent / found[1], found[2]) for found in named if found is not None]
    assert [name for path, name in tests if f"def {name}(" not in path.read_text(encoding="utf-8")] == []


def repository_files() -> Iterator[Path]:
    for folder in (PACKAGE, DOCS, DOCS.parent / "tests"):
        yield from (path for path in folder.rglob("*.*") if path.suffix != ".pyc")


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked to by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

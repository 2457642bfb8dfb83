"""Where Python files and templates name features."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stigg_guard import ConfigError
from stigg_guard.cli.mentions import Mention, mentions, own_folders


def named(path: Path) -> list[tuple[int, str | None]]:
    return [(mention.line, mention.feature) for mention in mentions([path])]


def in_python(folder: Path, source: str) -> list[tuple[int, str | None]]:
    path = folder / "views.py"
    path.write_text(source)
    return named(path)


def in_template(folder: Path, source: str) -> list[tuple[int, str | None]]:
    path = folder / "page.html"
    path.write_text(source)
    return named(path)


class TestPython:
    @pytest.mark.parametrize(
        "source",
        [
            '@requires_feature("f")\ndef view(): ...',
            '@guard.requires_feature("f")\ndef view(): ...',
            '@method_decorator(requires_feature("f"), name="dispatch")\nclass View: ...',
            '@consumes_usage(2, "f")\ndef view(): ...',
            '@consumes_usage(lambda request: 2, feature="f")\ndef view(): ...',
            'releases_usage(1, "f")',
            'guard.protect(blueprint, "f", methods={"POST"})',
            'guard.check("f", customer=c)',
            'self.guard.require(feature="f", customer=c)',
            'with guard.consume("f", 2, customer=c) as usage: ...',
            'get_guard().report("f", 2, customer=c)',
            'guard.consume({"f": 2}, customer=c)',
            'request.stigg.has("f")',
            'request.stigg.entitlement("f")',
            'await request.stigg.ahas("f")',
            'path("api/", protect(include("shop.api"), "f", n=1))',
            'path("new/", NewTemplate.as_view(feature="f"))',
            'has_feature("f")',
            'usage_bar("f")',
            'upgrade_url("f")',
            'from stigg_guard.django import requires_feature as needs; needs("f")',
            'class View(RequiresFeatureMixin, TemplateView): feature = "f"',
            'class View(mixins.ConsumesUsageMixin): feature: str = "f"',
            'class Base(RequiresFeatureMixin): pass\nclass View(Base): feature = "f"',
            'RULES = [{"path": "/api/", "feature": "f", "consume": 1}]',
            'TEMPLATES = "f"\nrequires_feature(TEMPLATES)',
            'TEMPLATES: str = "f"\nrequires_feature(TEMPLATES)',
        ],
    )
    def test_a_use_of_the_guard_names_a_feature(self, tmp_path: Path, source: str) -> None:
        assert [feature for _, feature in in_python(tmp_path, source)] == ["f"]

    @pytest.mark.parametrize(
        "source",
        [
            're.check("f")',
            'inventory.report("f", 2)',
            'lease.has("f")',
            'entitlement("f")',
            "@consumes_usage(2)\ndef view(): ...",
            "consumes_usage(2, None)",
            "upgrade_url()",
            "View.as_view()",
            'app.add_url_rule("/users", view_func=UserView.as_view("users"))',
            "UserView.as_view(*names)",
            'class View(TemplateView): feature = "f"',
            "class View(RequiresFeatureMixin): feature: str",
            "class View(RequiresFeatureMixin): self.feature, x = 1, 2",
            '{"path": "relative", "feature": "f"}',
            '{"feature": "f"}',
            '{**other, "path": where, "feature": "f"}',
            'from shop import requires_feature as needs; needs("f")',
        ],
    )
    def test_what_only_looks_like_one_is_left_alone(self, tmp_path: Path, source: str) -> None:
        assert in_python(tmp_path, source) == []

    @pytest.mark.parametrize(
        "source",
        [
            "requires_feature(settings.FEATURE)",
            "requires_feature(f'feature-{name}')",
            "requires_feature(3)",
            "requires_feature(*names)",
            "guard.consume(wanted, customer=c)",
            "guard.consume({**wanted}, customer=c)",
            'NAME = "f"\nNAME = "g"\nrequires_feature(NAME)',
            'NAME = "f"\ndef view(NAME): requires_feature(NAME)',
            "a.b = 'f'\nrequires_feature(b)",
        ],
    )
    def test_what_is_no_literal_is_found_without_a_feature(self, tmp_path: Path, source: str) -> None:
        assert [feature for _, feature in in_python(tmp_path, source)] == [None]

    def test_a_long_expression_is_shortened(self, tmp_path: Path) -> None:
        (tmp_path / "views.py").write_text(f"requires_feature({' + '.join(['name'] * 100)})")
        (found,) = mentions([tmp_path])
        assert found.problem.startswith("name + name")
        assert found.problem.endswith("[...] is not a literal")
        assert len(found.problem) < 100

    def test_every_key_of_a_mapping_and_every_branch_is_one(self, tmp_path: Path) -> None:
        source = 'guard.consume({"f": 1, "g" if big else "h": 2}, customer=c)'
        assert [feature for _, feature in in_python(tmp_path, source)] == ["f", "g", "h"]

    def test_places_come_in_order_with_their_lines(self, tmp_path: Path) -> None:
        source = '\nclass View:\n    @requires_feature("f")\n    def get(self): ...\n\nrequires_feature(other)\n'
        assert in_python(tmp_path, source) == [(3, "f"), (6, None)]

    @pytest.mark.parametrize("source", ["def (:", "\0"])
    def test_what_is_no_python_is_told(self, tmp_path: Path, source: str) -> None:
        path = tmp_path / "old.py"
        path.write_text(source)
        (told,) = mentions([path])
        assert told.feature is None
        assert told.problem.startswith("the file is not Python: ")

    def test_doubtful_literals_of_the_project_are_not_our_matter(self, tmp_path: Path) -> None:
        assert in_python(tmp_path, 'requires_feature("f")\npattern = "\\d"\n') == [(1, "f")]


class TestTemplates:
    @pytest.mark.parametrize(
        "source",
        [
            '{% feature "f" %}…{% endfeature %}',
            "{%- feature 'f' -%}",
            '{% entitlement "f" as e %}',
            '{% usage "f" %}',
            '{% usage_bar "f" %}',
            '{% upgrade_url "f" %}',
            '{{ usage_bar("f") }}',
            '{% if has_feature("f") and other %}',
            "{% set e = entitlement( 'f' ) %}",
            '{{ upgrade_url("f")|e }}',
            '{% if request.stigg.has("f") %}',
            '{% if request.stigg|has_feature:"f" %}',
            '{% if "f" is entitled %}',
            '{% if "f" is not entitled %}',
        ],
    )
    def test_a_tag_a_call_or_a_test_names_a_feature(self, tmp_path: Path, source: str) -> None:
        assert in_template(tmp_path, source) == [(1, "f")]

    @pytest.mark.parametrize(
        "source",
        [
            "usage('f')",
            "{{ disk.usage('f') }}",
            "{{ disk_usage('f') }}",
            "{% upgrade_url %}",
            "{% upgrade_url as url %}",
            "{{ usage() }}",
            "{% endfeature %}",
            "{% features 'f' %}",
            "{# {% usage 'f' %} #}",
            "{% comment %}{% usage 'f' %}{% endcomment %}",
            "{% raw %}{{ usage('f') }}{% endraw %}",
            "{% verbatim mine %}{{ usage('f') }}{% endverbatim mine %}",
        ],
    )
    def test_what_only_looks_like_one_is_left_alone(self, tmp_path: Path, source: str) -> None:
        assert in_template(tmp_path, source) == []

    @pytest.mark.parametrize("source", ["{% feature name %}", "{{ usage(name) }}", "{% if name is entitled %}"])
    def test_what_is_no_literal_is_found_without_a_feature(self, tmp_path: Path, source: str) -> None:
        (found,) = mentions([_page(tmp_path, source)])
        assert (found.feature, found.problem) == (None, "name is not a literal")

    def test_lines_are_counted_through_comments_and_long_tags(self, tmp_path: Path) -> None:
        source = "{# one\ntwo #}\n<p>\n{% if\n has_feature('f') %}\n{{ usage('g') }}"
        assert in_template(tmp_path, source) == [(5, "f"), (6, "g")]

    def test_text_of_another_encoding_is_read_all_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "page.html"
        path.write_bytes("Größe {% usage 'f' %}".encode("latin-1"))
        assert named(path) == [(1, "f")]


def _page(folder: Path, source: str) -> Path:
    path = folder / "page.html"
    path.write_text(source)
    return path


class TestPlaces:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        source, page = 'requires_feature("f")', "{% usage 'f' %}"
        texts = {
            "shop/views.py": source,
            "shop/templates/shop/page.html": page,
            "shop/static/shop.css": page,
            "shop/.cache/views.py": source,
            "environment/pyvenv.cfg": "",
            "environment/lib/views.py": source,
            "node_modules/page.html": page,
        }
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    def test_a_folder_is_read_without_what_is_not_the_projects_own(self, project: Path) -> None:
        found = [mention.path.relative_to(project).as_posix() for mention in mentions([project])]
        assert found == ["shop/templates/shop/page.html", "shop/views.py"]

    def test_a_file_that_is_named_twice_is_read_once(self, project: Path) -> None:
        assert len(mentions([project / "shop", project / "shop" / "views.py"])) == 2

    def test_a_file_that_cannot_be_read_is_told(self, project: Path) -> None:
        (project / "shop" / "gone.py").symlink_to(project / "nowhere.py")
        (told,) = [one for one in mentions([project]) if one.path.name == "gone.py"]
        assert told.problem == "the file cannot be read: No such file or directory"

    def test_a_path_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"there is no file or folder .*nowhere"):
            mentions([tmp_path / "nowhere"])

    def test_a_place_is_written_from_where_the_reader_is(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mention = Mention(project / "shop" / "views.py", 1, "f")
        monkeypatch.chdir(project)
        assert str(mention) == os.path.join("shop", "views.py") + ":1"
        monkeypatch.chdir(project / "node_modules")
        assert str(mention) == f"{project}/shop/views.py:1"

    def test_own_folders_are_those_that_are_there_and_not_installed_and_not_within_another(self, project: Path) -> None:
        installed = project / "lib" / "site-packages" / "shop"
        installed.mkdir(parents=True)
        ours = Path(mentions.__code__.co_filename).parent / "django"
        folders = [project / "shop" / "templates", project / "shop", project / "nowhere", installed, ours]
        assert own_folders(folders) == [project / "shop"]

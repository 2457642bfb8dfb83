"""What Jinja templates say of the signed-in customer's plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask, Request, render_template_string
from jinja2 import DictLoader

from stigg_guard.flask import StiggGuard
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.wording import Wording

ESSENTIALS = "customer-demo-01"
NOBODY_LISTENS = "127.0.0.1:1"

Render = Callable[..., str]


@pytest.fixture
def render(sidecar: Sidecar) -> Iterator[Render]:
    extensions: list[tuple[Flask, StiggGuard]] = []

    def render(template: str, customer: str | None = ESSENTIALS, **settings: object) -> str:
        """Renders the template in a request of the customer."""
        app = Flask("shop")
        app.config["STIGG_GUARD_LEDGER"] = "memory://"
        app.config["STIGG_GUARD_SIDECAR"] = sidecar.address
        app.config.update({f"STIGG_GUARD_{name}": value for name, value in settings.items()})
        extensions.append((app, StiggGuard(app)))

        @extensions[-1][1].customer_loader
        def load(request: Request) -> str | None:
            return customer

        with app.test_request_context("/"):
            return render_template_string(template)

    yield render
    for app, extension in extensions:
        with app.app_context():
            extension.guard.close()


def test_outside_of_a_request_there_is_the_plan_of_nobody() -> None:
    app = Flask("shop")
    app.config.update(STIGG_GUARD_LEDGER="memory://", STIGG_GUARD_UPGRADE_URL="/plans")
    StiggGuard(app)
    template = """{{ has_feature("f") }} {{ "f" is entitled }} {{ entitlement("f") }} [{{ usage("f") }}]
        [{{ usage_bar("f") }}] [{{ plan_limits() }}] {{ plan_lines() }} {{ upgrade_url("f") }}"""
    with app.app_context():
        assert render_template_string(template).split() == ["False", "False", "None", "[]", "[]", "[]", "[]", "/plans"]


@pytest.mark.parametrize(("feature", "shown"), [("feature-exports", "yes"), ("feature-analytics", "no")])
def test_has_feature_follows_the_plan(render: Render, feature: str, shown: str) -> None:
    assert render(f"{{{{ 'yes' if has_feature('{feature}') else 'no' }}}}") == shown


def test_entitlement_has_the_figures(render: Render) -> None:
    template = "{% set e = entitlement('feature-templates') %}{{ e.remaining }} of {{ e.usage_limit }}"
    assert render(template) == "3.0 of 6.0"


@pytest.mark.parametrize(
    ("feature", "text"),
    [
        ("feature-templates", "3 of 6 templates"),
        ("feature-storage", "100 GB"),
        ("api-credits", "12,500 of 50,000 credits used"),
        ("feature-analytics", "not included"),
    ],
)
def test_usage_is_said_in_words(render: Render, feature: str, text: str) -> None:
    assert render(f"{{{{ usage('{feature}') }}}}") == text


def test_usage_bar_is_a_labelled_progress_element(render: Render) -> None:
    assert render("{{ usage_bar('feature-templates') }}") == (
        '<progress class="stigg-guard-usage" value="0.5" aria-label="3 of 6 templates">3 of 6 templates</progress>'
    )


@pytest.mark.parametrize("feature", ["feature-storage", "feature-exports", "feature-analytics"])
def test_usage_bar_is_empty_where_nothing_is_limited(render: Render, feature: str) -> None:
    assert render(f"{{{{ usage_bar('{feature}') }}}}") == ""


def test_usage_bar_of_unlimited_usage_is_empty(render: Render) -> None:
    assert render("{{ usage_bar('feature-seats') }}", customer="customer-demo-02") == ""


def test_plan_lines_are_one_for_each_feature_of_the_plan(render: Render) -> None:
    shown = render("{% for line in plan_lines() %}{{ line.feature_id }}: {{ line.text }}\n{% endfor %}")
    assert "feature-templates: 3 of 6 templates\n" in shown
    assert "feature-regions: eu, us\n" in shown
    assert "feature-analytics" not in shown


def test_plan_limits_are_a_table_of_the_plan(render: Render) -> None:
    table = render("{{ plan_limits() }}")
    assert '<th scope="row">feature-templates</th><td>3 of 6 templates</td><td><progress' in table


def test_customer_without_a_plan_has_no_table(render: Render) -> None:
    assert render("{{ plan_limits() }}", customer="customer-demo-04") == ""


@pytest.mark.parametrize(("feature", "shown"), [("feature-exports", "yes"), ("feature-analytics", "no")])
def test_template_tests_whether_the_customer_is_entitled(render: Render, feature: str, shown: str) -> None:
    assert render(f"{{% if '{feature}' is entitled %}}yes{{% else %}}no{{% endif %}}") == shown


def test_upgrade_url_names_the_feature(render: Render) -> None:
    assert render("{{ upgrade_url('a&b') }}", UPGRADE_URL="/upgrade?for={feature}&from=x") == (
        "/upgrade?for=a%26b&amp;from=x"
    )


def test_upgrade_url_is_empty_without_the_setting(render: Render) -> None:
    assert render("{{ upgrade_url('feature-analytics') }}") == ""


NOTHING = (
    "{{ has_feature('feature-exports') }}|{{ entitlement('feature-exports') }}|{{ usage('feature-templates') }}|"
    "{{ usage_bar('feature-templates') }}|{{ plan_limits() }}"
)


def test_anonymous_visitor_is_shown_nothing(render: Render) -> None:
    assert render(NOTHING, customer=None) == "False|None|||"


def test_outage_does_not_break_a_page(render: Render) -> None:
    assert render(NOTHING, SIDECAR=NOBODY_LISTENS) == "False|None|||"


def test_fallback_shows_during_an_outage(render: Render) -> None:
    fallbacks = {"feature-exports": {"hasAccess": True}}
    assert render("{{ has_feature('feature-exports') }}", SIDECAR=NOBODY_LISTENS, FALLBACKS=fallbacks) == "True"


def test_disabled_guard_shows_every_feature(render: Render) -> None:
    shown = render("{{ has_feature('feature-analytics') }}", SIDECAR=NOBODY_LISTENS, ENABLED=False)
    assert shown == "True"


def test_customer_is_looked_up_once_for_all_of_a_page(sidecar: Sidecar) -> None:
    app = Flask("shop")
    app.config["STIGG_GUARD_LEDGER"] = "memory://"
    app.config["STIGG_GUARD_SIDECAR"] = sidecar.address
    extension = StiggGuard(app)
    lookups: list[str] = []

    @extension.customer_loader
    def load(request: Request) -> str:
        lookups.append(request.path)
        return ESSENTIALS

    template = "{{ usage('feature-templates') }} {{ has_feature('feature-analytics') }} {{ plan_lines() | length }}"
    with app.test_request_context("/"):
        render_template_string(template)
        extension.guard.close()
    assert lookups == ["/"]


def test_page_shows_one_state_of_the_plan_while_usage_goes_on(sidecar: Sidecar) -> None:
    app = Flask("shop")
    app.config["STIGG_GUARD_LEDGER"] = "memory://"
    app.config["STIGG_GUARD_SIDECAR"] = sidecar.address
    extension = StiggGuard(app)
    extension.customer_loader(lambda request: ESSENTIALS)
    with app.test_request_context("/"):
        before = render_template_string("{{ usage('feature-templates') }}")
        with extension.guard.consume("feature-templates", customer=ESSENTIALS):
            pass
        assert render_template_string("{{ usage('feature-templates') }}") == before
        extension.guard.close()


MACROS = "{% macro bar() %}{{ usage('feature-templates') }} {{ 'feature-exports' is entitled }}{% endmacro %}"


def test_included_and_imported_templates_need_no_context(sidecar: Sidecar) -> None:
    app = Flask("shop")
    app.config["STIGG_GUARD_LEDGER"] = "memory://"
    app.config["STIGG_GUARD_SIDECAR"] = sidecar.address
    app.jinja_loader = DictLoader({"macros": MACROS, "part": "{{ usage('feature-templates') }}"})
    extension = StiggGuard(app)
    extension.customer_loader(lambda request: ESSENTIALS)
    template = "{% from 'macros' import bar %}{{ bar() }}, {% include 'part' without context %}"
    with app.test_request_context("/"):
        assert render_template_string(template) == "3 of 6 templates True, 3 of 6 templates"
        extension.guard.close()


def test_words_are_those_that_the_extension_was_given(sidecar: Sidecar) -> None:
    app = Flask("shop")
    app.config["STIGG_GUARD_LEDGER"] = "memory://"
    app.config["STIGG_GUARD_SIDECAR"] = sidecar.address
    extension = StiggGuard(app, wording=Wording(translate=lambda text: text.replace(" of ", " von ")))
    extension.customer_loader(lambda request: ESSENTIALS)
    with app.test_request_context("/"):
        assert render_template_string("{{ usage('feature-templates') }}") == "3 von 6 templates"
        extension.guard.close()

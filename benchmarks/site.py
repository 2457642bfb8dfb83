"""A Flask site with a plain, a guarded and a consuming view, for a server under load. The environment configures it."""

from __future__ import annotations

from os import environ

from flask import Flask

from stigg_guard.flask import StiggGuard, consumes_usage, requires_feature


def make_app() -> Flask:
    app = Flask("site")
    settings = {name: value for name, value in environ.items() if name.startswith("STIGG_GUARD_")}
    # Finding the customer is the user's own code, and free here.
    app.config.from_mapping(settings, STIGG_GUARD_CUSTOMER=lambda _request: "customer-demo-02")
    StiggGuard(app)

    @app.get("/plain")
    def plain() -> str:
        return "ok"

    @app.get("/guarded")
    @requires_feature("feature-custom-domain")
    def guarded() -> str:
        return "ok"

    @app.get("/consuming")
    @consumes_usage(1, "feature-api-calls")
    def consuming() -> str:
        return "ok"

    return app

"""The equal task in our SDK and in others that are widely used: a cached check, a counted use, a report.

All work in memory and reach no network. A client is made once, as its manual says for that, and only the call is timed.
One that is not installed is left out, with a line that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import Timer
from typing import Any, TypeAlias

from benchmarks.checks import CUSTOMER, FEATURE
from benchmarks.measure import Comparison
from benchmarks.project import set_up_django
from benchmarks.servers import local_sidecar
from benchmarks.usage import METER, consume
from benchmarks.views import ledger_settings, request_of
from stigg_guard import Config, Guard

Peer: TypeAlias = "Callable[[ExitStack], Callable[[], object]]"
"""Makes a client, closed with the stack; the call that it returns is timed."""

FLAG = "flag"
USER = "customer"
NOWHERE = "http://127.0.0.1:9"
PER_HOUR = 10**9
LIMIT = f"{PER_HOUR} per hour"


def checks() -> Iterator[Comparison]:
    """Whether a customer has a boolean feature, from the cache; whether a user has a boolean flag."""
    with local_sidecar() as address, Guard(Config(sidecar=address)) as guard:
        ours = Timer(partial(guard.check, FEATURE, customer=CUSTOMER))
        for name, theirs in _timers(CHECKS.items()):
            yield Comparison(name=f"cached check / {name}", ours=ours, floor=theirs)


def uses() -> Iterator[Comparison]:
    """A unit of a customer, held and committed in a ledger in memory; a hit of a user, counted in memory."""
    with local_sidecar() as address, Guard(Config(sidecar=address, ledger="memory://")) as guard:
        ours = Timer(partial(consume, guard), guard.flush)
        for name, theirs in _timers([("limits, hit", limits_hit)]):
            yield Comparison(name=f"consume, memory ledger / {name}", ours=ours, floor=theirs)
    yield from _django_views()
    yield from _flask_requests()


def reports() -> Iterator[Comparison]:
    """A use that is in a file when the call returns; an event that is in memory."""
    with ExitStack() as open_:
        address, folder = open_.enter_context(local_sidecar()), open_.enter_context(TemporaryDirectory())
        guard = open_.enter_context(Guard(Config(sidecar=address, ledger=f"sqlite:///{folder}/ledger")))
        ours = Timer(partial(consume, guard), guard.flush)
        for name, theirs in _timers(REPORTS.items()):
            yield Comparison(name=f"consume, sqlite ledger / {name}", ours=ours, floor=theirs)


def _timers(peers: Iterable[tuple[str, Peer]]) -> Iterator[tuple[str, Timer]]:
    """Those that are installed; each is closed when the next one is asked for."""
    for name, peer in peers:
        with ExitStack() as open_:
            try:
                call = peer(open_)
            except ModuleNotFoundError as missing:
                print(f"left out: {name}: {missing.name} is not installed, which `make bench` does", flush=True)
                continue
            yield name, Timer(call)


def launchdarkly(open_: ExitStack) -> Callable[[], object]:
    from ldclient import Context, LDClient
    from ldclient.config import Config as Settings
    from ldclient.integrations.test_data import TestData

    flags = TestData.data_source()
    flags.update(flags.flag(FLAG).boolean_flag().on(True))
    client = LDClient(Settings("key", update_processor_class=flags, send_events=False))
    open_.callback(client.close)
    return partial(client.variation, FLAG, Context.create(USER), False)


def openfeature(_open: ExitStack) -> Callable[[], object]:
    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

    api.set_provider(InMemoryProvider({FLAG: InMemoryFlag("on", {"on": True, "off": False})}))
    client = api.get_client()
    return partial(client.get_boolean_value, FLAG, False, EvaluationContext(USER))


def waffle(_open: ExitStack) -> Callable[[], object]:
    import waffle  # noqa: F401 - before the project is asked whether it has it

    set_up_django()
    from django.core.management import call_command
    from django.http import HttpRequest
    from waffle import flag_is_active, get_waffle_flag_model

    call_command("migrate", verbosity=0)
    get_waffle_flag_model().objects.update_or_create(name=FLAG, defaults={"everyone": True})
    return partial(flag_is_active, HttpRequest(), FLAG)


def growthbook(open_: ExitStack) -> Callable[[], object]:
    from growthbook import GrowthBook

    client = GrowthBook(attributes={"id": USER}, features={FLAG: {"defaultValue": True}})
    open_.callback(client.destroy)
    return partial(client.is_on, FLAG)


def unleash(open_: ExitStack) -> Callable[[], object]:
    from UnleashClient import UnleashClient
    from UnleashClient.cache import FileCache

    cache = FileCache(FLAG, directory=open_.enter_context(TemporaryDirectory()))
    strategies = [{"name": "default", "parameters": {}}]
    cache.bootstrap_from_dict({"version": 1, "features": [{"name": FLAG, "enabled": True, "strategies": strategies}]})
    client = UnleashClient(NOWHERE, FLAG, cache=cache, disable_metrics=True, disable_registration=True)
    client.initialize_client(fetch_toggles=False)
    open_.callback(client.destroy)
    return partial(client.is_enabled, FLAG, {"userId": USER})


def flagsmith(open_: ExitStack) -> Callable[[], object]:
    from flagsmith import Flagsmith
    from flagsmith.offline_handlers import LocalFileHandler

    state = {
        "feature": {"id": 1, "name": FLAG, "type": "STANDARD"},
        "enabled": True,
        "feature_state_value": None,
        "featurestate_uuid": "1",
        "multivariate_feature_state_values": [],
    }
    document = {
        "api_key": "key",
        "name": "environment",
        "updated_at": "2026-01-01T00:00:00Z",
        "feature_states": [state],
        "project": {"id": 1, "name": "project", "segments": []},
    }
    file = Path(open_.enter_context(TemporaryDirectory())) / "environment.json"
    file.write_text(json.dumps(document))
    client = Flagsmith(offline_mode=True, offline_handler=LocalFileHandler(str(file)))
    return lambda: client.get_identity_flags(USER).is_feature_enabled(FLAG)


def schematic(open_: ExitStack) -> Callable[[], object]:
    from schematic.cache import LocalCache

    client = _schematic_client(open_, cache_providers=[LocalCache(max_size=1_000, ttl=10**9)])
    return partial(client.check_flag, FLAG, company={"id": USER})


def limits_hit(_open: ExitStack) -> Callable[[], object]:
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    return partial(FixedWindowRateLimiter(MemoryStorage()).hit, parse(LIMIT), USER)


def posthog(open_: ExitStack) -> Callable[[], object]:
    from posthog import Posthog

    client = Posthog("key", host=NOWHERE, send=False)
    open_.callback(client.shutdown)
    return partial(client.capture, "used", distinct_id=USER, properties={"units": 1})


def segment(open_: ExitStack) -> Callable[[], object]:
    from segment.analytics.client import Client

    client = Client("key", host=NOWHERE, send=False)
    open_.callback(client.shutdown)
    return partial(client.track, USER, "used", {"units": 1})


def schematic_track(open_: ExitStack) -> Callable[[], object]:
    return partial(_schematic_client(open_).track, "used", company={"id": USER}, traits={"units": 1})


def _schematic_client(open_: ExitStack, **settings: Any) -> Any:
    """A client whose requests are answered in this process."""
    import httpx
    from schematic.client import Schematic, SchematicConfig

    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": {"flag": FLAG, "reason": "plan", "value": True}, "params": {}})

    transport = httpx.Client(transport=httpx.MockTransport(answer))
    client = Schematic("key", SchematicConfig(httpx_client=transport, **settings))
    open_.callback(client.shutdown)
    return client


def _django_views() -> Iterator[Comparison]:
    """Decorated views, each call with a request of its own."""
    set_up_django()
    from django.http import HttpRequest, HttpResponse
    from django.test import override_settings

    from stigg_guard.django import consumes_usage, get_guard

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("ok")

    def limited(_open: ExitStack) -> Callable[[], object]:
        from django_ratelimit.decorators import ratelimit

        decorated = ratelimit(key=lambda _group, _request: USER, rate=f"{PER_HOUR}/h")(view)
        return lambda: decorated(HttpRequest())

    consuming = consumes_usage(1, METER)(view)
    with ledger_settings() as (in_memory, _), override_settings(STIGG_GUARD=in_memory):
        ours = Timer(lambda: consuming(HttpRequest()), get_guard().flush)
        for name, theirs in _timers([("django-ratelimit", limited)]):
            yield Comparison(name=f"Django view, consumes_usage, memory / {name}", ours=ours, floor=theirs)


def _flask_requests() -> Iterator[Comparison]:
    """Whole requests: the limiter counts before the view is called."""
    from flask import Flask

    from stigg_guard.flask import StiggGuard, consumes_usage

    def view() -> str:
        return "ok"

    def limited(_open: ExitStack) -> Callable[[], object]:
        from flask_limiter import Limiter

        app = Flask("limited")
        limiter = Limiter(lambda: USER, app=app, storage_uri="memory://")
        app.add_url_rule("/limited", view_func=limiter.limit(LIMIT)(view))
        return request_of(app, "/limited")

    app, guard = Flask("consuming"), StiggGuard()
    app.add_url_rule("/consuming", view_func=consumes_usage(1, METER)(view))
    with ledger_settings() as (in_memory, _):
        app.config.from_mapping({f"STIGG_GUARD_{key}": value for key, value in in_memory.items()})
        guard.init_app(app)
        with app.app_context(), closing(guard.guard):
            ours = Timer(request_of(app, "/consuming"), guard.guard.flush)
            for name, theirs in _timers([("Flask-Limiter", limited)]):
                yield Comparison(name=f"Flask request, consumes_usage, memory / {name}", ours=ours, floor=theirs)


CHECKS: dict[str, Peer] = {
    "LaunchDarkly variation, test data": launchdarkly,
    "OpenFeature in-memory provider": openfeature,
    "django-waffle flag_is_active": waffle,
    "GrowthBook is_on": growthbook,
    "Unleash is_enabled": unleash,
    "Flagsmith, offline": flagsmith,
    "Schematic check_flag, cached": schematic,
}
REPORTS: dict[str, Peer] = {
    "PostHog capture": posthog,
    "Segment track": segment,
    "Schematic track": schematic_track,
}

"""Django's system checks: what a project forgot, told by ``manage.py check`` and at every start of ``runserver``.

=========================  =====================================================================
``stigg_guard.E001``       the middleware is missing
``stigg_guard.E002``       there is no resolver ``CUSTOMER``
``stigg_guard.E003``       a setting is unknown or wrong, or two sidecars have one ledger
``stigg_guard.E004``       the file of the ledger cannot be written
``stigg_guard.E005``       a guard of a view names no feature
``stigg_guard.E006``       a router forbids the tables of the ledger
``stigg_guard.E007``       the two ways to the ledger's database lead to different tables (``--database``)
``stigg_guard.W001``       the middleware stands above the one that tells who is signed in
``stigg_guard.W002``       ``ON_OUTAGE`` is not decided (``--deploy``)
``stigg_guard.W003``       the ledger is in memory, or the sidecar is local (``--deploy``)
``stigg_guard.W004``       the ledger's SQLite database refuses transactions that turn to writing
``stigg_guard.W005``       a feature is named that the catalog does not have (``--deploy``)
``stigg_guard.W006``       a rule meets no view of ``ROOT_URLCONF``
``stigg_guard.W007``       a guard that holds units stands above what asks who may have them
``stigg_guard.W008``       a middleware above ours keeps pages in a cache that all share
``stigg_guard.W009``       the ledger's database is behind a pooler (``--database``)
``stigg_guard.I001``       how many connections the ledger's database has to have (``--deploy``)
=========================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - as Django names it
from django.db import connections
from django.urls import NoReverseMatch
from django.utils.module_loading import import_string

from stigg_guard.cli.features import Comparison, known_features
from stigg_guard.cli.mentions import mentions, own_folders
from stigg_guard.config import Anonymous, Config
from stigg_guard.django.checks_of_urls import check_rules, check_views
from stigg_guard.django.conf import DATABASE_LEDGER, configurations, faults, given_settings
from stigg_guard.django.folders import project_folders
from stigg_guard.django.ledger.address import Address, address_of
from stigg_guard.django.ledger.checks import connection_notes, database_faults, router_faults
from stigg_guard.django.middleware import StiggGuardMiddleware, login_page
from stigg_guard.errors import ConfigError
from stigg_guard.ledger.files import obstacle
from stigg_guard.settings.urls import SQLITE, ledger_file

TAG = "stigg_guard"
_MIDDLEWARE = f"{StiggGuardMiddleware.__module__}.{StiggGuardMiddleware.__qualname__}"
_CACHES = ("django.middleware.cache.UpdateCacheMiddleware", "django.middleware.cache.FetchFromCacheMiddleware")
_SIGNS_IN = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)


def register_checks() -> None:
    """Registers all checks under the tag ``stigg_guard``."""
    for check in (
        check_settings,
        check_middleware,
        check_customer,
        check_login,
        check_ledger,
        check_rules,
        check_views,
    ):
        register(check, TAG)
    for check in (check_outage_policy, check_workers, check_features, check_connections):
        register(check, TAG, deploy=True)
    register(check_databases, TAG, Tags.database)


def check_settings(**_: Any) -> Sequence[CheckMessage]:
    """What is wrong refuses every request."""
    return [Error(fault, hint="Correct the setting.", id="stigg_guard.E003") for fault in faults().values()]


def check_middleware(**_: Any) -> Sequence[CheckMessage]:
    """Without the middleware a denial would be an error 500."""
    ours = next((place for place, path in enumerate(settings.MIDDLEWARE) if _is_ours(path)), None)
    if ours is None:
        hint = f"Add {_MIDDLEWARE!r} to MIDDLEWARE, after AuthenticationMiddleware."
        return [Error("Nothing turns a denied request into a response.", hint=hint, id="stigg_guard.E001")]
    return [*_late_sign_in(settings.MIDDLEWARE[ours:]), *_shared_caches(settings.MIDDLEWARE[:ours])]


def check_customer(**_: Any) -> Sequence[CheckMessage]:
    """Without a resolver no view can tell who is asking."""
    hint = "Set CUSTOMER to the dotted path of a function of the request that returns a customer id."
    return [
        Error("The customer of a request cannot be found.", hint=hint, obj=place, id="stigg_guard.E002")
        for place, config in _configs()
        if config.customer is None and config.enabled
    ]


def check_login(**_: Any) -> Sequence[CheckMessage]:
    """Without the login page there is no way to answer who is to go there."""
    return [fault for place, config in _configs() for fault in _login_faults(place, config)]


def check_ledger(**_: Any) -> Sequence[CheckMessage]:
    """What cannot be written would be told by the first request that uses something."""
    return [fault for place, config in _configs() for fault in _ledger_faults(place, config.ledger or "")]


def check_connections(**_: Any) -> Sequence[CheckMessage]:
    """With too few of them requests wait for each other."""
    return [note for place, address in _database_ledgers() for note in connection_notes(address, place)]


def check_databases(databases: Collection[str] | None = None, **_: Any) -> Sequence[CheckMessage]:
    """What is wrong with the databases that ``manage.py`` was told to look at."""
    return [
        fault for place, address in _database_ledgers() for fault in database_faults(address, place, databases or ())
    ]


def check_outage_policy(**_: Any) -> Sequence[CheckMessage]:
    """Nobody but the project knows whether an outage is to cost its customers or itself."""
    hint = "Set ON_OUTAGE to 'allow', 'deny' or 'error', which is what happens now: status 503."
    given = given_settings()
    return [
        Warning("What an outage means is not decided.", hint=hint, obj=place, id="stigg_guard.W002")
        for (place, _), using in zip(_configs(), configurations(), strict=True)
        if "ON_OUTAGE" not in given[using]
    ]


def check_workers(**_: Any) -> Sequence[CheckMessage]:
    """What one worker process has sold, another one does not see in its memory."""
    sidecar = "SIDECAR = 'local' is for development, with one for each process: name host:port of Stigg's."
    ledger = "Name a ledger that all processes share: LEDGER = 'sqlite:///…', 'redis://…' or 'django://default'."
    hints = [
        (place, sidecar if config.sidecar == "local" else ledger)
        for place, config in _configs()
        if config.enabled and (config.sidecar == "local" or config.ledger == "memory://")
    ]
    return [
        Warning("Several workers sell the same units.", hint=hint, obj=place, id="stigg_guard.W003")
        for place, hint in hints
    ]


def check_features(**_: Any) -> Sequence[CheckMessage]:
    """A feature that nobody sells is denied to everybody."""
    catalogs = {config.catalog for _, config in _configs() if config.catalog is not None}
    if not catalogs:
        return []
    try:
        known = frozenset[str]().union(*map(known_features, catalogs))
    except ConfigError as error:
        return [Error(f"CATALOG: {error}", hint="Correct the catalog.", id="stigg_guard.E003")]
    unknown = Comparison(mentions(own_folders(project_folders())), known).unknown
    hint = "Correct the id, or add it to the catalog; manage.py stigg_features tells what is near."
    return [
        Warning(f"The catalog has no feature {one.feature!r}.", hint=hint, obj=one, id="stigg_guard.W005")
        for one in unknown
    ]


def _configs() -> list[tuple[str, Config]]:
    """The configurations that are right, each with where it stands."""
    return [(f"settings.STIGG_GUARD of {using!r}", made.guard.config) for using, made in configurations().items()]


def _database_ledgers() -> list[tuple[str, Address]]:
    """The ledgers in databases, each with where it is named."""
    urls = ((place, config.ledger or "") for place, config in _configs())
    return [(place, address_of(url)) for place, url in urls if url.startswith(DATABASE_LEDGER)]


def _late_sign_in(from_ours: Sequence[str]) -> Iterator[CheckMessage]:
    below = [path for path in from_ours if path in _SIGNS_IN]
    if below:
        hint = f"Move it below {below[-1]!r}."
        text = "Middleware that asks request.stigg may ask before it is known who is signed in."
        yield Warning(text, hint=hint, obj=from_ours[0], id="stigg_guard.W001")


def _shared_caches(above: Sequence[str]) -> Iterator[CheckMessage]:
    caches = [path for path in above if path in _CACHES]
    if caches:
        text = "A page from the site-wide cache is answered without its guards, whoever asks."
        hint = (
            "Guarded pages are private, and are not kept unless their views say otherwise in Cache-Control: look for "
            "such views, then silence this check; or cache single views by cache_page below their guards."
        )
        yield Warning(text, hint=hint, obj=caches[0], id="stigg_guard.W008")


def _login_faults(place: str, config: Config) -> Iterator[CheckMessage]:
    if config.anonymous is Anonymous.LOGIN:
        try:
            login_page(config)
        except NoReverseMatch as error:
            hint = "Set LOGIN_URL to the path of the login page, or to the name of its URL."
            yield Error(f"LOGIN_URL: {error}", hint=hint, obj=place, id="stigg_guard.E003")


def _ledger_faults(place: str, url: str) -> Iterator[CheckMessage]:
    if url.startswith(SQLITE) and (problem := obstacle(ledger_file(url).path)):
        hint = "Let the user that runs the site write it, or name another LEDGER."
        yield Error(f"The ledger cannot be used: {problem}.", hint=hint, obj=place, id="stigg_guard.E004")
    if url.startswith(DATABASE_LEDGER):
        alias = address_of(url).alias
        yield from router_faults(alias, place)
        database = connections[alias]
        mode = database.settings_dict["OPTIONS"].get("transaction_mode")
        if database.vendor == "sqlite" and database.settings_dict["ATOMIC_REQUESTS"] and mode is None:
            yield Warning(
                "Requests are refused when others write into the SQLite database between their reading and writing.",
                hint=f"Set DATABASES[{alias!r}]['OPTIONS']['transaction_mode'] to 'IMMEDIATE' (Django 5.1 or later).",
                obj=place,
                id="stigg_guard.W004",
            )


def _is_ours(path: str) -> bool:
    found = None
    with suppress(ImportError):  # Django itself tells of a middleware that cannot be imported
        found = import_string(path)
    return isinstance(found, type) and issubclass(found, StiggGuardMiddleware)

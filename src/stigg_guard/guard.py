"""``Guard``: checks entitlements, holds units within a quota, reports usage. Thread-safe and fork-safe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from stigg_guard import decorators
from stigg_guard.amounts import Amount, usage_amount
from stigg_guard.calls import Calls, Dimensions, OneOrComputed
from stigg_guard.checks.lookup import Lookup
from stigg_guard.client import ApiConfig, Stigg
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.decorators import OnRepeat
from stigg_guard.entitlements import Customer, Entitlement, require_id
from stigg_guard.errors import (
    ConfigError,
    FeatureDenied,
    InvalidRequest,
    LedgerUnavailable,
    RealLedgerWarning,
    SidecarError,
)
from stigg_guard.fallbacks import Fallback
from stigg_guard.ledger import Ledger, UsageKey, Use
from stigg_guard.observer import Audience, Observer
from stigg_guard.usage.confirm import Confirm, confirm_now
from stigg_guard.usage.consumption import Consumption, Occupation, checked_dimensions, make_event
from stigg_guard.usage.holds import Holds
from stigg_guard.usage.keys import FileKey, Key, once_of
from stigg_guard.usage.travelling import ResumedConsumption, Tokens, TravellingHold, unheld
from stigg_guard.workings import Workings, ledger_of, ledger_url, stand_ins

if TYPE_CHECKING:
    from stigg_guard.api import Api

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """Checks entitlements from a cache, holds what is about to be used, reports what was used.

    A guard is thread-safe and fork-safe: one serves all threads of a process and its forks. Nothing is connected,
    started or opened before the first use. ``config`` defaults to the ``STIGG_GUARD_*`` environment variables;
    ``stigg`` to a client and ``ledger`` to a ledger made from it. ``confirm`` decides when the usage of successful work
    is certain, ``observer`` is called for what happens. ``is_testing`` says whether tests run, in which the first use
    of a ledger that outlives them warns. ``secret`` is asked for what signs tokens where ``TOKEN_SECRET`` is not set.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        stigg: Stigg | None = None,
        clock: Clock | None = None,
        ledger: Ledger | None = None,
        confirm: Confirm = confirm_now,
        observer: Observer | None = None,
        is_testing: Callable[[], bool] = lambda: False,
        secret: Callable[[], str | bytes | None] = lambda: None,
    ) -> None:
        self.config = config if config is not None else Config.from_env()
        self._is_testing = is_testing
        self._secret = secret
        clock = clock or Clock()
        self._now = clock.now
        ledger = ledger if ledger is not None else ledger_of(self.config, clock)
        self._audience = Audience(clock, observer)
        lookup = Lookup(self.config, clock, ledger, stigg, self._audience)
        holds = Holds(self.config, lookup, ledger, clock, confirm, self._audience)
        self._own = Workings(lookup, ledger, holds)
        self._monotonic = clock.monotonic
        self._snapshots = lookup.cache.snapshots
        self._follows_checks = self._audience.follows_checks
        self._api: Api | None = None
        self._closed = False

    @property
    def stigg(self) -> Stigg:
        """The client, made on first use."""
        return self._workings.lookup.stigg

    @property
    def api(self) -> Api:
        """Stigg's GraphQL API, with the key of ``API_KEY``, made on first use; ``SIDECAR = local`` needs none.

        After each change the customers that it is about are read again, in all processes that share a ``CACHE``, so
        that the next check knows of it.

        Raises:
            ConfigError: there is no key.
        """
        if self._api is None:
            key = self.config.api_key
            own = ApiConfig(key, self.config.api_url) if key is not None else None
            self._api = self.stigg.new_api(own, self._changed)
        return self._api

    def _changed(self, customers: frozenset[str] | None) -> None:
        self._workings.lookup.outdate(customers)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Lets the observer be told, too, of what happens from now on; call the returned function to end that."""
        self._audience.add(observer)
        return lambda: self._audience.remove(observer)

    @property
    def ledger(self) -> Ledger:
        """The ledger, an outbox: holds and unsent usage."""
        return self._workings.ledger

    def check(
        self,
        feature: str,
        *,
        customer: str | Customer,
        requested_usage: Amount | None = None,
        requested_values: Sequence[str] = (),
        fallback: Fallback | None = None,
    ) -> Entitlement:
        """Returns whether the customer may use the feature, from the cache while that is fresh.

        ``requested_usage`` is in the feature's units, ``requested_values`` for enum features. A credit currency is
        asked for by its own id. ``fallback`` answers when there is no data, before the configured ones.

        Raises:
            SidecarUnavailable: there is neither data nor a fallback, and ``ON_OUTAGE`` is ``error``.
            InvalidRequest: an id is empty, or the requested usage is negative or no finite number.
        """
        if not requested_values and not stand_ins:
            snapshot = self._snapshots.get(customer) if isinstance(customer, (str, Customer)) else None
            if snapshot is not None and self._monotonic() < snapshot.fresh_until:
                answer = snapshot.answers.get(feature)
                if answer is not None and answer.has_access:
                    allowed = answer if requested_usage is None else snapshot.allowed(answer, requested_usage)
                    if allowed is not None:
                        if self._follows_checks:
                            self._audience.tell(Observer.checked, allowed, Customer.of(customer))
                        return allowed
        asked = Customer.of(customer)
        try:
            answer, _ = self._workings.lookup.decide(feature, asked, fallback, requested_usage, requested_values)
        except SidecarError as error:
            self._audience.tell(Observer.unanswered, feature, asked, error)
            raise
        if self._follows_checks:
            self._audience.tell(Observer.checked, answer, asked)
        return answer

    def require(
        self,
        feature: str,
        *,
        customer: str | Customer,
        requested_usage: Amount | None = None,
        requested_values: Sequence[str] = (),
        fallback: Fallback | None = None,
    ) -> Entitlement:
        """Checks as :meth:`check`, and raises a denial.

        Raises:
            FeatureDenied: the customer may not use the feature.
        """
        entitlement = self.check(
            feature,
            customer=customer,
            requested_usage=requested_usage,
            requested_values=requested_values,
            fallback=fallback,
        )
        if not entitlement.has_access:
            denied = FeatureDenied(entitlement, Customer.of(customer))
            self._audience.tell(Observer.denied, denied)
            raise denied
        return entitlement

    def peek(self, feature: str, *, customer: str | Customer) -> Entitlement:
        """Checks as :meth:`check`, for display only: a denial too is answered from the cache while that is fresh.

        Raises:
            SidecarUnavailable: as :meth:`check`.
            InvalidRequest: an id is empty.
        """
        return self._workings.lookup.shown(feature, Customer.of(customer))

    def entitlements(self, customer: str | Customer) -> Mapping[str, Entitlement]:
        """Returns all that the customer's plan has, by feature id and currency id; empty without a subscription.

        Raises:
            SidecarUnavailable: there is no data, fresh or stale.
        """
        return self._workings.lookup.entitlements(Customer.of(customer))

    def reload(self, customer: str | Customer) -> bool:
        """Reads the customer's entitlements from the source again: for read-after-write, say after an upgrade.

        Tells whether the customer (or its resource) exists.

        Raises:
            SidecarError: the sidecar did not answer; what was cached stays.
        """
        return self._workings.lookup.reload(Customer.of(customer))

    def forget(self, customer: str | Customer) -> None:
        """Invalidates the customer's cached entitlements, in all processes that share a ``CACHE``.

        The next request fetches them again; where a cache service runs, that one does so before anything else happens.
        For news from elsewhere, say from a webhook: it sends nothing to the sidecar and cannot fail. What is known goes
        on answering while the sidecar cannot be reached.
        """
        self._workings.lookup.hear(Customer.of(customer))

    def tell_of_threshold(self, part: float, entitlement: Entitlement, *, customer: str | Customer) -> None:
        """Tells the observers that usage has reached this part of its limit, as somebody else noticed, say Stigg.

        ``part`` is a fraction from 0, 0.8 for 80 %. Parts that ``THRESHOLDS`` names are not told: the report that
        brings usage there has told of them.

        Raises:
            InvalidRequest: the customer's id is empty.
        """
        whose = Customer.of(customer)
        if part not in self.config.thresholds:
            self._audience.tell(Observer.threshold_reached, whose, entitlement.feature_id, part, entitlement)

    def report(
        self,
        feature: str,
        value: Amount,
        *,
        customer: str | Customer,
        set_total: bool = False,
        dimensions: Dimensions | None = None,
        key: Key | None = None,
    ) -> None:
        """Reports usage that already happened: ``value`` units more, fewer when negative, or with ``set_total`` in all.

        It is in the ledger when this returns, and reported by the time that ``REPORT`` says. ``dimensions`` go with the
        report. What is reported or consumed of this feature alone with the same ``key`` within a day counts once.

        Raises:
            InvalidRequest: the value is not a finite number, an id is empty, or a dimension or the key is wrong.
            UsageInProgress: a use with the same key goes on.
            KeyReused: the key is bound to another use.
        """
        amount, told = usage_amount(value, negative=not set_total), checked_dimensions(dimensions)
        whose, once = _key(feature, customer), once_of(key, Customer.of(customer), [feature])
        holds = self._workings.holds
        holds.record(Use(whose, amount, is_set=set_total, dimensions=told), holds.begin(), once)

    def report_later(self, feature: str, *, customer: str | Customer) -> Callable[[Amount], None]:
        """Reports as :meth:`report`, for work that begins now. Call the returned function with the units on success.

        Raises:
            InvalidRequest: as from :meth:`report`.
        """
        key, holds = _key(feature, customer), self._workings.holds
        confirm = holds.begin()
        return lambda value: holds.record(Use(key, usage_amount(value, negative=True)), confirm)

    def consume(
        self,
        feature: str | Mapping[str, Amount],
        n: Amount = 1,
        *,
        customer: str | Customer,
        event: str | None = None,
        dimensions: Dimensions | None = None,
        at_least: Amount | None = None,
        key: Key | None = None,
    ) -> Consumption:
        """Holds ``n`` units (a reservation) while the block runs. Success reports them, an exception gives them back.

        ::

            with guard.consume("feature-templates", 2, customer="customer-demo-01") as usage:
                usage.amount = len(create_templates())

        Several features are held together, all or none: ``guard.consume({"feature-a": 1, "feature-b": 5}, …)``. With
        ``event`` the use is reported as a raw event of that name, instead of as usage; ``dimensions`` go with either.
        With ``at_least`` as many units of the one feature are held as are left, up to ``n``; ``usage.amount`` tells how
        many. Of a feature that is paid from credits at no known rate it is ``n`` or none.

        With ``key`` what the customer uses of these features counts once within a day, however often it is consumed: a
        repeat of a use that was counted ``is_repeat``, one of a use that failed is like new.

        Raises:
            FeatureDenied: on entering, when the units are not to be had; nothing is held.
            UsageInProgress: on entering, when a use with the same key goes on.
            KeyReused: on entering, when the key is bound to another use.
            SidecarUnavailable: on entering, as for :meth:`check`.
            LedgerUnavailable: on entering, when the hold cannot be written and ``ON_OUTAGE`` is ``error``.
            InvalidRequest: ``n`` is negative or not a finite number, ``at_least`` is not above 0 and at most ``n``, or
                the key is empty or longer than 255 characters.
        """
        amounts, whose = _amounts(feature, n), Customer.of(customer)
        told = checked_dimensions(dimensions)
        what = None if event is None else make_event(event, told)
        enough = None if at_least is None else _enough(amounts, at_least)
        once = once_of(key, whose, amounts)
        is_shared = isinstance(key, FileKey)
        return Consumption(self._workings.holds, amounts, whose, what, told, enough, once, is_shared)

    def occupy(self, feature: str | Mapping[str, Amount], n: Amount = 1, *, customer: str | Customer) -> Consumption:
        """Holds ``n`` units while the block runs and gives them back, however it ends: a limit of how many at once.

        Nothing is reported. The units of a process that dies come back after ``HOLD_TTL``. Arguments and errors are
        those of :meth:`consume`.
        """
        return Occupation(self._workings.holds, _amounts(feature, n), Customer.of(customer), None, {})

    def hold(
        self, feature: str | Mapping[str, Amount], n: Amount = 1, *, customer: str | Customer, ttl: float
    ) -> TravellingHold:
        """Holds ``n`` units for ``ttl`` seconds, for work that another process ends, which resumes its ``token``.

        It outlives this process. What is not resumed in time comes back by itself.

        Raises:
            FeatureDenied, SidecarUnavailable, InvalidRequest: as from :meth:`consume`; ``ttl`` is not above 0.
            LedgerUnavailable: the hold cannot be written, whatever ``ON_OUTAGE`` says.
            ConfigError: there is no ``TOKEN_SECRET``.
        """
        tokens, whose, amounts = self._tokens(), Customer.of(customer), _amounts(feature, n)
        if not ttl > 0:
            raise InvalidRequest("ttl", f"a hold lasts for more than 0 seconds, not {ttl!r}")
        answers, held = self._workings.holds.hold(amounts, whose, ttl=ttl)
        if held is not None and not held.id:
            raise LedgerUnavailable("the ledger cannot take a hold that travels")
        held = held or unheld(amounts, whose)
        answer = next(iter(answers.values()))
        return TravellingHold(tokens.token(held, self._now().timestamp() + ttl), held.claims[0].amount, answer)

    def resume(self, token: str) -> ResumedConsumption:
        """Returns the use whose units :meth:`hold` holds, to be entered, ended or extended here.

        It counts once, whoever else resumes it. Work that ends after the hold's time is reported all the same, and
        counted as late.

        Raises:
            InvalidRequest: it is no token of a hold that was signed with this ``TOKEN_SECRET``, or it ended long ago.
            ConfigError: there is no ``TOKEN_SECRET``.
        """
        return ResumedConsumption(self._workings.holds, self._tokens().hold(token, self._now().timestamp()))

    def _tokens(self) -> Tokens:
        secret = self.config.token_secret or self._secret()
        if not secret:
            raise ConfigError("TOKEN_SECRET: holds that travel need a secret that signs their tokens; set it")
        return Tokens(secret)

    def requires_feature(
        self, feature: str, *, customer: OneOrComputed[str | Customer]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorates a function: it runs only if the customer may use the feature, as by :meth:`require`.

        ``customer`` may be a callable of the function's arguments, here and below.
        """
        return decorators.requires_feature(feature, calls=Calls(lambda: self, customer))

    def consumes_usage(
        self,
        n: OneOrComputed[Amount],
        feature: str | None = None,
        *,
        customer: OneOrComputed[str | Customer],
        event: str | None = None,
        dimensions: OneOrComputed[Dimensions] | None = None,
        actual: Callable[[Any], Amount] | None = None,
        key: Callable[..., str | None] | None = None,
        on_repeat: OnRepeat = "refuse",
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorates a function or a job: it runs as the block of :meth:`consume` does.

        ``n`` and ``dimensions`` may be callables of the function's arguments. ``actual`` is called with what the
        function returned and says how many units are reported in place of those held. Without ``feature`` it is that
        of the ``requires_feature`` above. A generator's units are reported when it is exhausted, and given back when
        it is closed before; it is for iterating only, and takes no ``send``.

        ``key`` is a callable of the arguments, too: calls with the same key count once within a day, and with None it
        is an ordinary use. A call whose use was counted before raises ``UsageRepeated``, or with ``on_repeat="run"`` it
        runs and nothing is counted.

        Raises:
            ConfigError: ``on_repeat`` is neither ``"refuse"`` nor ``"run"``; or, at a call, no feature is named.
            InvalidRequest: ``n`` is negative or not finite, or the feature's id is empty; a callable's are judged at
                a call.
            FeatureDenied, SidecarUnavailable, LedgerUnavailable, KeyReused: at a call, as from :meth:`consume`.
            UsageInProgress: at a call, when a use with the same key goes on.
            UsageRepeated: at a call, when a use with the same key was counted.
        """
        return decorators.consumes_usage(
            n,
            feature,
            calls=Calls(lambda: self, customer),
            event=event,
            dimensions=dimensions,
            actual=actual,
            key=key,
            on_repeat=on_repeat,
        )

    def occupies(
        self, feature: str, n: OneOrComputed[Amount] = 1, *, customer: OneOrComputed[str | Customer]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorates a function or a job: it runs as the block of :meth:`occupy` does."""
        return decorators.occupies(feature, n, calls=Calls(lambda: self, customer))

    def releases_usage(
        self,
        n: OneOrComputed[Amount],
        feature: str,
        *,
        customer: OneOrComputed[str | Customer],
        actual: Callable[[Any], Amount] | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorates a function: ``n`` units of a fluctuating feature are given back when it succeeds, or as many as
        ``actual`` says of what it returned."""
        return decorators.releases_usage(n, feature, calls=Calls(lambda: self, customer), actual=actual)

    def send(self) -> None:
        """Reports what is unsent when ``REPORT`` says: now, or soon by the background thread. For usage that others put
        into the ledger; what fails stays there."""
        self._own.holds.flusher.send()

    def flush(self, timeout: float = 5.0) -> int:
        """Reports what is unsent within about ``timeout`` seconds; the number of reports left in the ledger."""
        return self._workings.holds.reporter.flush(timeout)

    def stats(self) -> Mapping[str, int]:
        """Counts the entries of the ledger that are ``held``, ``unsent``, ``sending``, ``uncertain`` and ``dead`` (dead
        letters), the holds that were committed ``late``, and what this process's reporter did."""
        return {**self.ledger.counts(), **self.reporter_stats()}

    def reporter_stats(self) -> Mapping[str, int]:
        """Returns the part of :meth:`stats` that needs no ledger: what this process's reporter did."""
        return self._workings.holds.reporter.stats()

    def close(self) -> None:
        """Flushes briefly, then closes the ledger and the client that this guard made. Closing twice is harmless."""
        if self._closed:
            return
        with ExitStack() as steps:  # all are made, whatever strikes one of them
            steps.callback(self._own.lookup.close)
            if self._api is not None:
                steps.callback(self._api.close)
            steps.callback(self._own.ledger.close)
            steps.callback(self._own.holds.close)
            self._closed = True

    @property
    def _workings(self) -> Workings:
        for stand_in in stand_ins[-1:]:
            return stand_in(self._own)
        if self._is_testing():
            self._warn_of_real_ledger()
        return self._own

    def _warn_of_real_ledger(self) -> None:
        if self.config.enabled and ledger_url(self.config) != "memory://":
            warnings.warn(
                "a test is about to use the ledger of the settings, and what it uses will be reported: override "
                'entitlements (stigg_guard.testing), or set LEDGER to "memory://"',
                RealLedgerWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _key(feature: str, customer: str | Customer) -> UsageKey:
    asked = Customer.of(customer)
    return UsageKey(asked.id, asked.resource or "", _feature_id(feature))


def _amounts(feature: str | Mapping[str, Amount], n: Amount) -> dict[str, float]:
    wanted = feature if isinstance(feature, Mapping) else {_feature_id(feature): n}
    amounts = {_feature_id(name): usage_amount(amount) for name, amount in wanted.items()}
    if not amounts:
        raise InvalidRequest("feature_id", "name at least one feature to consume")
    return amounts


def _enough(amounts: Mapping[str, float], at_least: Amount) -> float:
    """How many units of the one feature are enough."""
    if len(amounts) > 1:
        raise InvalidRequest("at_least", "of several features all is held or nothing; consume this one alone")
    enough = usage_amount(at_least, "at_least")
    if not 0 < enough <= next(iter(amounts.values())):
        raise InvalidRequest("at_least", f"it is above 0 and at most the units that are wanted, not {enough:g}")
    return enough


def _feature_id(feature: str) -> str:
    require_id(feature, "feature_id")
    return feature

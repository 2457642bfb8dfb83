"""Reservations of units: taken while quota is left, committed when work succeeds, given back when it fails."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from typing import NamedTuple, cast

from stigg_guard.cache.snapshots import Snapshot
from stigg_guard.cache.ttl_cache import cache_key
from stigg_guard.checks.lookup import DENIAL_SECONDS, Lookup
from stigg_guard.checks.outage import assumed
from stigg_guard.clock import Clock
from stigg_guard.config import Config, OnOutage
from stigg_guard.entitlements import Customer, Entitlement, Kind
from stigg_guard.errors import (
    ClientClosed,
    FeatureDenied,
    InvalidRequest,
    KeyReused,
    LedgerUnavailable,
    UsageInProgress,
    UsageRepeated,
)
from stigg_guard.ledger import Acknowledged, Event, Hold, Ledger, Once, UsageKey, Use
from stigg_guard.observer import Audience, Observer
from stigg_guard.runtime.forks import PerProcess
from stigg_guard.runtime.log import logger
from stigg_guard.usage.confirm import Confirm, ConfirmSince
from stigg_guard.usage.credits import price
from stigg_guard.usage.flushing import Flusher
from stigg_guard.usage.keeper import HoldKeeper
from stigg_guard.usage.pricing import Found, Pricing, Wallets, unpaid
from stigg_guard.usage.quota import Terms, exceeded, partly, take_units
from stigg_guard.usage.reporter import Reporter
from stigg_guard.usage.thresholds import tell_of_thresholds
from stigg_guard.usage.turns import Turns

REPEATED = Hold("", ())
"""Stands for the hold of a use that was counted before: nothing is held, nothing will be counted."""


class Holds:
    """Holds, uses and gives back units: decides with the lookup, writes into the ledger, hands to the reporter."""

    def __init__(
        self,
        config: Config,
        lookup: Lookup,
        ledger: Ledger,
        clock: Clock,
        confirm: Confirm,
        audience: Audience,
    ) -> None:
        self._config = config
        self._lookup = lookup
        self._ledger = ledger
        self.confirm = confirm
        self.audience = audience
        self._pricing = Pricing(config.credit_rates)
        self._background = PerProcess(partial(_background, config, lookup, ledger, clock, audience))
        # The threads of a guard that nobody has any more end by themselves.
        weakref.finalize(self, _leave, self._background).atexit = False

    @property
    def keeper(self) -> HoldKeeper:
        """What renews this process's holds."""
        return self._background.get().keeper

    @property
    def reporter(self) -> Reporter:
        """What reports for this process."""
        return self._background.get().reporter

    @property
    def flusher(self) -> Flusher:
        """What reports for this process where the background thread may have no time for it."""
        return self._background.get().flusher

    def hold(
        self,
        amounts: Mapping[str, float],
        customer: Customer,
        at_least: float | None = None,
        ttl: float | None = None,
        once: Once | None = None,
        is_shared: bool = False,
    ) -> tuple[dict[str, Entitlement], Hold | None]:
        """Takes reservations for the amounts of all features, or for none; there is no hold where nothing is counted.

        With ``at_least`` units of the one feature that is wanted, fewer are held where no more are left. They are held
        for ``ttl`` seconds, or for ``HOLD_TTL``, for which a watch renews them. The hold of a use that was counted
        ``once`` before is ``REPEATED``. One that ``is_shared`` holds nothing while another does.

        Raises:
            FeatureDenied: one of them is not to be had.
            UsageInProgress, KeyReused: another use has the key.
            SidecarError: there is neither data nor a fallback, and ``ON_OUTAGE`` is ``error``.
            LedgerUnavailable: the ledger cannot take it, and ``ON_OUTAGE`` is ``error``.
        """
        terms = Terms(ttl or self._config.hold_ttl, at_least, once, is_shared)
        try:
            with self.audience.timed(Observer.held, customer, tuple(amounts)):
                answers, hold = self._hold(amounts, customer, terms)
        except FeatureDenied as error:
            if self._was_counted(once):
                return {error.entitlement.feature_id: error.entitlement}, REPEATED
            self.audience.tell(Observer.checked, error.entitlement, customer)
            self.audience.tell(Observer.denied, error)
            raise
        for answer in answers.values() if self.audience.follows_checks else ():
            self.audience.tell(Observer.checked, answer, customer)
        return answers, hold

    def _hold(
        self, amounts: Mapping[str, float], customer: Customer, terms: Terms
    ) -> tuple[dict[str, Entitlement], Hold | None]:
        found = self._found(amounts, customer)
        if not self._lookup.counts:
            denied = next((asked for asked, _ in found.values() if not asked), None)
            if denied is not None:
                raise FeatureDenied(denied, customer)
            return _answers(found), None
        try:
            return self._taken(found, customer, terms)
        except FeatureDenied:
            ages = [self._lookup.cache.age(snapshot) for _, snapshot in found.values() if snapshot is not None]
            if max(ages, default=0.0) <= DENIAL_SECONDS:
                raise
        return self._taken(self._found(amounts, customer, DENIAL_SECONDS), customer, terms)

    def commit(
        self,
        hold: Hold,
        amounts: Mapping[str, float],
        event: Event | None,
        dimensions: Mapping[str, str | float | bool],
        *,
        travelled: bool = False,
    ) -> None:
        """Turns the hold of successful work into usage: it is in the ledger, or on other ways to the sidecar. One that
        has ``travelled`` may be ended by others, too, and counts once."""
        uses = [
            Use(claim.key, amounts[claim.key.feature_id], event=event, dimensions=dimensions, rate=claim.rate)
            for claim in hold.claims
        ]
        if hold.id:
            self._commit(hold, uses, travelled=travelled)
        elif hold.once is not None:
            self._record_once(uses, hold.once)
        else:
            for use in uses:
                self._record(use)

    def _commit(self, hold: Hold, uses: Sequence[Use], *, travelled: bool = False) -> None:
        whose = uses[0].key
        try:
            counted = self._ledger.commit(hold, uses, repeated=travelled)
        except LedgerUnavailable as error:
            self.keeper.unwatch(hold)
            if travelled:
                self._repeat(hold, uses)
            else:
                self._rescue(uses, error)
            return
        except ClientClosed:
            logger.critical("usage of %r is LOST: the guard was closed while it was in use", str(whose))
            raise
        except BaseException:  # from outside: nobody knows whether the step was made
            logger.error("an exception from outside interrupted the end of work on %r", str(whose))
            self._repeat(hold, uses)
            self.keeper.unwatch(hold)
            raise
        self.keeper.unwatch(hold)
        for use, usage in zip(uses, counted, strict=bool(counted)):  # none if a use with the same key was counted
            _show(self._lookup, use, usage)
            self.audience.tell(Observer.used, use)
        if any(use.amount or use.is_set for use in uses):
            self.flusher.send(whose.customer_id)

    def watch(self, hold: Hold, owner: object) -> None:
        """Renews the hold until it is committed or released, or its owner is dropped."""
        self.keeper.watch(hold, owner)
        self.reporter.start()

    def abandon(self, hold: Hold) -> None:
        """Has the hold given back soon, if it is watched: its work is over, and whoever was to end it was torn."""
        self.keeper.abandon(hold)

    def extend(self, hold: Hold, seconds: float) -> None:
        """Lets the hold last this many seconds from now."""
        self._ledger.renew([hold], seconds)

    def release(self, hold: Hold) -> None:
        """Gives back the hold of failed work. What cannot be given back now comes back when the hold expires."""
        try:
            if hold.id:
                self._ledger.release(hold)
        except (LedgerUnavailable, ClientClosed) as error:
            logger.warning("a hold cannot be given back and is left to expire: %s", error)
        self.keeper.unwatch(hold)

    def begin(self) -> Confirm:
        """Returns how work that begins now becomes certain."""
        return self.confirm.begin() if isinstance(self.confirm, ConfirmSince) else self.confirm

    def record(self, use: Use, confirm: Confirm, once: Once | None = None) -> None:
        """Takes usage that happened without a hold, when it is certain; nothing, if it was counted ``once`` before.

        Raises:
            UsageInProgress, KeyReused: another use has the key.
        """
        if not self._lookup.counts:
            return
        known = self._lookup.cache.snapshots.get(cache_key(Customer(use.key.customer_id, use.key.resource_id or None)))
        priced = use._replace(rate=self._pricing.rates(known).get(use.key.feature_id))
        if once is None:
            confirm(lambda certain: self._record(priced) if certain else None)
            return
        try:
            hold = self._key_held(once)
        except UsageRepeated:
            return
        except LedgerUnavailable:
            confirm(lambda certain: self._record_once([priced], once) if certain else None)
            return
        confirm(lambda certain: self._commit(hold, [priced]) if certain else self.release(hold))

    def close(self) -> None:
        """Reports what is unsent, briefly, and ends the threads."""
        try:
            self.reporter.close()
        finally:
            self.keeper.close()

    def _record_once(self, uses: Sequence[Use], once: Once) -> None:
        """Takes usage that does not hold its key, unless a use with the same one was counted."""
        self._commit(Hold(secrets.token_hex(8), (), once), uses)

    def _was_counted(self, once: Once | None) -> bool:
        """Whether a use with this key was counted: then a repeat may enter, whatever is left."""
        if once is None:
            return False
        try:
            self.release(self._key_held(once))
        except UsageRepeated:
            return True
        except (LedgerUnavailable, UsageInProgress, KeyReused):
            return False
        return False

    def _key_held(self, once: Once) -> Hold:
        """A hold of the key alone."""
        return cast(Hold, self._ledger.hold((), self._config.hold_ttl, once))  # without a claim there is no limit

    def _record(self, use: Use) -> None:
        try:
            usage = self._ledger.record(use)
        except LedgerUnavailable as error:
            self._rescue([use], error)
            return
        _show(self._lookup, use, usage)
        self.audience.tell(Observer.used, use)
        self.flusher.send(use.key.customer_id)

    def _found(
        self, amounts: Mapping[str, float], customer: Customer, max_age: float = inf
    ) -> dict[str, tuple[Entitlement, Snapshot | None]]:
        return {
            feature: self._lookup.known(feature, customer, requested_usage=n, max_age=max_age)
            for feature, n in amounts.items()
        }

    def _taken(self, found: Found, customer: Customer, terms: Terms) -> tuple[dict[str, Entitlement], Hold]:
        answers = _answers(found)
        wallets = self._pricing.wallets(found)
        if wallets is not None:
            hold = self._take(found, customer, terms, wallets)
            is_partly = terms.at_least is not None and hold is not REPEATED
            return (partly(answers, hold) if is_partly else answers), hold
        # Two that hold before they check would each be denied for the other's sake: one after the other.
        return self._background.get().checks.take(customer, partial(self._take_and_check, found, customer, terms))

    def _take_and_check(self, found: Found, customer: Customer, terms: Terms) -> tuple[dict[str, Entitlement], Hold]:
        """Holds first, so that others who check meanwhile see it, and then asks the sidecar about all that is held."""
        answers, hold = _answers(found), self._take(found, customer, terms, {})
        if hold is REPEATED:
            return answers, hold
        try:
            for feature, asked in answers.items():
                if asked.needs_fresh_check:
                    answers[feature] = self._lookup.checked(asked, customer, held=bool(hold.id))
                if not answers[feature]:
                    raise FeatureDenied(answers[feature], customer)
        except BaseException:
            self.release(hold)
            raise
        return answers, hold

    def _take(self, found: Found, customer: Customer, terms: Terms, wallets: Wallets) -> Hold:
        for asked, _ in found.values():
            if asked.kind is Kind.CREDIT and asked.currency == asked.feature_id:
                raise InvalidRequest(
                    "feature_id", f"{asked.currency} is a currency; consume the feature that spends it"
                )
            if not asked and not asked.is_limited:
                raise FeatureDenied(asked, customer)
        claims = [self._pricing.claim(asked, snapshot, customer) for asked, snapshot in found.values()]
        payments = self._pricing.payments(wallets, claims, customer)
        try:
            held = take_units(self._ledger, [*claims, *payments], terms, self._config.timeout)
        except UsageRepeated:
            return REPEATED
        except UsageInProgress:
            if not terms.is_shared:
                raise
            return Hold("", tuple(claims), terms.once)
        except LedgerUnavailable as error:
            return self._without_ledger(Hold("", tuple(claims), terms.once), customer, error)
        if isinstance(held, Hold):
            return held
        named, enough = held.claim.key.feature_id, terms.at_least
        if held.claim.pays_for:
            asked, enough = unpaid(wallets[named][0], claims, enough)
        else:
            asked, _ = found[named]
        raise FeatureDenied(exceeded(asked, held, enough), customer)

    def _without_ledger(self, unheld: Hold, customer: Customer, error: LedgerUnavailable) -> Hold:
        key = unheld.claims[0].key
        if self._config.on_outage is OnOutage.ERROR:
            raise error
        if self._config.on_outage is OnOutage.DENY:
            raise FeatureDenied(assumed(key.feature_id, has_access=False), customer)
        logger.error("%r is used without a hold, as ON_OUTAGE allows: %s", str(key), error)
        return unheld

    def _repeat(self, hold: Hold, uses: Sequence[Use]) -> None:
        self.reporter.repeat(partial(self._ledger.commit, hold, uses, repeated=True), uses)

    def _rescue(self, uses: Sequence[Use], error: LedgerUnavailable) -> None:
        self.reporter.rescue([use for use in uses if use.amount or use.is_set], error)


class _Background(NamedTuple):
    """What goes on in the background of one process, and what it has in memory for that."""

    keeper: HoldKeeper
    reporter: Reporter
    flusher: Flusher
    checks: Turns


def _background(config: Config, lookup: Lookup, ledger: Ledger, clock: Clock, audience: Audience) -> _Background:
    keeper = HoldKeeper(ledger, config.hold_ttl)
    acknowledged = partial(_acknowledged, lookup, audience, config.thresholds)
    reporter = Reporter(ledger, lambda: lookup.stigg, config, keeper, acknowledged, clock, audience)
    return _Background(keeper, reporter, Flusher(config, ledger, reporter), Turns(config.timeout))


def _leave(background: PerProcess[_Background]) -> None:
    own = background.get()
    own.reporter.leave()
    own.keeper.leave()


def _acknowledged(lookup: Lookup, audience: Audience, thresholds: Sequence[float], answer: Acknowledged) -> None:
    if answer.current_usage is not None:
        # What was used since the report was sent is not in its answer, so that only units given back lower it.
        lower = answer.report.is_set or answer.report.amount < 0
        _correct(lookup, answer.report.key, answer.current_usage, lower=lower)
    audience.tell(Observer.reported, answer)
    if thresholds:
        tell_of_thresholds(thresholds, lookup.shown, audience, answer)


def _show(lookup: Lookup, use: Use, usage: float) -> None:
    """Lets pages see a use and what it cost. It never lowers what they see: of a feature that was never held here the
    ledger knows only what it was told to record."""
    if use.amount >= 0 and not use.is_set:
        _correct(lookup, use.key, usage, lower=False)
        _spend(lookup, use)


def _spend(lookup: Lookup, use: Use) -> None:
    if use.rate is not None:
        owner = Customer(use.key.customer_id, use.key.resource_id or None)
        lookup.cache.spend(owner, use.rate.currency, price(use.rate, use.amount))


def _correct(lookup: Lookup, key: UsageKey, usage: float, *, lower: bool) -> None:
    lookup.cache.correct(Customer(key.customer_id, key.resource_id or None), key.feature_id, usage, lower=lower)


def _answers(found: Found) -> dict[str, Entitlement]:
    return {feature: answer for feature, (answer, _) in found.items()}

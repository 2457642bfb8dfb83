"""The distributed ledger, an outbox in one Redis that the processes of all hosts share."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from stigg_guard.amounts import quanta, quanta_used, units
from stigg_guard.clock import Clock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger.accounting import BATCH_EVENTS_PER_USAGE, KeyState, Row
from stigg_guard.ledger.entries import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Hold,
    LimitExceeded,
    Once,
    State,
    Ticket,
    UsageKey,
    Use,
    held_claims,
    period_text,
    require_free,
)
from stigg_guard.ledger.redis_fields import (
    LATE,
    batch_key,
    claim_words,
    ended_key,
    entry_of,
    held_parts,
    holder,
    microseconds,
    name_of,
    number_of,
    once_keys,
    one_customer,
    pairs,
    quoted,
    row_of,
    split_id,
    use_words,
)
from stigg_guard.ledger.redis_server import Part, Server, Unanswered
from stigg_guard.ledger.redis_steps import Step, Steps
from stigg_guard.ledger.redis_takeover import SWEEP_SECONDS, Takeover

SPLIT_SECONDS = 30.0
COMMITS_REMEMBERED_SECONDS = 600


class RedisLedger:
    """A ledger in Redis (6.2 or newer), exact among all hosts that use the same URL; or in one part of a cluster.

    What concerns one customer is one atomic step; a call about several customers is one step for each of them. Holds
    and leases are timed by the Redis server, so hosts' clocks do not matter. What Redis keeps over a restart is kept:
    all with ``appendfsync always``, all but the last second at a power failure with ``everysec``. Usage of one customer
    is reported in the order in which it was written, that of several as nearly as the clocks of their hosts agree.

    Each step is waited for at most a quarter of a second, or what ``?socket_timeout=`` in the URL says, in seconds.
    ``LedgerUnavailable`` after that, or after a lost connection, may mean that the step was made and only its answer
    was lost: a hold then expires, and a commit may be repeated for ten minutes, as no hold is committed twice.

    What the version before kept in the same Redis is taken over; ``redis_takeover`` says how.

    Raises:
        MissingExtra: on import, when redis-py is not installed.
        ConfigError: the URL is none of a Redis.
    """

    def __init__(self, home: str | Part, clock: Clock, *, settle_grace: float = 0.0) -> None:
        self._server = Server(home) if isinstance(home, str) else home
        self._steps = Steps(self._server, clock, lambda customer: self._takeover.begin(customer))
        self._takeover = Takeover(self._server, self._steps)
        self._grace = microseconds(settle_grace)

    def ticket(self, customer_id: str) -> Ticket:
        return Ticket(*self._steps.on(quoted(customer_id), "ticket"))

    def hold(self, claims: Sequence[Claim], ttl: float, once: Once | None = None) -> Hold | LimitExceeded:
        """As the protocol says, for claims of one customer.

        Raises:
            InvalidRequest: they are of different customers, or there are none.
        """
        customer = one_customer((claim.key for claim in claims), once)
        hold = Hold(secrets.token_hex(8), held_claims(claims), once)
        wishes = [word for claim in claims for word in claim_words(claim)]
        given = hold.id, microseconds(ttl), self._grace, "" if once is None else once.binding, *wishes
        answer = self._steps.queued({customer: Step("hold", given, once_keys(once))})[customer]
        if not answer:
            return hold
        if isinstance(answer, str):
            require_free(KeyState(answer))
        number, counted, limit, is_perhaps_free = answer
        return LimitExceeded(claims[number], units(counted), units(limit), bool(is_perhaps_free))

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        of_customers: defaultdict[str, list[Hold]] = defaultdict(list)
        for hold in holds:
            of_customers[holder(hold)].append(hold)
        renewals: list[Any] = []
        for customer, some in of_customers.items():
            keyed = {key: hold.id for hold in some for key in once_keys(hold.once)}
            words = *keyed.values(), *(part for hold in some for part in held_parts(hold))
            renewals.append(self._steps.of(customer, "renew", microseconds(ttl), *words, keys=tuple(keyed)))
        self._server.ask_all(renewals)

    def commit(self, hold: Hold, uses: Sequence[Use], *, repeated: bool = False) -> Sequence[float]:
        """As the protocol says. A hold that was committed before is not committed again; the usage is told anew.

        Raises:
            InvalidRequest: the uses are of another customer.
        """
        one_customer([*(claim.key for claim in hold.claims), *(use.key for use in uses)])
        return self._committed(hold, uses, repeated)

    def release(self, hold: Hold) -> None:
        self._server.ask(self._steps.of(holder(hold), "release", hold.id, *held_parts(hold), keys=once_keys(hold.once)))

    def record(self, use: Use) -> float:
        return self._committed(Hold(secrets.token_hex(8), ()), [use], repeated=False)[0]

    def take_batch(self, size: int, lease: float) -> Batch | None:
        self._takeover.sweep(SWEEP_SECONDS)
        while True:
            new = secrets.token_hex(16)
            opened = self._steps.on_queue("open", microseconds(lease), size, new, keys=(batch_key(new),))
            if opened is None:
                return None
            batch, ends, kind, seen = opened
            reports = self._filled(batch, ends, kind, pairs(seen), size) if kind else self._refilled(batch, ends)
            if reports:
                return Batch(batch, reports)

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        words: defaultdict[str, list[Any]] = defaultdict(list)
        for answer in answers:
            customer, entry = split_id(answer.report.id)
            told = "" if answer.current_usage is None else quanta_used(answer.current_usage)
            wallet, price = ("", 0.0) if answer.paid is None else (name_of(answer.paid[0]), answer.paid[1])
            words[customer] += [entry, told, period_text(answer.period), wallet, quanta(price)]
        self._change({customer: Step("acknowledge", given) for customer, given in words.items()}, ("unsent",))

    def put_back(self, reports: Sequence[Entry], seconds: float = 0.0, reason: str = "") -> None:
        self._note_ends(seconds)
        self._change_each("put_back", _ids(reports), ("unsent", "event"), microseconds(seconds), reason)

    def postpone(self, batch: Batch, seconds: float) -> None:
        self._steps.on_queue("postpone", batch.id, microseconds(seconds))

    def split(self, batch: Batch) -> None:
        name = f"{batch.id}/{secrets.token_hex(4)}"  # who was late and splits it again must not touch those parts
        parts = {f"{name}.{number}": report for number, report in enumerate(batch.reports)}
        lasts = microseconds(SPLIT_SECONDS)
        given: defaultdict[str, list[str]] = defaultdict(list)
        leases: list[Any] = []
        for part, report in parts.items():
            customer, entry = split_id(report.id)
            given[customer] += [entry, part]
            words = part, lasts, customer, number_of(report)[0]
            leases.append(self._steps.of_queue("lease", *words, keys=(batch_key(part),)))
        ends = self._server.ask_all(leases)[0]
        steps = [self._steps.of(customer, "split", batch.id, ends, *words) for customer, words in given.items()]
        moved = {part for some in self._server.ask_all(steps) for part in some}
        empty = {part: split_id(report.id)[0] for part, report in parts.items() if part not in moved}
        due = [self._steps.of_queue("postpone", part, 0) for part in parts if part in moved]
        gone = [self._left(part, {customer: ""}) for part, customer in empty.items()]
        rest = dict.fromkeys(split_id(parts[part].id)[0] for part in moved)
        self._server.ask_all([*due, *gone, self._left(batch.id, dict.fromkeys(rest, ""))])

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        self._note_ends(seconds)
        queues = ("unsent",) if seconds is None else ("uncertain",)
        lasts = "" if seconds is None else microseconds(seconds)
        self._change_each("doubt", _ids(reports), queues, lasts, reason)

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        reports: list[Entry] = []
        for customer, token in pairs(self._steps.on_queue("due", size)).items():
            left = size - len(reports)
            wait, rows = self._server.ask(self._steps.of(customer, "take_uncertain", token, left, microseconds(lease)))
            self._steps.on_queue("dequeue", "uncertain", customer, token, wait, "")
            reports += [entry_of(customer, row) for row in rows]
        return sorted(reports, key=number_of)

    def bury(self, report: Entry, reason: str) -> None:
        self._change_each("bury", [report.id], ("unsent",), reason)

    def known(self, key: UsageKey) -> Row | None:
        row = self._server.ask(self._steps.of(quoted(key.customer_id), "known", name_of(key)))
        return None if row is None else row_of(row)

    def outstanding(self, key: UsageKey) -> float:
        return units(self._server.ask(self._steps.of(quoted(key.customer_id), "outstanding", name_of(key))))

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        self._takeover.sweep()
        found: list[Entry] = []
        for seen in self._steps.customers():
            answers = self._steps.all_on(seen, "list", limit, *(state.value for state in states))
            for customer, rows in zip(seen, answers, strict=True):
                found += [entry_of(customer, row) for row in rows]
        return sorted(found, key=lambda entry: (entry.first_at, entry.id))[:limit]

    def retry(self, ids: Sequence[str]) -> int:
        return self._change_each("retry", ids, ("unsent", "event"))

    def discard(self, ids: Sequence[str]) -> int:
        return self._change_each("discard", ids, ("unsent",))

    def counts(self) -> Mapping[str, int]:
        self._takeover.sweep()
        names = ("held", "unsent", "unsent", "sending", "sending", "uncertain", "uncertain", "dead")
        counted = {**{state.value: 0 for state in State}, "waiting": 0}
        for seen in self._steps.customers():
            answers = self._server.ask_all(
                [self._steps.of(customer, "count", token) for customer, token in seen.items()]
            )
            gone: list[Any] = []
            for (customer, token), (kept, *numbers) in zip(seen.items(), answers, strict=True):
                for name, number in zip(names, numbers, strict=True):
                    counted[name] += number
                counted["waiting"] += numbers[6]
                if not kept:
                    gone += [customer, token, "", kept]
            if gone:
                self._steps.on_queue("dequeue", "", *gone)
        return {**counted, "late": int(self._server.ask(("GET", LATE)) or 0)}

    def close(self) -> None:
        self._server.close()

    def _committed(self, hold: Hold, uses: Sequence[Use], repeated: bool) -> Sequence[float]:
        customer = quoted(uses[0].key.customer_id)
        queues = {"event" if use.event else "unsent" for use in uses if use.amount or use.is_set}
        words = [word for use in uses for word in use_words(use)]
        parts, bound = held_parts(hold), ("", 0) if hold.once is None else (hold.once.binding, hold.once.kept)
        given = hold.id, COMMITS_REMEMBERED_SECONDS, int(repeated), *bound, len(parts), *parts, *words
        steps = {customer: Step("commit", given, (ended_key(customer, hold.id), *once_keys(hold.once)))}
        try:
            late, *usage = self._steps.queued(steps, queues)[customer]
        except Unanswered:  # perhaps only the answer was lost
            try:
                late, *usage = self._steps.queued(steps, queues)[customer]
            except LedgerUnavailable as error:
                error.repeat = lambda: self._committed(hold, uses, repeated)
                error.repeatable = COMMITS_REMEMBERED_SECONDS
                raise
        if late:
            with suppress(LedgerUnavailable):  # the commit is made, whoever counts it
                self._server.ask(("INCR", LATE))
        return [units(number) for number in usage]

    def _filled(self, batch: str, ends: int, kind: str, seen: Mapping[str, str], size: int) -> list[Entry]:
        """Marks entries of the customers as the batch; who has nothing left to send is taken out of the queue."""
        room = size * (BATCH_EVENTS_PER_USAGE if kind == "event" else 1) // len(seen)
        steps = [self._steps.of(customer, "take", token, batch, ends, room, kind) for customer, token in seen.items()]
        answers = self._server.ask_all(steps)
        gone = [
            word
            for (customer, token), (more, wait, kept, _) in zip(seen.items(), answers, strict=True)
            if not more
            for word in (customer, token, wait, kept)
        ]
        return self._in_batch(batch, seen, answers, [self._steps.of_queue("dequeue", kind, *gone)])

    def _refilled(self, batch: str, ends: int) -> list[Entry]:
        """What is left of a batch whose lease ended."""
        customers = self._server.ask(("HKEYS", batch_key(batch)))
        return self._in_batch(batch, customers, self._steps.all_on(customers, "take", "", batch, ends, 0, ""), [])

    def _in_batch(self, batch: str, customers: Iterable[str], answers: Sequence[Any], more: list[Any]) -> list[Entry]:
        """The reports of the batch, by what its customers answered; notes which of them have any."""
        reports: list[Entry] = []
        oldest: dict[str, str] = {}
        for customer, (_, _, _, rows) in zip(customers, answers, strict=True):
            found = [entry_of(customer, row) for row in rows]
            oldest[customer] = number_of(found[0])[0] if found else ""
            reports += found
        self._server.ask_all([*more, self._left(batch, oldest)])
        return sorted(reports, key=number_of)

    def _left(self, batch: str, oldest: Mapping[str, str]) -> Any:
        """The command that notes the oldest report of customers in a batch, and forgets those that have none."""
        words = [word for pair in oldest.items() for word in pair]
        return self._steps.of_queue("leave", batch, *words, keys=(batch_key(batch),))

    def _note_ends(self, seconds: float | None) -> None:
        """Tells the queue that something is to wait from now on."""
        if seconds:
            self._server.ask(self._steps.of_queue("note_time"))

    def _change_each(self, step: str, ids: Iterable[str], queues: Collection[str], *given: Any) -> int:
        entries: defaultdict[str, list[str]] = defaultdict(list)
        for entry_id in ids:
            customer, entry = split_id(entry_id)
            entries[customer].append(entry)
        steps = {customer: Step(step, (*given, *changed)) for customer, changed in entries.items()}
        return self._change(steps, queues)

    def _change(self, steps: Mapping[str, Step], queues: Collection[str]) -> int:
        """Changes entries of customers, and notes what is left of their batches; how many entries there were."""
        changed = 0
        left: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for customer, (number, *batches) in self._steps.queued(steps, queues).items():
            changed += number
            for batch, oldest in pairs(batches).items():
                left[batch][customer] = oldest
        self._server.ask_all([self._left(batch, oldest) for batch, oldest in left.items()])
        return changed


def _ids(reports: Iterable[Entry]) -> list[str]:
    return [report.id for report in reports]

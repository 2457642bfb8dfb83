"""The rules of the ledger say the same in Python and in Lua to the last digit: one table of cases runs through both."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from redis_server import RedisServer
from stigg_guard.ledger import accounting
from stigg_guard.ledger.accounting import ADDED_UP_WITHIN, Mark, News, Pending, Period, Row
from stigg_guard.ledger.entries import before_text, instant_text, period_text
from stigg_guard.ledger.redis_scripts import script

NOW = 1_772_323_200_000_000
SECOND = 1_000_000_000
DAY = 86_400 * SECOND
START = NOW * 1000
GRACE = 15_000_000
MUCH = 2 * 10**15 + 1  # what three of come to is exact in Lua
PERIODS = [
    Period(),
    Period(START, START + DAY),
    Period(START + DAY, START + 2 * DAY),
    Period(START - DAY, START),
    Period(START - 15 * DAY + 7, START + 15 * DAY + 7),
    Period(START, None),
    Period(None, START),
    Period(START + 1, START + DAY),
]
READS = [START, START - 1, START + 1, START + DAY - 1, START + DAY, START + ADDED_UP_WITHIN, START - 90 * DAY, 0, 999]
INSTANTS = [NOW, NOW - 1, NOW + 1, NOW - GRACE, NOW - GRACE + 1, NOW - 86_400_000_000, NOW + 3_600_000_000, 0]
AMOUNTS = [0, 1, 2, 100_000, 1_000_000, 1_000_001, 2_500_000, 10_000_000, MUCH]
TICKETS = [0, 1, 2, 3, 5, 8]

# The fields of a value, in order, as texts; an empty one for nil.
SHOWN = """
local function shown(...)
    local texts = {}
    for i = 1, select('#', ...) do
        local value = select(i, ...)
        if type(value) == 'table' then
            for _, field in ipairs({'period', 'used', 'limit', 'seen', 'settled', 'settled_at', 'moved_at', 'added'}) do
                local one = value[field]
                table.insert(texts, type(one) == 'number' and string.format('%.17g', one) or tostring(one))
            end
        else
            table.insert(texts, type(value) == 'number' and string.format('%.17g', value) or tostring(value))
        end
    end
    return texts
end
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), durable=False) as running:
        yield running


def lua(value: Any) -> str:
    """A value of the accounting as an expression of Lua."""
    if value is None or isinstance(value, bool):
        return {None: "nil", True: "true", False: "false"}[value]
    if isinstance(value, Period):
        return f"'{period_text(value)}'"
    if isinstance(value, Pending):
        value = value._replace(used_at=instant_text(value.used_at))
    if isinstance(value, (Row, News, Pending, Mark)):
        return "{" + ", ".join(f"{name} = {lua(one)}" for name, one in value._asdict().items()) + "}"
    return repr(value)


def shown(*values: Any) -> list[str]:
    """What Lua shows of them."""
    texts: list[str] = []
    for value in values:
        if isinstance(value, Row):
            texts += shown(*value)
        elif isinstance(value, Period):
            texts.append(period_text(value))
        else:
            texts.append(lua(value) if value is None or isinstance(value, bool) else str(value))
    return texts


def told_by_lua(server: RedisServer, calls: Sequence[str]) -> list[list[str]]:
    """What the calls return, a text for each field."""
    told: list[list[str]] = []
    for start in range(0, len(calls), 200):
        some = calls[start : start + 200]
        source = script(f"{{{', '.join(f'shown({call})' for call in some)}}}").source
        told += server.client.eval(SHOWN + source, 2, "book", "index", NOW)
    return told


def compare(server: RedisServer, name: str, cases: Iterable[tuple[Any, ...]], *, rule: Callable[..., Any]) -> None:
    """Runs the cases through both; ``rule`` gives what Python says as Lua shows it."""
    given = [(case, f"{name}({', '.join(lua(one) for one in case)})") for case in cases]
    assert len(given) > 50
    for (case, call), told in zip(given, told_by_lua(server, [call for _, call in given]), strict=True):
        assert told == rule(*case), call


def some(seed: int, *fields: Callable[[random.Random], Any], number: int = 600) -> list[tuple[Any, ...]]:
    """Random cases."""
    rng = random.Random(seed)
    return [tuple(field(rng) for field in fields) for _ in range(number)]


def one_of(values: Sequence[Any]) -> Callable[[random.Random], Any]:
    return lambda rng: rng.choice(values)


def near(values: Sequence[int], width: int) -> Callable[[random.Random], int]:
    """One of the values, or something close to it."""
    return lambda rng: max(0, rng.choice(values) + rng.choice([0, 0, 0, rng.randint(-width, width)]))


def amount(rng: random.Random) -> int:
    return rng.choice(AMOUNTS) if rng.random() < 0.7 else rng.randrange(MUCH // 10**6)


def maybe(field: Callable[[random.Random], Any], often: float = 0.8) -> Callable[[random.Random], Any]:
    return lambda rng: field(rng) if rng.random() < often else None


period, ticket = one_of(PERIODS), one_of(TICKETS)
instant, read = near(INSTANTS, 2_000_000), near(READS, 2 * SECOND)


def limit(rng: random.Random) -> int | None:
    return rng.choice([None, -1, 0, *AMOUNTS])


def row(rng: random.Random) -> Row:
    settled_at, moved_at = maybe(instant)(rng), maybe(instant, 0.6)(rng)
    added = rng.choice([0, 0, 0, amount(rng)])
    return Row(period(rng), amount(rng), limit(rng), ticket(rng), ticket(rng), settled_at, moved_at, added)


def news(rng: random.Random) -> News:
    return News(period(rng), amount(rng), limit(rng), ticket(rng), instant(rng))


def pending(rng: random.Random) -> Pending:
    sign = rng.choice([1, 1, -1])
    dimensions = rng.choice(["", "", '{"agent": "a"}'])
    return Pending(sign * amount(rng), period(rng), read(rng), rng.random() < 0.2, ticket(rng), dimensions)


def plain(rng: random.Random) -> Pending:
    return pending(rng)._replace(ticket=rng.choice([0, 0, 0, 1]), dimensions=rng.choice(["", "", "{}"]))


def test_periods(server: RedisServer) -> None:
    pairs = list(itertools.product(PERIODS, PERIODS))
    compare(server, "ended_before", pairs, rule=lambda one, other: shown(one.ended_before(other)))
    instants = [(one, instant_text(at)) for one in PERIODS for at in READS]
    numbers = {instant_text(at): at for at in READS}
    compare(server, "period_holds", instants, rule=lambda one, at: shown(one.holds(numbers[at])))
    compare(server, "period_surely_holds", instants, rule=lambda one, at: shown(one.surely_holds(numbers[at])))


def test_times(server: RedisServer) -> None:
    ahead = [(at,) for at in [*INSTANTS, *range(NOW, NOW + 50), -1, -1_000_000, -NOW, MUCH]]
    compare(server, "instant_text", ahead, rule=lambda at: [instant_text(at * 1000)])
    two = some(1, read, read)
    texts = [(instant_text(one), instant_text(other)) for one, other in two if abs(one - other) < 2**53]
    numbers = {instant_text(at): at for pair in two for at in pair}
    compare(server, "apart", texts, rule=lambda one, other: [str(abs(numbers[one] - numbers[other]))])
    far = [(instant_text(one), instant_text(other)) for one, other in two if abs(one - other) >= 2**53]
    calls = [f"apart('{one}', '{other}') > {ADDED_UP_WITHIN}" for one, other in far]
    assert told_by_lua(server, calls) == [["true"]] * len(far)


def test_stamped_and_sent_at(server: RedisServer) -> None:
    cases = some(2, period, read, read)
    numbers = {instant_text(at): at for case in cases for at in case[1:]}
    texts = [(one, instant_text(used), instant_text(at)) for one, used, at in cases]
    compare(
        server,
        "stamped",
        [(one, at) for one, _, at in texts],
        rule=lambda one, at: [instant_text(accounting.stamped(one, numbers[at]))],
    )
    compare(
        server,
        "sent_at",
        texts,
        rule=lambda one, used, at: [instant_text(accounting.sent_at(one, numbers[used], numbers[at]))],
    )


def test_key_state_and_is_counted(server: RedisServer) -> None:
    marks = [
        Mark(hold, ends, binding)
        for hold in ("", "7f00")
        for ends in (NOW - 1, NOW, NOW + 1, NOW + 86_400_000_000)
        for binding in ("", "a", "b")
    ]
    cases = list(itertools.product([None, *marks], ["", "a"], [NOW, NOW + 1, NOW + 86_400_000_000]))
    compare(server, "key_state", cases, rule=lambda *case: [accounting.key_state(*case).value])
    assert {accounting.key_state(*case) for case in cases} == set(accounting.KeyState)
    known = [(mark, now) for mark, _, now in cases]
    compare(server, "is_counted", known, rule=lambda *case: shown(accounting.is_counted(*case)))


def test_until(server: RedisServer) -> None:
    cases = some(3, instant, one_of([0, 1, 1_000_000, GRACE]), instant)
    compare(server, "until_", cases, rule=lambda *case: shown(accounting.until(*case)))


@pytest.mark.parametrize("seed", range(2))
def test_believed(server: RedisServer, seed: int) -> None:
    cases = some(seed, maybe(row, 0.95), news, instant, one_of([0, 1, GRACE]))
    compare(server, "believed", cases, rule=lambda *case: shown(*accounting.believed(*case)))


def test_counts(server: RedisServer) -> None:
    cases = some(4, pending, period, number=1_500)
    compare(server, "counts", cases, rule=lambda *case: shown(accounting.counts(*case)))


def test_counted(server: RedisServer) -> None:
    """Lua keeps the sum of what is on its way, and counts with that."""
    cases = some(5, row, amount, lambda rng: [pending(rng) for _ in range(rng.randrange(5))])
    calls = []
    for known, held, on_its_way in cases:
        sums = "{more = 0, total = 0}"
        for one in on_its_way:
            sums = f"summed({sums}, {lua(one)}, {lua(known.period)})"
        calls.append(f"counted({lua(known)}, {held}, {sums})")
    told = told_by_lua(server, calls)
    small = [known.used + held + sum(abs(one.amount) for one in more) < 2**53 for known, held, more in cases]
    assert sum(small) > 100
    for case, is_small, (counted,) in zip(cases, small, told, strict=True):
        if is_small:
            assert counted == str(accounting.counted(*case)), case


def test_is_free(server: RedisServer) -> None:
    cases = list(itertools.product(AMOUNTS[:-1], AMOUNTS[:-1], [None, -1, *AMOUNTS]))
    compare(server, "is_free", cases, rule=lambda *case: shown(accounting.is_free(*case)))


def test_is_perhaps_free(server: RedisServer) -> None:
    some_limit = maybe(one_of([-1_000_000, *AMOUNTS[:-1], 20_000_000]), 0.95)
    sending = lambda rng: [pending(rng) for _ in range(rng.randrange(4))]  # noqa: E731  # a field, as the others are
    cases = some(7, row, amount, one_of(AMOUNTS[:-1]), some_limit, sending)
    told = told_by_lua(
        server,
        [
            f"is_perhaps_free({', '.join(lua(one) for one in case)}, {{{', '.join(map(lua, reports))}}})"
            for *case, reports in cases
        ],
    )
    answers = [accounting.is_perhaps_free(*case) for case in cases]
    assert 50 < sum(answers) < 500
    assert told == [shown(answer) for answer in answers]


def test_taken(server: RedisServer) -> None:
    def rule(*case: Any) -> list[str]:
        taken, before = accounting.taken(*case)
        return shown(taken, before_text(before))

    compare(server, "taken", some(6, row, ticket, one_of([True, False])), rule=rule)


@pytest.mark.parametrize("seed", range(2))
def test_learned(server: RedisServer, seed: int) -> None:
    told_or_not = maybe(one_of([0, 1, 1_000_000, 3_500_000, MUCH]), 0.8)
    cases = [
        (known, one, told, period if told is not None else Period(), number, now)
        for known, one, told, period, number, now in some(
            seed, maybe(row, 0.95), pending, told_or_not, one_of(PERIODS), one_of([9, 11]), instant
        )
    ]
    compare(server, "learned", cases, rule=lambda *case: shown(accounting.learned(*case)))


@pytest.mark.parametrize("seed", range(2))
def test_may_add_up(server: RedisServer, seed: int) -> None:
    cases = some(seed, plain, plain, period)
    close = [(first, second._replace(period=first.period), present) for first, second, present in cases]
    edges = [
        (
            Pending(1, one, START),
            Pending(1, one, START + apart),
            PERIODS[0],
        )
        for one in PERIODS
        for apart in (0, ADDED_UP_WITHIN, ADDED_UP_WITHIN + 1, -ADDED_UP_WITHIN, -ADDED_UP_WITHIN - 1)
    ]
    every = [*cases, *close, *edges]
    compare(server, "may_add_up", every, rule=lambda *case: shown(accounting.may_add_up(*case)))
    assert {accounting.may_add_up(*case) for case in every} == {True, False}

"""The commands ``stigg-guard ledger …`` and ``stigg-guard report``, on real ledgers and against a real sidecar."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from stigg_guard import Clock, GetMeteredEntitlementRequest
from stigg_guard.__main__ import main
from stigg_guard.clock import utc_now
from stigg_guard.ledger import Claim, Event, Ledger, News, Period, State, UsageKey, Use, ledger_from_url
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

CUSTOMERS = 150  # more than one batch takes
CATALOG = """
[features.f]
type = "metered"
meter = "fluctuating"
[meters.login]
feature = "f"
aggregation = "count"
[plans.p.entitlements]
f = { limit = 100 }
""" + "\n".join(f'[customers.c{number}]\nplan = "p"' for number in range(CUSTOMERS))

Run = Callable[..., tuple[int, str, str]]


def key(customer: str = "c0", resource: str = "") -> UsageKey:
    return UsageKey(customer, resource, "f")


@pytest.fixture
def engine() -> Engine:
    return Engine(parse_catalog(CATALOG), Store(None))


@pytest.fixture
def sidecar(engine: Engine) -> Iterator[Sidecar]:
    with serve(engine) as running:
        yield running


def serve(engine: Engine, address: str = "127.0.0.1:0") -> Sidecar:
    host, port = address.split(":")
    return Sidecar(engine, host=host, port=int(port), http_port=0)


def used(engine: Engine, customer: str = "c0") -> float:
    request = GetMeteredEntitlementRequest(customer_id=customer, feature_id="f")
    answer: Any = engine.answer("GetMeteredEntitlement", request)
    return float(answer.entitlement.current_usage)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a ledger.db"


@pytest.fixture
def ledger_at(path: Path, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], Ledger]]:
    """Opens the ledger of the environment, at a time so many seconds ago."""
    url = f"sqlite:///{quote(str(path))}"
    monkeypatch.setenv("STIGG_GUARD_SIDECAR", sidecar.address)
    monkeypatch.setenv("STIGG_GUARD_LEDGER", url)
    with ExitStack() as opened:

        def open_at(seconds_ago: float) -> Ledger:
            clock = Clock(now=lambda: utc_now() - timedelta(seconds=seconds_ago))
            return opened.enter_context(closing(ledger_from_url(url, clock)))

        yield open_at


@pytest.fixture
def ledger(ledger_at: Callable[[float], Ledger]) -> Ledger:
    """The ledger of the environment, in which everything happens two hours ago."""
    made = ledger_at(7_200)
    made.counts()  # makes the file
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; its exit status, and what it printed on standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def entries(ledger: Ledger) -> dict[State, str]:
    """The ids of one entry that is dead, one that is uncertain, and one that is unsent."""
    reports = []
    for customer in ("c1", "c2"):
        ledger.record(Use(key(customer), 2))
        batch = ledger.take_batch(1, 30)
        assert batch is not None
        reports.append(batch.reports[0])
    ledger.bury(reports[0], "the feature\nis not there")
    ledger.doubt([reports[1]], None, "no answer")
    ledger.record(Use(key("c0", "site-01"), 5, is_set=True))
    return {state: ledger.entries((state,), 1)[0].id for state in (State.DEAD, State.UNCERTAIN, State.UNSENT)}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """Makes standard input a terminal, and types a line into it."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as stdin, os.fdopen(ours, "wb", buffering=0) as keyboard:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda line: keyboard.write(f"{line}\n".encode())


class TestStatus:
    @pytest.mark.usefixtures("entries")
    def test_counts_the_entries_of_each_state_with_the_age_of_the_oldest(self, run: Run) -> None:
        assert run("ledger", "status") == (
            0,
            "state      entries  oldest\n"
            "held       0        -\n"
            "unsent     1        2 h\n"
            "sending    0        -\n"
            "uncertain  1        2 h\n"
            "dead       1        2 h\n"
            "late       0\n",
            "",
        )

    @pytest.mark.usefixtures("entries")
    def test_prints_json(self, run: Run) -> None:
        _, printed, _ = run("ledger", "status", "--json")
        status = json.loads(printed)
        assert (status["late"], status["states"]["dead"]["entries"]) == (0, 1)
        assert status["states"]["dead"]["oldest_seconds"] >= 7200
        assert status["states"]["held"] == {"entries": 0, "oldest_seconds": None}

    def test_reads_the_ledger_of_the_url_instead_of_the_environment(
        self, run: Run, ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger.record(Use(key(), 1))
        monkeypatch.setenv("STIGG_GUARD_LEDGER", "memory://")
        monkeypatch.chdir(path.parent)
        status, printed, _ = run("ledger", "status", "--json", "--url", f"sqlite:///{path.name}")
        assert (status, json.loads(printed)["states"]["unsent"]["entries"]) == (0, 1)


class TestList:
    @pytest.mark.usefixtures("entries")
    def test_shows_a_table_that_no_id_or_reason_can_break(self, run: Run) -> None:
        status, printed, _ = run("ledger", "list")
        assert status == 0
        assert printed == (
            "id  state      customer  resource  feature  amount  age  attempts  reason\n"
            "1   dead       c1                  f        +2      2 h  1         the feature\\nis not there\n"
            "2   uncertain  c2                  f        +2      2 h  1         no answer\n"
            "3   unsent     c0        site-01   f        =5      2 h  0\n"
        )

    @pytest.mark.parametrize(
        ("ago", "age"), [(-60, "0 s"), (30, r"3\d s"), (90, "1 min"), (7_201, "2 h"), (200_000, "2 d")]
    )
    def test_shows_the_age_in_the_unit_that_fits(
        self, run: Run, ledger_at: Callable[[float], Ledger], ago: float, age: str
    ) -> None:
        ledger_at(ago).record(Use(key(), 1))
        assert re.search(rf"[+]1 +{age} ", run("ledger", "list")[1])

    @pytest.mark.usefixtures("entries")
    def test_shows_only_the_states_that_are_named(self, run: Run) -> None:
        _, printed, _ = run("ledger", "list", "--state", "dead", "uncertain", "--json")
        assert [entry["state"] for entry in json.loads(printed)] == ["dead", "uncertain"]

    def test_shows_holds(self, run: Run, ledger_at: Callable[[float], Ledger]) -> None:
        claim = Claim(key(), 4, News(Period(), used=0, limit=None))
        ledger_at(0).hold([claim], ttl=300)
        _, printed, _ = run("ledger", "list", "--state", "held", "--json")
        (held,) = json.loads(printed)
        assert (held["state"], held["amount"]) == ("held", 4)

    def test_prints_json_with_everything_that_is_known(self, run: Run, ledger: Ledger) -> None:
        ledger.record(Use(key("c0", "site-01"), 1, event=Event("login", "key-1", {"user": "u"})))
        _, printed, _ = run("ledger", "list", "--json")
        (entry,) = json.loads(printed)
        assert entry.pop("used_at") == entry.pop("first_used_at")
        assert entry == {
            "customer_id": "c0",
            "resource_id": "site-01",
            "feature_id": "f",
            "id": "1",
            "state": "unsent",
            "amount": 1,
            "is_set": False,
            "event": {"name": "login", "idempotency_key": "key-1", "dimensions": {"user": "u"}},
            "reason": "",
            "attempts": 0,
            "dimensions": {},
        }

    @pytest.mark.usefixtures("entries")
    def test_says_when_there_are_more_than_the_limit(self, run: Run) -> None:
        _, printed, told = run("ledger", "list", "--limit", "2")
        assert (printed.count("\n"), told) == (3, "there are more than these 2; raise --limit\n")

    @pytest.mark.usefixtures("ledger")
    def test_says_when_there_is_nothing(self, run: Run) -> None:
        assert run("ledger", "list") == (0, "nothing\n", "")


STRANGE = "a\n\x1b[2Jdead  0\u2028\x85\x00b"
STRANGE_SHOWN = r"a\n\x1b[2Jdead  0\u2028\x85\x00b"


class TestOutput:
    """What comes from elsewhere can neither break a line nor steer the terminal."""

    def test_ids_of_entries_are_shown_on_one_line(self, run: Run, ledger: Ledger) -> None:
        ledger.record(Use(UsageKey(STRANGE, STRANGE, STRANGE), 1))
        _, printed, _ = run("ledger", "list")
        (_, row) = printed.splitlines()
        assert (row.count(STRANGE_SHOWN), row.isprintable()) == (3, True)

    def test_features_and_units_are_shown_on_one_line(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feature = json.dumps(STRANGE)
        shop = tmp_path / "shop.toml"
        shop.write_text(
            f"[features.{feature}]\ntype = 'metered'\nmeter = 'incremental'\nunits_plural = {feature}\n"
            f"[plans.p.entitlements]\n{feature} = {{ limit = 3 }}\n[customers.c]\nplan = 'p'\n"
        )
        for name, value in {"SIDECAR": "offline", "OFFLINE_FILE": str(shop)}.items():
            monkeypatch.setenv(f"STIGG_GUARD_{name}", value)
        assert run("check", "c") == (0, f"{STRANGE_SHOWN}  yes  0 of 3 {STRANGE_SHOWN}\n", "")
        status, printed, _ = run("features", str(tmp_path))
        assert (status, printed.splitlines()[0]) == (0, f"known, and not named here: {STRANGE_SHOWN}")

    @pytest.mark.usefixtures("ledger")
    def test_an_error_is_one_line(self, run: Run) -> None:
        for command in (("check", STRANGE, "f"), ("check", "c", STRANGE), ("ledger", "retry", STRANGE)):
            _, printed, told = run(*command)
            assert (printed + told).count("\n") == 1


class TestRetry:
    def test_makes_a_dead_entry_unsent(self, run: Run, ledger: Ledger, entries: dict[State, str]) -> None:
        status, printed, _ = run("ledger", "retry", entries[State.DEAD])
        assert (status, printed.split(":")[0]) == (0, "1 unsent again")
        assert (ledger.counts()["dead"], ledger.counts()["unsent"]) == (0, 2)

    @pytest.mark.usefixtures("entries")
    def test_takes_all_when_it_may(self, run: Run, ledger: Ledger) -> None:
        assert run("ledger", "retry", "--all", "--yes", "--json")[:2] == (0, '{\n  "retried": 2\n}\n')
        assert ledger.counts()["unsent"] == 3

    def test_wants_to_be_told_that_an_entry_may_count_twice(
        self, run: Run, ledger: Ledger, entries: dict[State, str]
    ) -> None:
        status, _, told = run("ledger", "retry", entries[State.DEAD], entries[State.UNCERTAIN])
        assert (status, told) == (
            2,
            "stigg-guard: 1 of them may have been counted, and would count twice; give --yes if that is right\n",
        )
        assert ledger.counts()["dead"] == 1

    def test_goes_on_when_the_terminal_says_yes(
        self, run: Run, ledger: Ledger, entries: dict[State, str], terminal: Callable[[str], object]
    ) -> None:
        terminal("yes")
        status, _, asked = run("ledger", "retry", entries[State.UNCERTAIN])
        assert (status, asked) == (0, "1 of them may have been counted, and would count twice. Go on? [y/N] ")
        assert ledger.counts()["uncertain"] == 0

    def test_does_nothing_when_the_terminal_says_no(
        self, run: Run, ledger: Ledger, entries: dict[State, str], terminal: Callable[[str], object]
    ) -> None:
        terminal("")
        assert run("ledger", "retry", entries[State.UNCERTAIN])[:2] == (1, "")
        assert ledger.counts()["uncertain"] == 1


class TestDiscard:
    def test_forgets_an_entry(self, run: Run, ledger: Ledger, entries: dict[State, str]) -> None:
        assert run("ledger", "discard", entries[State.DEAD], "--yes") == (0, "1 discarded\n", "")
        assert (ledger.counts()["dead"], ledger.counts()["uncertain"]) == (0, 1)

    @pytest.mark.usefixtures("entries")
    def test_takes_all_when_it_may(self, run: Run, ledger: Ledger) -> None:
        assert run("ledger", "discard", "--all", "--yes", "--json")[:2] == (0, '{\n  "discarded": 2\n}\n')
        assert ledger.counts()["unsent"] == 1

    @pytest.mark.usefixtures("entries")
    def test_without_a_terminal_wants_yes(self, run: Run, ledger: Ledger) -> None:
        status, _, told = run("ledger", "discard", "--all")
        assert (status, told) == (
            2,
            "stigg-guard: 2 would be forgotten for good, and never be billed; give --yes if that is right\n",
        )
        assert ledger.counts()["dead"] == 1

    @pytest.mark.usefixtures("entries")
    def test_does_nothing_when_the_terminal_says_no(
        self, run: Run, ledger: Ledger, terminal: Callable[[str], object]
    ) -> None:
        terminal("n")
        assert run("ledger", "discard", "--all")[0] == 1
        assert ledger.counts()["dead"] == 1

    def test_says_what_somebody_else_decided_meanwhile(self, ledger: Ledger, entries: dict[State, str]) -> None:
        ours, theirs = pty.openpty()
        program = [sys.executable, "-m", "stigg_guard", "ledger", "discard", "--all"]
        pipe = subprocess.PIPE
        with (
            os.fdopen(ours, "wb", buffering=0) as keyboard,
            subprocess.Popen(program, stdin=theirs, stdout=pipe, stderr=pipe, text=True) as discard,
        ):
            os.close(theirs)
            assert discard.stderr is not None
            assert discard.stderr.read(1)  # it asks, so it has read the ledger
            ledger.retry([entries[State.DEAD]])
            keyboard.write(b"y\n")
            printed, told = discard.communicate(timeout=60)
        assert (discard.returncode, printed) == (0, "1 discarded\n")
        assert told.endswith("1 others were decided by somebody else meanwhile\n")

    @pytest.mark.usefixtures("ledger")
    def test_of_nothing_asks_nothing(self, run: Run) -> None:
        assert run("ledger", "discard", "--all") == (0, "0 discarded\n", "")


@pytest.mark.parametrize("action", ["retry", "discard"])
class TestWrongChoices:
    def test_a_wrong_id_is_told_and_nothing_is_changed(
        self, run: Run, ledger: Ledger, entries: dict[State, str], action: str
    ) -> None:
        status, _, told = run("ledger", action, entries[State.DEAD], entries[State.UNSENT], "77", "--yes")
        assert (status, told.count("\n")) == (2, 1)
        assert told.startswith("stigg-guard: no dead or uncertain entry has the id 3, 77, so nothing was changed")
        assert ledger.counts()["dead"] == 1

    @pytest.mark.parametrize("choice", [[], ["--all", "1"]])
    @pytest.mark.usefixtures("ledger")
    def test_ids_and_all_exclude_each_other_and_one_is_needed(self, run: Run, action: str, choice: list[str]) -> None:
        assert run("ledger", action, *choice)[0] == 2


class TestDrain:
    def test_sends_what_is_unsent_and_shows_progress(self, run: Run, ledger: Ledger, engine: Engine) -> None:
        for number in range(CUSTOMERS):
            ledger.record(Use(key(f"c{number}"), 1))
        status, printed, told = run("ledger", "drain")
        assert (status, printed) == (0, f"{CUSTOMERS} acknowledged, 0 left\n")
        assert told.startswith(f"{CUSTOMERS - 100} left, ")
        assert {used(engine, f"c{number}") for number in range(CUSTOMERS)} == {1}

    def test_prints_json_and_tells_what_is_set_aside(self, run: Run, entries: dict[State, str]) -> None:
        status, printed, told = run("ledger", "drain", "--json")
        assert json.loads(printed) == {"acknowledged": 0, "left": 0, "uncertain": 1, "dead": 2}
        assert status == 0
        assert told.endswith("3 dead or uncertain; see stigg-guard ledger list --state dead --state uncertain\n")

    def test_says_why_something_is_left(self, run: Run, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STIGG_GUARD_SIDECAR", "127.0.0.1:1")
        ledger.record(Use(key(), 1))
        status, printed, told = run("ledger", "drain", "--timeout", "0.01")
        assert (status, printed) == (1, "0 acknowledged, 1 left\n")
        assert told.startswith("1 left, and the sidecar does not take them: ")
        assert "UNAVAILABLE" in told

    def test_goes_on_when_the_sidecar_comes_back(self, ledger: Ledger, engine: Engine) -> None:
        ledger.record(Use(key(), 1))
        with serve(engine) as first:
            address = first.address
        program = [sys.executable, "-m", "stigg_guard", "ledger", "drain"]
        environment = {**os.environ, "STIGG_GUARD_SIDECAR": address}
        with subprocess.Popen(
            program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as drain:
            assert drain.stderr is not None
            assert "the sidecar does not take them" in drain.stderr.readline()
            with serve(engine, address):
                printed, told = drain.communicate(timeout=60)
                assert (drain.returncode, printed) == (0, "1 acknowledged, 0 left\n"), told
                assert used(engine) == 1

    def test_sends_events(self, run: Run, ledger: Ledger, engine: Engine) -> None:
        for number in range(3):
            ledger.record(Use(key(), 1, event=Event("login", f"key-{number}", {})))
        assert run("ledger", "drain")[:2] == (0, "3 acknowledged, 0 left\n")
        assert used(engine) == 3


class TestReport:
    @pytest.mark.usefixtures("ledger")
    def test_is_counted_when_the_command_ends(self, run: Run, engine: Engine) -> None:
        assert run("report", "c0", "f", "3") == (0, "reported 3\n", "")
        assert run("report", "c0", "f", "-1") == (0, "reported -1\n", "")
        assert used(engine) == 2

    @pytest.mark.usefixtures("ledger")
    def test_sets_a_new_total(self, run: Run, engine: Engine) -> None:
        run("report", "c0", "f", "3")
        assert run("report", "c0", "f", "7", "--set") == (0, "set to 7\n", "")
        assert used(engine) == 7

    def test_of_a_refused_use_fails_and_says_why(
        self, run: Run, ledger: Ledger, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert run("report", "c0", "no-feature", "3")[0] == 2
        assert "the sidecar rejects usage of 'c0 no-feature'" in caplog.text
        assert ledger.counts()["dead"] == 1

    @pytest.mark.parametrize(
        ("ledger_url", "whereabouts"),
        [(None, "kept in the ledger"), ("memory://", "lost with this process, since the ledger is in memory")],
    )
    @pytest.mark.usefixtures("ledger")
    def test_without_a_sidecar_says_where_the_usage_is(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, ledger_url: str | None, whereabouts: str
    ) -> None:
        monkeypatch.setenv("STIGG_GUARD_SIDECAR", "127.0.0.1:1")
        if ledger_url:
            monkeypatch.setenv("STIGG_GUARD_LEDGER", ledger_url)
        status, printed, told = run("report", "c0", "f", "3")
        assert (status, printed) == (1, "")
        assert told.startswith(f"not taken by the sidecar: {whereabouts}")

    @pytest.mark.usefixtures("ledger")
    def test_of_no_number_is_refused(self, run: Run) -> None:
        status, _, told = run("report", "c0", "f", "nan")
        assert (status, told.count("\n")) == (2, 1)


@pytest.mark.usefixtures("ledger")
class TestErrors:
    """Each is one line on standard error and status 2."""

    @pytest.mark.parametrize("action", ["status", "list", "drain"])
    def test_what_another_process_has_in_memory_cannot_be_seen(self, run: Run, action: str) -> None:
        assert run("ledger", action, "--url", "memory://") == (
            2,
            "",
            "stigg-guard: LEDGER: what is in memory:// only its own process can see; "
            "name a ledger that processes share, such as sqlite:///path\n",
        )

    @pytest.mark.parametrize("action", ["status", "list", "drain"])
    def test_a_wrong_path_makes_no_new_ledger(self, run: Run, action: str, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.db"
        status, _, told = run("ledger", action, "--url", f"sqlite:///{wrong}")
        assert (status, told.count("\n")) == (2, 1)
        assert told.startswith(f"stigg-guard: LEDGER: there is no file {wrong}: ")
        assert not wrong.exists()

    def test_a_url_with_a_part_that_is_unknown_is_refused(self, run: Run, path: Path) -> None:
        status, _, told = run("ledger", "status", "--url", f"sqlite:///{path}?mod=0660")
        assert (status, told.count("\n")) == (2, 1)
        assert "did you mean mode?" in told

    def test_a_ledger_that_was_never_used_is_told_with_its_path(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, state_folder: Path
    ) -> None:
        monkeypatch.delenv("STIGG_GUARD_LEDGER")
        for action in ("status", "list", "drain"):
            status, _, told = run("ledger", action)
            assert status == 2
            assert f"there is no file {state_folder}" in told
        assert not state_folder.exists()

    def test_a_file_that_is_no_ledger_is_told(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "text.db").write_text("this is no database, although it is a file" * 100)
        status, _, told = run("ledger", "status", "--url", f"sqlite:///{tmp_path}/text.db")
        assert (status, told.count("\n")) == (2, 1)
        assert "cannot be used: file is not a database" in told

    @pytest.mark.parametrize("command", [["ledger", "drain"], ["report", "c0", "f", "1"]])
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"SIDECAR": "offline"}, "SIDECAR: 'offline' reports nothing"),
            ({"ENABLED": "no"}, "ENABLED: a guard that is disabled reports nothing"),
        ],
    )
    def test_a_guard_that_reports_nothing_is_told(
        self,
        run: Run,
        command: list[str],
        settings: dict[str, str],
        said: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if settings.get("SIDECAR") == "offline":
            offline = tmp_path / "offline.toml"
            offline.write_text(CATALOG)
            monkeypatch.setenv("STIGG_GUARD_OFFLINE_FILE", str(offline))
        for name, value in settings.items():
            monkeypatch.setenv(f"STIGG_GUARD_{name}", value)
        status, _, told = run(*command)
        assert (status, told.count("\n")) == (2, 1)
        assert told.startswith(f"stigg-guard: {said}")

    @pytest.mark.parametrize(
        "arguments",
        [
            *("", "status extra", "list --limit 0", "list --limit x", "list --state lost"),
            *("drain --timeout -1", "drain --timeout inf", "drain --timeout soon"),
        ],
    )
    def test_a_wrong_argument_is_refused(self, run: Run, arguments: str) -> None:
        assert run("ledger", *arguments.split())[0] == 2


def test_a_report_is_judged_by_itself_and_not_by_what_else_is_refused(
    sidecar: Sidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("STIGG_GUARD_SIDECAR", sidecar.address)
    monkeypatch.setenv("STIGG_GUARD_LEDGER", url)
    other = ledger_from_url(url, Clock())
    other.record(Use(key("nobody"), 1))
    other.close()
    assert main(["report", "c0", "f", "1"]) == 0
    assert "reported 1" in capsys.readouterr().out

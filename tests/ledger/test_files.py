"""The files of SQLite ledgers: private unless they are shared, shared by two users, and never below a folder ``~``."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from stat import S_IMODE
from tempfile import mkdtemp

import pytest

from conftest import in_child
from stigg_guard import Clock, ConfigError, LedgerUnavailable
from stigg_guard.ledger import State, UsageKey, Use, ledger_from_url
from stigg_guard.ledger.files import (
    COMPANIONS,
    default_url,
    make_file,
    make_folder,
    obstacle,
    share_companions,
    user_state_folder,
)
from stigg_guard.settings.urls import LedgerFile, ledger_file

ANN, BOB, EVE = 64_001, 64_002, 64_003  # users of no name
WEB = 64_100  # the group of Ann and Bob
NAMES = ("l.db", "l.db-wal", "l.db-shm")
UMASKS = [0o000, 0o022, 0o077, 0o777]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: str | os.PathLike[str]) -> int:
    return S_IMODE(os.stat(path).st_mode)


def as_user(user: int, work: Callable[[], bool], group: int = WEB, mask: int = 0o077) -> bool:
    """What ``work`` says in a process of this user, who is in the group besides the one of its own."""

    def become() -> bool:
        os.setgroups([group])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os.umask(mask)
        return work()

    return in_child(become)


def opened(file: LedgerFile) -> sqlite3.Connection:
    """As a ledger opens its file."""
    make_file(file)
    database = sqlite3.connect(file.path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS used (who TEXT)")
    share_companions(file.path)
    return database


def used_by(database: sqlite3.Connection) -> list[str]:
    return [who for (who,) in database.execute("SELECT who FROM used ORDER BY rowid")]


def uses(file: LedgerFile, who: str) -> list[str]:
    """Opens the file, writes a line and closes it; who has used it until then."""
    with closing(opened(file)) as database:
        database.execute("INSERT INTO used VALUES (?)", [who])
        return used_by(database)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that all users can reach, which pytest's own is not."""
    folder = Path(mkdtemp(prefix="stigg-guard-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class TestFile:
    @pytest.mark.parametrize("mask", UMASKS)
    def test_is_its_users_alone_whatever_the_umask(self, tmp_path: Path, mask: int) -> None:
        with umask(mask), closing(opened(LedgerFile(str(tmp_path / "l.db")))):
            assert {path.name: mode(path) for path in tmp_path.iterdir()} == dict.fromkeys(NAMES, 0o600)

    @pytest.mark.parametrize("mask", UMASKS)
    def test_is_shared_as_its_url_says_with_the_files_beside_it(self, tmp_path: Path, mask: int) -> None:
        file = ledger_file(f"sqlite:///{tmp_path}/l.db?mode=0664&group={os.getgid()}")
        with umask(mask), closing(opened(file)):
            assert [mode(f"{file.path}{end}") for end in ("", *COMPANIONS)] == [0o664] * 3

    def test_that_is_there_stays_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "l.db"
        path.write_bytes(b"as it is")
        path.chmod(0o644)
        make_file(LedgerFile(str(path), mode=0o660))
        assert (path.read_bytes(), mode(path)) == (b"as it is", 0o644)

    def test_is_made_where_a_link_leads(self, tmp_path: Path) -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "l.db")
        make_file(LedgerFile(str(tmp_path / "link.db")))
        assert mode(tmp_path / "l.db") == 0o600

    def test_is_never_open_to_more_than_it_is_to_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "l.db"
        seen = []
        change = os.fchmod
        monkeypatch.setattr(os, "fchmod", lambda *given: [seen.append(mode(path)), change(*given)])
        with umask(0):
            make_file(LedgerFile(str(path), 0o660, str(os.getgid())))
        assert (seen, mode(path)) == ([0o600], 0o660)

    @pytest.mark.parametrize("group", ["no-such-group", "4294967295", "99999999999"])
    def test_of_a_group_that_is_not_there_is_refused_and_not_made(self, tmp_path: Path, group: str) -> None:
        with pytest.raises(ConfigError, match=f"LEDGER: this host has no group '{group}'; make it, or name another"):
            make_file(LedgerFile(str(tmp_path / "l.db"), 0o660, group))
        assert list(tmp_path.iterdir()) == []


class TestFolder:
    @pytest.mark.parametrize("mask", UMASKS)
    def test_that_we_make_is_its_users_alone_whatever_the_umask(self, tmp_path: Path, mask: int) -> None:
        with umask(mask):
            make_folder(tmp_path / "a" / "b")
        assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)

    def test_that_is_there_stays_as_it_is(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        make_folder(tmp_path)
        assert mode(tmp_path) == 0o755

    def test_that_cannot_be_made_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for folder in (tmp_path / "file", tmp_path / "file" / "b", Path("/proc/nowhere")):
            with pytest.raises(ConfigError, match=f"LEDGER: the folder {folder} cannot be made"):
                make_folder(folder)

    @as_root
    def test_within_one_of_another_user_is_told_with_its_owner(self, common: Path) -> None:
        folder = common / "private" / "state"
        make_folder(folder)
        says = f"the folder {folder} cannot be made: {folder.parent} belongs to the user 'root' and does not let in"

        def refused() -> bool:
            with pytest.raises(ConfigError, match=says):
                make_folder(folder)
            return True

        assert as_user(ANN, refused)

    @as_root
    def test_that_cannot_be_written_is_told_with_its_owner(self, common: Path) -> None:
        def refused() -> bool:
            with pytest.raises(ConfigError, match=f"LEDGER: {common} belongs to the user 'root' and does not let in"):
                make_folder(common)
            return True

        assert as_user(ANN, refused)


@as_root
class TestTwoUsers:
    @pytest.fixture(params=[0o2770, 0o770, 0o777], ids=oct)
    def file(self, common: Path, request: pytest.FixtureRequest) -> LedgerFile:
        folder = common / "ledger"
        folder.mkdir()
        os.chown(folder, -1, WEB)
        folder.chmod(request.param)
        return ledger_file(f"sqlite:///{folder}/l.db?mode=0660&group={WEB}")

    def test_of_one_group_use_it_by_turns(self, file: LedgerFile) -> None:
        assert as_user(ANN, lambda: uses(file, "ann") == ["ann"])
        assert as_user(BOB, lambda: uses(file, "bob") == ["ann", "bob"])
        assert as_user(ANN, lambda: uses(file, "ann") == ["ann", "bob", "ann"])

    @pytest.mark.parametrize("mask", UMASKS)
    def test_of_one_group_use_it_at_once(self, file: LedgerFile, mask: int) -> None:
        def with_bob() -> bool:
            """Ann has it open all the time."""
            with closing(opened(file)) as database:
                os.write(said, b"open")
                return os.read(asked, 4) == b"seen" and used_by(database) == ["bob"]

        ready, said = os.pipe()
        asked, answer = os.pipe()
        ann = os.fork()
        if ann == 0:
            os._exit(0 if as_user(ANN, with_bob, mask=mask) else 1)
        assert os.read(ready, 4) == b"open"
        assert as_user(BOB, lambda: uses(file, "bob") == ["bob"], mask=mask)
        os.write(answer, b"seen")
        assert os.waitstatus_to_exitcode(os.waitpid(ann, 0)[1]) == 0
        for end in (ready, said, asked, answer):
            os.close(end)

    def test_take_over_what_a_killed_one_left(self, file: LedgerFile) -> None:
        def killed() -> bool:
            kept = opened(file)
            kept.execute("INSERT INTO used VALUES ('ann')")
            os._exit(0)

        assert as_user(ANN, killed)
        assert Path(f"{file.path}-wal").exists()
        assert as_user(BOB, lambda: uses(file, "bob") == ["ann", "bob"])

    def test_may_not_give_it_to_a_group_that_they_are_not_in(self, file: LedgerFile) -> None:
        def refused() -> bool:
            with pytest.raises(
                ConfigError, match=rf"LEDGER: the user {EVE} of this process is not in the group '{WEB}'"
            ):
                make_file(file)
            return not os.path.exists(file.path)

        os.chmod(os.path.dirname(file.path), 0o777)
        assert as_user(EVE, refused, group=EVE)

    def test_a_third_one_is_kept_out_and_told_why(self, file: LedgerFile) -> None:
        os.chmod(os.path.dirname(file.path), 0o777)
        assert as_user(ANN, lambda: uses(file, "ann") == ["ann"])
        told = (
            f"{file.path} belongs to the user {ANN} and lets in the group {WEB}, which the user {EVE} of this process "
        )
        assert as_user(EVE, lambda: obstacle(file.path) == f"{told}is not in: add {EVE} to it", group=EVE)


@as_root
class TestLedger:
    """What is above, by the ledger itself."""

    @pytest.mark.parametrize("rights", [0o2770, 0o770, 0o777], ids=oct)
    def test_of_a_group_is_used_by_two_users_and_not_by_a_third(self, common: Path, rights: int) -> None:
        folder = common / "ledger"
        folder.mkdir()
        os.chown(folder, -1, WEB)
        folder.chmod(rights)
        url = f"sqlite:///{folder}/l.db?mode=0660&group={WEB}"
        for units, user in enumerate((ANN, BOB, ANN, BOB), 1):
            assert as_user(user, partial(uses_unit, url, units))
        assert mode(folder / "l.db") == 0o660
        assert as_user(EVE, partial(is_refused, url, "belongs to the user"), group=EVE)

    def test_of_one_user_keeps_out_the_other_who_is_told_the_owner_and_the_remedy(self, common: Path) -> None:
        common.chmod(0o777)
        url = f"sqlite:///{common}/l.db"
        assert as_user(ANN, partial(uses_unit, url, 1), mask=0)
        assert mode(common / "l.db") == 0o600
        told = (
            f"l.db belongs to the user {ANN} and does not let in the user {BOB} of this process: run it as {ANN}, or "
        )
        assert as_user(BOB, partial(is_refused, url, told))


def uses_unit(url: str, units: int) -> bool:
    """Uses one more unit; whether this many have been used by then."""
    with closing(ledger_from_url(url, Clock())) as ledger:
        ledger.record(Use(UsageKey("c", "", "f"), 1))
        return sum(entry.amount for entry in ledger.entries([State.UNSENT], 10)) == units


def is_refused(url: str, told: str) -> bool:
    with closing(ledger_from_url(url, Clock())) as ledger, pytest.raises(LedgerUnavailable, match=re.escape(told)):
        ledger.record(Use(UsageKey("c", "", "f"), 1))
    return True


class TestObstacle:
    def test_there_is_none_where_a_file_is_or_can_be_made(self, tmp_path: Path) -> None:
        path = tmp_path / "l.db"
        assert obstacle(str(path)) is None
        path.touch()
        assert obstacle(str(path)) is None

    def test_a_missing_folder_and_a_folder_in_place_of_a_file_are_told(self, tmp_path: Path) -> None:
        assert obstacle(str(tmp_path)) == f"{tmp_path} is a folder; name a file"
        missing = tmp_path / "a"
        assert obstacle(str(missing / "b" / "l.db")) == f"there is no folder {missing}; make it, or name another file"

    @as_root
    def test_a_file_system_that_is_read_only_is_told(self, tmp_path: Path) -> None:
        ask = f"from stigg_guard.ledger.files import obstacle; print(obstacle('{tmp_path}/l.db'))"
        mounted = f'mount -t tmpfs -o ro none {tmp_path} && exec {sys.executable} -c "{ask}"'
        apart = ("unshare", "--mount")
        if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
            pytest.skip("no file system can be mounted apart from the others here")
        done = subprocess.run([*apart, "sh", "-c", mounted], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == f"{tmp_path} is on a file system that is read-only; name another place\n"

    @as_root
    def test_the_owner_of_a_file_is_told_with_the_remedy(self, common: Path) -> None:
        file = LedgerFile(str(common / "l.db"))
        common.chmod(0o777)
        assert as_user(ANN, lambda: uses(file, "ann") == ["ann"])
        told = (
            f"{file.path} belongs to the user {ANN} and does not let in the user {BOB} of this process: run it as {ANN}"
            ", or share it with a group of both (chgrp GROUP, chmod g+rw, and ?mode=0660&group=GROUP in LEDGER)"
        )
        assert as_user(BOB, lambda: obstacle(file.path) == told)

    @as_root
    @pytest.mark.parametrize("name", ["l.db", "within/l.db"])
    def test_the_owner_of_a_folder_that_is_closed_is_told(self, common: Path, name: str) -> None:
        folder = common / "folder"
        (folder / "within").mkdir(parents=True)
        folder.chmod(0o700)
        told = f"{folder} belongs to the user 'root' and does not let in the user {BOB} of this process: run it as "
        assert as_user(BOB, lambda: (obstacle(str(folder / name)) or "").startswith(told))

    @as_root
    def test_the_owner_of_a_folder_that_cannot_be_written_is_told(self, common: Path) -> None:
        told = f"{common} belongs to the user 'root' and does not let in the user {BOB} of this process: run it as "
        assert as_user(BOB, lambda: (obstacle(str(common / "l.db")) or "").startswith(told))

    @as_root
    def test_a_file_that_keeps_out_its_owner_is_told(self, common: Path) -> None:
        path = common / "l.db"
        path.touch(0o400)
        common.chmod(0o777)
        os.chown(path, ANN, ANN)
        assert as_user(ANN, lambda: obstacle(str(path)) == f"{path} keeps out its own user {ANN}: chmod u+rwX")


class TestState:
    def test_folder_is_by_the_convention(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", "/state")
        assert user_state_folder() == "/state/stigg-guard"
        monkeypatch.setenv("XDG_STATE_HOME", "")
        monkeypatch.setenv("HOME", "/home/ann")
        assert user_state_folder() == "/home/ann/.local/state/stigg-guard"
        monkeypatch.delenv("HOME")
        assert user_state_folder() == f"{pwd.getpwuid(os.getuid()).pw_dir}/.local/state/stigg-guard"

    @pytest.mark.parametrize(
        ("name", "value"), [("XDG_STATE_HOME", "~/state"), ("XDG_STATE_HOME", "state"), ("HOME", "~")]
    )
    def test_variable_that_names_no_absolute_path_is_refused(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"LEDGER: {name} is no absolute path; correct it, or name a ledger"):
            user_state_folder()

    @as_root
    def test_user_without_a_home_is_told_what_to_set(self) -> None:
        def refused() -> bool:
            for name in ("HOME", "XDG_STATE_HOME"):
                os.environ.pop(name, None)
            with pytest.raises(
                ConfigError, match=rf"LEDGER: HOME is not set, and the user {ANN} .*name a ledger, or set"
            ):
                user_state_folder()
            return True

        assert as_user(ANN, refused)

    @pytest.mark.parametrize("sidecar", ["local", "offline"])
    def test_what_is_gone_with_the_process_is_in_memory(self, sidecar: str) -> None:
        assert default_url("/srv", sidecar) == "memory://"

    def test_each_sidecar_has_a_ledger_of_its_own(self, tmp_path: Path) -> None:
        folder = tmp_path / "a b?"
        assert ledger_file(default_url(folder, "h:80")).path == str(folder / "stigg-guard-h_80.sqlite3")
        assert default_url(folder, "h:80") != default_url(folder, "h:81")
        assert not folder.exists()

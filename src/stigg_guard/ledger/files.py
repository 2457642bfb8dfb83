"""The files of SQLite ledgers: where they are by default, whom they let in, and what keeps this process out of one."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from stigg_guard.errors import ConfigError
from stigg_guard.settings.urls import LedgerFile

try:
    import grp
    import pwd
except ModuleNotFoundError:
    IS_POSIX = False  # as on Windows
else:
    IS_POSIX = True

COMPANIONS = ("-wal", "-shm")
"""What SQLite appends to the name of a database for the files beside it, which are there while it is open."""

_PRIVATE, _PRIVATE_FOLDER = 0o600, 0o700
_MAX_GROUP = 2**32 - 2  # the next number means none
_BY_EFFECTIVE_USER = os.access in os.supports_effective_ids


def require_posix() -> None:
    """Refuses ledgers in files where files have no owner, group and mode.

    Raises:
        ConfigError: this is no POSIX system.
    """
    if not IS_POSIX:
        raise ConfigError(
            "LEDGER: a ledger in a file needs a POSIX system, which this is not; "
            "set LEDGER to memory:// for one process, or redis://… for several"
        )


def user_state_folder() -> str:
    """Where the state of a user's programs is kept, by the XDG convention.

    Raises:
        ConfigError: the user has no home, or a variable names no absolute path.
    """
    named = os.environ.get("XDG_STATE_HOME")
    folder = named or os.path.join(os.environ.get("HOME") or _home(), ".local", "state")
    if not os.path.isabs(folder):
        variable = "XDG_STATE_HOME" if named else "HOME"
        raise ConfigError(f"LEDGER: {variable} is no absolute path; correct it, or name a ledger")
    return os.path.join(folder, "stigg-guard")


def default_url(folder: str | os.PathLike[str], sidecar: str) -> str:
    """The URL of the ledger in a folder; one for each sidecar, since usage belongs to it.

    What ``local`` and ``offline`` count is gone with the process, and so is their ledger: it is in memory.

    Raises:
        ConfigError: as from :func:`require_posix`.
    """
    if sidecar in ("local", "offline"):
        return "memory://"
    require_posix()
    name = re.sub(r"[^\w.-]+", "_", sidecar)
    return f"sqlite:///{quote(os.path.join(os.path.abspath(folder), f'stigg-guard-{name}.sqlite3'))}"


def is_default(path: str) -> bool:
    """Whether a file is named as by :func:`default_url`: its folder is made if need be."""
    name = os.path.basename(path)
    return name.startswith("stigg-guard-") and name.endswith(".sqlite3")


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Makes the folder for this user alone, unless it is there; the umask does not matter.

    Raises:
        ConfigError: it cannot be made, or not be written.
    """
    require_posix()
    path = os.path.abspath(folder)
    try:
        _make(path)
    except PermissionError as error:
        nearest = next(str(above) for above in Path(path).parents if os.path.isdir(above))
        raise ConfigError(f"LEDGER: the folder {path} cannot be made: {_no_permission(nearest)}") from error
    except OSError as error:
        raise ConfigError(f"LEDGER: the folder {path} cannot be made ({error.strerror}); name another") from error
    if not _may(path, os.W_OK | os.X_OK):
        raise ConfigError(f"LEDGER: {_no_permission(path)}")


def make_file(file: LedgerFile) -> None:
    """Makes the file, empty, unless it is there; the umask does not matter. It never lets in more than it is to.

    Raises:
        ConfigError: there is no such group, or this user cannot give it a file.
        OSError: the file cannot be made; :func:`obstacle` says why.
    """
    require_posix()
    path = os.path.realpath(file.path)  # a link may be there before its file
    group = -1 if file.group is None else _group_number(file.group)
    try:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    except FileExistsError:
        return
    try:
        os.fchown(made, -1, group)
        os.fchmod(made, _PRIVATE if file.mode is None else file.mode)
    except PermissionError:
        os.unlink(path)
        raise ConfigError(
            f"LEDGER: the user {_user(os.geteuid())} of this process is not in the group {file.group!r}; "
            "add it there, or name another group"
        ) from None
    finally:
        os.close(made)


def share_companions(path: str) -> None:
    """Gives the files beside an open database its group, where they are this user's.

    Their mode is the database's by SQLite's own doing, but their group is that of whoever opens it.
    """
    database = os.path.realpath(path)
    for beside in (f"{database}{end}" for end in COMPANIONS):
        with suppress(FileNotFoundError, PermissionError):
            group = os.stat(database).st_gid
            status = os.lstat(beside)
            if status.st_uid == os.geteuid() and status.st_gid != group:
                os.chown(beside, -1, group, follow_symlinks=False)


def obstacle(path: str) -> str | None:
    """What keeps this process out of a database, or from making it, and the remedy; None where nothing does."""
    file = Path(os.path.realpath(path))
    for folder in (*reversed(file.parent.parents), file.parent):
        if not os.path.isdir(folder):
            return f"there is no folder {folder}; make it, or name another file"
        if not _may(folder, os.X_OK):
            return _no_permission(folder)
    if file.is_dir():
        return f"{file} is a folder; name a file"
    for one in (f"{file}{end}" for end in ("", *COMPANIONS)):
        if os.path.exists(one) and not _may(one, os.R_OK | os.W_OK):
            return _no_permission(one)
    return None if _may(file.parent, os.W_OK) else _no_permission(file.parent)


def _no_permission(path: str | os.PathLike[str]) -> str:
    """Who owns what this process may not use, and what to do about it."""
    status = os.stat(path)
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path} is on a file system that is read-only; name another place"
    owner, user, group = _user(status.st_uid), _user(os.geteuid()), _group(status.st_gid)
    rights = "rwxs" if os.path.isdir(path) else "rw"
    if status.st_uid == os.geteuid():
        return f"{path} keeps out its own user {user}: chmod u+rwX"
    if status.st_mode & 0o020:
        return (
            f"{path} belongs to the user {owner} and lets in the group {group}, which the user {user} of this process "
            f"is not in: add {user} to it"
        )
    return (
        f"{path} belongs to the user {owner} and does not let in the user {user} of this process: run it as {owner}, "
        f"or share it with a group of both (chgrp GROUP, chmod g+{rights}, and ?mode=0660&group=GROUP in LEDGER)"
    )


def _make(path: str) -> None:
    if os.path.isdir(path):
        return
    _make(os.path.dirname(path))
    try:
        os.mkdir(path, _PRIVATE_FOLDER)
    except FileExistsError:  # made by another process just now, unless it is a file
        if not os.path.isdir(path):
            raise
    else:
        os.chmod(path, _PRIVATE_FOLDER)


def _may(path: str | os.PathLike[str], rights: int) -> bool:
    return os.access(path, rights, effective_ids=_BY_EFFECTIVE_USER)


def _home() -> str:
    require_posix()
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise ConfigError(
            f"LEDGER: HOME is not set, and the user {os.getuid()} of this process is not in the passwd file, so it has "
            "no home; name a ledger, or set HOME"
        ) from None


def _user(number: int) -> str:
    try:
        return repr(pwd.getpwuid(number).pw_name)
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return repr(grp.getgrgid(number).gr_name)
    except KeyError:
        return str(number)


def _group_number(group: str) -> int:
    if re.fullmatch("[0-9]{1,10}", group) and int(group) <= _MAX_GROUP:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"LEDGER: this host has no group {group!r}; make it, or name another in ?group=") from None

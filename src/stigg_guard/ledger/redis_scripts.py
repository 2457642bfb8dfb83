"""The Lua scripts of the Redis ledger: one for each step, with the definitions that it needs and no others."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from stigg_guard.ledger.accounting import ADDED_UP_WITHIN, EXPIRED_HOLDS_KEPT

OLD_LEASE = 30_000_000
"""How many microseconds the version before gave a batch."""
_CONSTANTS = {
    "ADDED_UP_WITHIN": ADDED_UP_WITHIN,
    "EXPIRED_HOLDS_KEPT": EXPIRED_HOLDS_KEPT,
    "OLD_LEASE": OLD_LEASE,
}
_FILES = ("common", "accounting", "book", "customer", "holds", "reports", "queue", "takeover")
_COMMENT = re.compile(r"\s*--.*$", re.MULTILINE)
_DEFINED = re.compile(r"^(?:local function|local|function) ([\w.]+(?:, \w+)*)", re.MULTILINE)


class Script(NamedTuple):
    """A script and the hash that names it in the server."""

    source: str
    sha: str


@cache
def script(call: str) -> Script:
    """The script that returns what ``call`` does: ``steps.hold()``."""
    definitions = _definitions()
    needed: set[str] = set()
    waiting = [call]
    while waiting:
        mentioned = {definitions[word] for word in _words(waiting.pop()) if word in definitions}
        waiting += mentioned - needed
        needed |= mentioned
    source = "\n".join([*(one for one in dict.fromkeys(definitions.values()) if one in needed), f"return {call}"])
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@cache
def _definitions() -> dict[str, str]:
    """The paragraphs of all files in order, by each name that they define."""
    constants = [f"local {name} = {value}" for name, value in _CONSTANTS.items()]
    texts = [files("stigg_guard.ledger").joinpath(f"{name}.lua").read_text("utf-8") for name in _FILES]
    found: dict[str, str] = {}
    for paragraph in [*constants, *(part for text in texts for part in text.split("\n\n"))]:
        code = _COMMENT.sub("", paragraph).strip("\n")
        for names in _DEFINED.findall(code):
            found.update(dict.fromkeys(names.split(", "), code))
    return found


def _words(code: str) -> set[str]:
    """The names in a piece of code; ``steps.hold`` is one, and ``steps`` another."""
    return {word for name in re.findall(r"[\w.]+", code) for word in (name, name.partition(".")[0])}

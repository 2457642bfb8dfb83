"""Watches the catalog's file: a running sidecar reads it again when it has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeAlias

from stigg_guard.errors import ConfigError
from stigg_guard.runtime.log import logger
from stigg_guard.sidecar.catalog import load_catalog
from stigg_guard.sidecar.engine import Engine

LOOK_SECONDS = 0.5

_Stamp: TypeAlias = "tuple[int, int] | None"


class CatalogWatch:
    """Puts the catalog in a file into force again after each change of the file.

    A catalog that is wrong is logged with its faults, and the one before stays in force. Make the watch before the file
    is first read, so that it misses no change.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._seen = self._read = _stamp(self._path)

    def look(self, engine: Engine) -> None:
        """Give the engine the catalog if the file has changed, and rests: an editor may be at it still."""
        before, self._seen = self._seen, _stamp(self._path)
        if self._seen != before or self._seen == self._read:
            return
        self._read = self._seen
        try:
            engine.replace_catalog(load_catalog(self._path))
        except ConfigError as error:
            logger.error("the catalog from before the change stays in force: %s", error)
        else:
            logger.info("the catalog %s has changed and is in force", self._path)

    @contextmanager
    def over(self, engine: Engine, interval: float = LOOK_SECONDS) -> Iterator[None]:
        """While the block runs, a thread looks every ``interval`` seconds."""
        end = Event()

        def watch() -> None:
            while not end.wait(interval):
                self.look(engine)

        thread = Thread(target=watch, name="stigg-sidecar-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def _stamp(path: str) -> _Stamp:
    """What changes with the file; None while there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size

"""Renews the holds (reservations) of work that goes on, in a thread of its own: reporting may outlast a hold."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

from stigg_guard.errors import StiggGuardError
from stigg_guard.ledger import Hold, Ledger
from stigg_guard.runtime.log import logger
from stigg_guard.runtime.threads import start

CLOSE_SECONDS = 2.0


class HoldKeeper:
    """Renews holds three times in the life of one, for as long as their work does not end and its owner is there.

    ``hold_ttl`` is in seconds. The thread starts with the first :meth:`watch`. It is for one process: a forked child
    makes its own, since what its parent watches is the parent's. Threads that use units touch nothing here that an
    exception from outside could leave locked.
    """

    def __init__(self, ledger: Ledger, hold_ttl: float) -> None:
        self._ledger = ledger
        self._ttl = hold_ttl
        self._lock = threading.Lock()
        self._over: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._holds: dict[str, tuple[Hold, Callable[[], object]]] = {}

    def watch(self, hold: Hold, owner: object) -> None:
        """Renews the hold while its work goes on: until :meth:`unwatch`, or until its owner is dropped."""
        self._holds[hold.id] = hold, weakref.ref(owner)
        if self._thread is None or not self._thread.is_alive():
            self._start_thread()

    def unwatch(self, hold: Hold) -> None:
        """Stops renewing the hold: its work ended."""
        self._holds.pop(hold.id, None)

    def abandon(self, hold: Hold) -> None:
        """Takes the hold, if it is watched, for one whose owner is dropped, whatever still refers to that."""
        if hold.id in self._holds:
            self._holds[hold.id] = hold, _nobody

    def give_back_dropped(self) -> None:
        """Ends the holds of abandoned work: an exception from outside tore it, or it was dropped.

        Raises:
            LedgerUnavailable: the ledger takes nothing; they stay.
        """
        for hold, owner in list(self._holds.values()):
            if owner() is None:
                units = ", ".join(f"{claim.amount:g} of {str(claim.key)!r}" for claim in hold.claims)
                logger.warning("work was dropped without an end, and what it held is given back: %s", units)
                self._ledger.release(hold)
                self.unwatch(hold)

    def close(self) -> None:
        """Ends the thread."""
        self.leave()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)

    def leave(self) -> None:
        """Lets the thread end. A finalizer may call it, anywhere."""
        self._over.put(True)

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="stigg-guard-holds", daemon=True)
                self._thread = thread
                start(thread)

    def _run(self) -> None:
        while not self._is_over(self._ttl / 3):
            self._renew()

    def _is_over(self, pause: float) -> bool:
        """Waits; whether this thread ends, as does one that another has replaced: its start was interrupted."""
        try:
            self._over.get(timeout=pause)
        except Empty:
            return self._thread is not threading.current_thread()
        self._over.put(True)  # for one that waits beside this one
        return True

    def _renew(self) -> None:
        holds = [hold for hold, owner in list(self._holds.values()) if owner() is not None]
        try:
            self._ledger.renew(holds, self._ttl)
        except StiggGuardError as error:
            logger.warning("holds cannot be renewed, and are tried again before they expire: %s", error)
        except Exception:  # whatever it is, the thread goes on: nothing else renews
            logger.exception("renewing holds failed, and is tried again before they expire")


def _nobody() -> None:
    """Stands for the reference to an owner that is gone."""

"""One random program of steps on every home of the ledger: all outputs are equal."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.lockstep import GRACE, Lockstep, LockstepClock
from tests.redis_server import RedisServer

from faults.promise import Promise, Scale
from stigg_guard.ledger import ledger_from_url

STEPS = 2_000
"""How many steps each round of the scale adds."""
AT_ONCE = 1_000


def lockstep(scale: Scale) -> Iterator[Promise]:
    """Memory, a file and Redis; Django's two databases join them in the tests."""
    made, difference = 0, ""
    while made < STEPS * scale.rounds and not difference:
        clock = LockstepClock()
        folder = scale.folder / f"lockstep-{made}"
        folder.mkdir()
        with RedisServer(folder, durable=False) as server:
            urls = {
                "memory": "memory://",
                "file": f"sqlite:///{folder}/ledger.db",
                "redis": f"{server.url}?socket_timeout=20",
            }
            ledgers = {name: ledger_from_url(url, clock.clock, settle_grace=GRACE) for name, url in urls.items()}
            run = Lockstep(ledgers, clock, random.randrange(2**32))
            try:
                for _ in range(AT_ONCE):
                    run.step()
            except AssertionError as error:
                difference = str(error)
            made += AT_ONCE
            for ledger in ledgers.values():
                ledger.close()
    yield Promise("all homes of the ledger give equal answers", f"{made} steps on each; {difference}", not difference)

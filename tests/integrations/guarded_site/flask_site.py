"""A small Flask site that is run by real servers. Each view but ``plain`` and ``letters`` consumes one template."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import waitress
from flask import Flask, Response, stream_with_context

from stigg_guard.flask import StiggGuard, consumes_usage, requires_feature

app = Flask(__name__)
app.config.update(
    STIGG_GUARD_CUSTOMER=lambda _: "ann",
    STIGG_GUARD_SIDECAR=os.environ["SITE_SIDECAR"],
    STIGG_GUARD_LEDGER=os.environ["SITE_LEDGER"],
    STIGG_GUARD_TIMEOUT=20,  # a busy machine is no outage
)
guard = StiggGuard(app)


@app.get("/plain")
@requires_feature("exports")
def plain() -> str:
    return "exported"


@app.get("/create")
@consumes_usage(1, "templates")
def create() -> str:
    return "created"


@app.get("/acreate")
@consumes_usage(1, "templates")
async def acreate() -> str:
    return "created"


@app.get("/stream")
@consumes_usage(1, "templates")
def stream() -> Response:
    def parts() -> Iterator[str]:
        yield "cre"
        yield "ated"

    return Response(stream_with_context(parts()))


@app.get("/letters")
@consumes_usage(1, "letters")
def letters() -> Response:
    def endless() -> Iterator[str]:
        while True:
            yield "a letter " * 10_000

    return Response(stream_with_context(endless()))


if __name__ == "__main__":
    waitress.serve(app, sockets=[socket.socket(fileno=int(sys.argv[1]))], threads=8)

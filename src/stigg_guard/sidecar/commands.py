"""Commands that change a running sidecar, for scripts and tests: what its status page does."""

from __future__ import annotations

import http.client
import json
import os
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from stigg_guard.errors import ConfigError, InvalidRequest, SidecarUnavailable
from stigg_guard.foreign import json_value, quoted
from stigg_guard.sidecar import HTTP_PORT
from stigg_guard.sidecar.settings import VARIABLES, Settings

ANSWER_SECONDS = 10.0
TOKEN = VARIABLES["token"]
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def configure_changes(parser: ArgumentParser) -> None:
    """Give the parser of the sidecar's command its subcommands; each has ``run``."""
    changes = parser.add_subparsers(title="changes to a running sidecar", metavar="CHANGE")
    common = ArgumentParser(add_help=False)
    common.add_argument(
        "--http",
        type=_address,
        default=f"127.0.0.1:{HTTP_PORT}",
        metavar="HOST:PORT",
        help="where its HTTP side is (%(default)s)",
    )
    whose = ArgumentParser(add_help=False, parents=[common])
    whose.add_argument("customer")

    plan = changes.add_parser("plan", parents=[whose], help="put a customer on a plan")
    plan.add_argument("plan", nargs="?", help="the plan's id; without one the subscription ends")
    plan.add_argument("--resource", help="a resource of the customer")
    plan.set_defaults(run=_change("plan", "customer", "plan", "resource"))

    usage = changes.add_parser("usage", parents=[whose], help="set usage in total")
    usage.add_argument("feature")
    usage.add_argument("value", type=float)
    usage.add_argument("--resource", help="a resource of the customer")
    usage.set_defaults(run=_change("usage", "customer", "feature", "value", "resource"))

    promote = changes.add_parser("promote", parents=[whose], help="grant a feature beside the plan")
    promote.add_argument("feature")
    promote.add_argument(
        "grant", type=_json, nargs="?", default=True, help='as in a plan: {"limit": 9}, true; null ends it'
    )
    promote.add_argument("--until", metavar="INSTANT", help="as 2026-12-31T00:00:00Z; without it there is no end")
    promote.set_defaults(run=_change("promotion", "customer", "feature", "grant", "until"))

    advance = changes.add_parser("advance", parents=[common], help="advance the clock")
    advance.add_argument("seconds", type=_seconds, metavar="TIME", help="as 90, 45m, 2h, 31d")
    advance.set_defaults(run=_change("clock", "seconds"))


def _change(name: str, *fields: str) -> Any:
    def run(options: Namespace) -> int:
        _post(options.http, name, {field: getattr(options, field) for field in fields})
        return 0

    return run


def _post(address: str, name: str, given: Mapping[str, Any]) -> None:
    host, _, port = address.rpartition(":")
    token = Settings.read({TOKEN: os.environ.get(TOKEN, "")}).token or ""
    headers = {"Content-Type": "application/json", "X-Sidecar-Token": token}
    try:
        with closing(http.client.HTTPConnection(host.strip("[]"), int(port), timeout=ANSWER_SECONDS)) as connection:
            connection.request("POST", f"/changes/{name}", json.dumps(given), headers)
            with connection.getresponse() as answer:
                status, body = answer.status, answer.read()
    except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
        raise SidecarUnavailable(
            f"no sidecar answers at {address}: {quoted(str(error))}; start it, or name it with --http"
        ) from None
    if status == http.HTTPStatus.UNAUTHORIZED:
        raise ConfigError(f"{TOKEN}: it must be that of the sidecar; set the same for both")
    if status != http.HTTPStatus.NO_CONTENT:
        raise InvalidRequest("", _detail(body, address))


def _detail(body: bytes, address: str) -> str:
    """Why the change was refused. Raises ``SidecarUnavailable`` for what no sidecar has written."""
    try:
        return str(json_value(body)["detail"])
    except (ValueError, TypeError, LookupError):
        raise SidecarUnavailable(f"what answers at {address} is no local sidecar; name it with --http") from None


def _address(text: str) -> str:
    if re.fullmatch(r"[^/@\s]+:[0-9]{1,5}", text, re.ASCII) is None:
        raise ArgumentTypeError(f"expected HOST:PORT, as 127.0.0.1:{HTTP_PORT}, not {quoted(text)}")
    return text


def _json(text: str) -> Any:
    try:
        return json_value(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)", text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no time; write it as 90, 45m, 2h or 31d")
    return float(found[1]) * _UNITS[found[2]]

"""Starts the local sidecar and both example sites, and stays until Ctrl-C.

With --once it walks through both over HTTP, as a browser and an API client would, prints what was asked, expected and
answered, and ends; its exit status is 0 only if all is as expected.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import requests

HERE = Path(__file__).parent
PAGE = {"Accept": "text/html"}
JSON = {"Accept": "application/json"}
START_SECONDS = 30


class Sites(NamedTuple):
    """Where everything listens, as ``host:port``."""

    sidecar: str
    billing: str
    page: str
    shop: str
    api: str


class Row(NamedTuple):
    """One step of the walk."""

    site: str
    asked: str
    expected: str
    answered: str


def main() -> int:
    """Runs the demonstration; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="walk through both sites, print a table, and end")
    parser.add_argument("--shop-port", type=int, default=8000, help="port of the Django site (default: %(default)s)")
    parser.add_argument("--api-port", type=int, default=5000, help="port of the Flask site (default: %(default)s)")
    parser.add_argument(
        "--cloud", action="store_true", help="the sites ask Stigg's API, not a sidecar (SIDECAR = cloud)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ports = (0, 0) if options.once else (options.shop_port, options.api_port)
    try:
        with running(*ports, cloud=options.cloud) as (sites, processes):
            return walk(sites) if options.once else stay(sites, processes)
    except OSError as error:
        parser.exit(1, f"demo: {error}; choose other ports with --shop-port and --api-port\n")
    except KeyboardInterrupt:
        return 0


@contextmanager
def running(
    shop_port: int, api_port: int, *, cloud: bool = False
) -> Iterator[tuple[Sites, list[subprocess.Popen[str]]]]:
    """The sidecar and both sites, each site with two workers of four threads; all ended at the end.

    With ``cloud`` the sites ask the GraphQL API that the sidecar has beside gRPC, as they would ask Stigg's.
    """
    with ExitStack() as stack:
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="stigg-guard-demo-"))
        sockets = [stack.enter_context(_listening(port)) for port in (shop_port, api_port)]
        sidecar = stack.enter_context(
            _process([sys.executable, "-m", "stigg_guard.sidecar", "--port", "0", "--http-port", "0"])
        )
        assert sidecar.stdout is not None
        grpc_address, http_address = re.findall(r"=(\S+)", sidecar.stdout.readline())
        page = sidecar.stdout.readline().split()[1]
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
        sites = Sites(grpc_address, http_address, page, *addresses)
        environ = {
            **os.environ,
            "STIGG_GUARD_SIDECAR": "cloud" if cloud else sites.sidecar,
            "STIGG_SIDECAR_HTTP": sites.billing,
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "SHOP_DATA": data,
            "FLASK_API_DATABASE": f"{data}/api.sqlite3",
            "STIGG_GUARD_LEDGER": f"sqlite:///{data}/api-ledger.sqlite3",
        }
        shop = [sys.executable, str(HERE / "django_shop" / "manage.py"), "migrate", "--verbosity=0"]
        subprocess.run(shop, env=environ, check=True)
        programs = (("django_shop", "shop.wsgi:application"), ("flask_api", "app:create_app()"))
        processes = [
            stack.enter_context(_gunicorn(folder, application, listener, environ))
            for (folder, application), listener in zip(programs, sockets, strict=True)
        ]
        for listener in sockets:
            listener.close()  # the sites have it now: if one does not start, its visitors learn that at once
        for address in (sites.shop, sites.api):
            requests.get(f"http://{address}/", timeout=START_SECONDS).raise_for_status()
        yield sites, [sidecar, *processes]


def stay(sites: Sites, processes: list[subprocess.Popen[str]]) -> int:
    """Tells the addresses and waits for Ctrl-C, or for one of the processes to end."""
    print(f"Django site   http://{sites.shop}/")
    print(f"Flask site    http://{sites.api}/")
    print(f"Status page   {sites.page}  what customers may use, and what was just asked and denied")
    print(f"sidecar       grpc={sites.sidecar} http={sites.billing}")
    print("Ctrl-C ends all three.", flush=True)
    ended, _ = os.wait()
    name = next((process.args for process in processes if process.pid == ended), ended)
    print(f"demo: {name} ended, so the rest is ended too", file=sys.stderr)
    return 1


def walk(sites: Sites) -> int:
    """Uses both sites as their customers would; 0 if everything was as expected."""
    rows = [*_walk_shop(f"http://{sites.shop}"), *_walk_api(f"http://{sites.api}")]
    headings = Row("site", "asked", "expected", "answered")
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    for row in (headings, *rows):
        mark = "" if row is headings else "ok" if row.expected == row.answered else "WRONG"
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), mark]).rstrip())
    wrong = sum(row.expected != row.answered for row in rows)
    print(f"{len(rows)} steps, {wrong} not as expected")
    return 1 if wrong else 0


class Visitor:
    """A browser's part: cookies, and the hidden field that proves that a form came from the site."""

    def __init__(self, site: str, base: str) -> None:
        self.site = site
        self._base = base
        self._session = requests.Session()

    def get(self, path: str, headers: dict[str, str] | None = None) -> requests.Response:
        return self._session.get(self._base + path, headers=headers or PAGE, timeout=START_SECONDS)

    def submit(self, page: str, action: str, headers: dict[str, str] | None = None, **fields: str) -> requests.Response:
        hidden = re.search(r'name="(csrf\w+)" value="([^"]+)"', self.get(page).text)
        assert hidden is not None, f"{page} has no form"
        data = {hidden[1]: hidden[2], **fields}
        return self._session.post(self._base + action, data=data, headers=headers or PAGE, timeout=START_SECONDS)

    def row(self, asked: str, expected: str, answer: Callable[[], str]) -> Row:
        try:
            return Row(self.site, asked, expected, answer())
        except (requests.RequestException, AssertionError, KeyError, ValueError) as error:
            return Row(self.site, asked, expected, f"{type(error).__name__}: {error}")


def _walk_shop(base: str) -> Iterator[Row]:
    ada = Visitor("django", base)
    make = {"name": "Summer poster", "kind": "poster"}
    yield ada.row("analytics, nobody signed in", "401", lambda: _status(ada.get("/analytics/")))
    yield ada.row(
        "sign in as Ada (essentials)",
        "200, 3 of 6 templates",
        lambda: _status(ada.submit("/", "/sign-in/", user="ada"), r"3 of 6 templates"),
    )
    for count in (4, 5, 6):
        yield ada.row(
            "create a template",
            f"200, {count} of 6 templates",
            lambda: _status(ada.submit("/", "/templates/", **make), r"\d of 6 templates"),
        )
    yield ada.row("create one too many: page", "402", lambda: _status(ada.submit("/", "/templates/", **make)))
    yield ada.row(
        "create one too many: JSON",
        "402, REQUESTED_USAGE_EXCEEDING_LIMIT, 6 of 6",
        lambda: _problem(ada.submit("/", "/templates/", JSON, **make)),
    )
    yield ada.row(
        "have words written with AI",
        "200, 12,544 of 50,000 credits",
        lambda: _status(ada.submit("/", "/templates/3/words/"), r"[\d,]+ of 50,000 credits"),
    )
    yield ada.row("analytics, which the plan lacks", "402", lambda: _status(ada.get("/analytics/")))
    yield ada.row("upgrade to growth", "200", lambda: _status(ada.submit("/upgrade/", "/upgrade/")))
    yield ada.row("analytics", "200", lambda: _status(ada.get("/analytics/")))
    yield ada.row(
        "create a template",
        "200, 7 of 50 templates",
        lambda: _status(ada.submit("/", "/templates/", **make), r"\d+ of 50 templates"),
    )
    yield from _walk_sign_up(Visitor("django", base), "/sign-up/", "/templates/", make)


def _walk_api(base: str) -> Iterator[Row]:
    linus = Visitor("flask", base)
    make = {"title": "Thanks", "body": "Dear {name}, thank you."}
    token = {"Authorization": "Bearer demo-token-linus", **JSON}

    def letters(count: int) -> requests.Response:
        template = requests.get(f"{base}/api/templates", headers=token, timeout=START_SECONDS).json()[0]["id"]
        order = {"template": template, "names": [f"Reader {number}" for number in range(count)]}
        return requests.post(f"{base}/api/letters", json=order, headers=token, timeout=START_SECONDS)

    yield linus.row("API without a token", "401", lambda: _status(linus.get("/api/templates", JSON)))
    yield linus.row(
        "sign in as Linus (free)",
        "200, 1 of 2 templates",
        lambda: _status(linus.submit("/", "/sign-in", customer="customer-demo-03"), r"1 of 2 templates"),
    )
    yield linus.row(
        "create a template",
        "200, 2 of 2 templates",
        lambda: _status(linus.submit("/", "/templates", **make), r"2 of 2 templates"),
    )
    yield linus.row("create one too many: page", "402", lambda: _status(linus.submit("/", "/templates", **make)))
    yield linus.row(
        "create one too many: JSON",
        "402, REQUESTED_USAGE_EXCEEDING_LIMIT, 2 of 2",
        lambda: _problem(linus.submit("/", "/templates", JSON, **make)),
    )
    yield linus.row(
        "draft with AI",
        "200, 1,072 of 2,000 credits",
        lambda: _status(linus.submit("/", "/draft", title="A thank-you"), r"[\d,]+ of 2,000 credits"),
    )
    yield linus.row(
        "draft beyond the credits: JSON",
        "402, INSUFFICIENT_CREDITS, 1072 of 2000",
        lambda: _problem(linus.submit("/", "/draft", JSON, title="One too many")),
    )
    yield linus.row(
        "add credits",
        "200, 1,072 of 12,000 credits",
        lambda: _status(linus.submit("/upgrade", "/top-up"), r"[\d,]+ of 12,000 credits"),
    )
    yield linus.row("API: list, then 2 letters; 97 of 100 used", "200", lambda: _status(letters(2)))
    yield linus.row(
        "API: one call too many",
        "402, REQUESTED_USAGE_EXCEEDING_LIMIT, 100 of 100",
        lambda: _problem(requests.get(f"{base}/api/templates", headers=token, timeout=START_SECONDS)),
    )
    yield linus.row("analytics, which the plan lacks", "402", lambda: _status(linus.get("/analytics/")))
    yield linus.row("upgrade to growth", "200", lambda: _status(linus.submit("/upgrade", "/upgrade")))
    yield linus.row("analytics", "200", lambda: _status(linus.get("/analytics/")))
    yield linus.row(
        "create a template",
        "200, 3 of 50 templates",
        lambda: _status(linus.submit("/", "/templates", **make), r"\d+ of 50 templates"),
    )
    yield from _walk_sign_up(Visitor("flask", base), "/sign-up", "/templates", make)


def _walk_sign_up(new: Visitor, sign_up: str, templates: str, make: dict[str, str]) -> Iterator[Row]:
    """Somebody new, who is a customer at Stigg by the time that the next page asks."""
    upgrade = sign_up.replace("sign-up", "upgrade")
    yield new.row(
        "sign up, on the free plan",
        "200, 0 of 2 templates",
        lambda: _status(new.submit("/", sign_up, name="Barbara"), r"\d of \d templates"),
    )
    yield new.row(
        "create a template",
        "200, 1 of 2 templates",
        lambda: _status(new.submit("/", templates, **make), r"\d of 2 templates"),
    )
    yield new.row("upgrade to growth", "200", lambda: _status(new.submit(upgrade, upgrade)))
    yield new.row(
        "create a template",
        "200, 2 of 50 templates",
        lambda: _status(new.submit("/", templates, **make), r"\d+ of 50 templates"),
    )


def _status(response: requests.Response, text: str = "") -> str:
    found = re.search(text, response.text)
    return f"{response.status_code}, {found[0] if found else 'no such text'}" if text else str(response.status_code)


def _problem(response: requests.Response) -> str:
    problem = response.json()
    return f"{response.status_code}, {problem['reason']}, {problem['usage']:g} of {problem['limit']:g}"


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """A socket that exists before the server does: the port is known, and early requests wait in its queue."""
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        yield listener


@contextmanager
def _gunicorn(
    folder: str, application: str, listener: socket.socket, environ: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(HERE / folder), "--bind", f"fd://{listener.fileno()}"]
    command += ["--workers", "2", "--threads", "4", "--preload", "--no-control-socket", "--log-level", "warning"]
    with _process([*command, application], environ, (listener.fileno(),)) as process:
        yield process


@contextmanager
def _process(
    command: list[str], environ: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, pass_fds=pass_fds) as process:
        try:
            yield process
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())

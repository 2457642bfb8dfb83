"""What comes from elsewhere: shown on one line, and read within bounds through every door of the library."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from stigg_guard import Config, ConfigError, Guard
from stigg_guard.cli.features import known_features
from stigg_guard.cli.mentions import mentions
from stigg_guard.fallbacks import parse_fallbacks
from stigg_guard.foreign import MAX_LEVELS, Unreadable, json_value, printable, quoted, toml_value
from stigg_guard.sidecar.catalog import load_catalog
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.webhooks import receive

TOO_DEEP = "nested too deep; at most 64 levels"
TOO_LARGE = "integer is too large; those within 64 bits"
NOT_UNICODE = "text is not valid Unicode"

JSON: dict[str, tuple[str, str]] = {
    "lists": (f"{'[' * 100_000}{']' * 100_000}", TOO_DEEP),
    "lists without an end": ("[" * 100_000, TOO_DEEP),
    "objects": ('{"customers":' * 5_000 + "1" + "}" * 5_000, TOO_DEEP),
    "one level too many": (f"{'[' * (MAX_LEVELS + 1)}{']' * (MAX_LEVELS + 1)}", TOO_DEEP),
    "digits without an end": (f'{{"f": {"9" * 100_000}}}', TOO_LARGE),
    "a bit too many": (f'{{"f": {2**63}}}', TOO_LARGE),
    "a bit too many below 0": (f'{{"f": [{-(2**63) - 1}]}}', TOO_LARGE),
    "half a character": (r'{"f": "\ud800"}', NOT_UNICODE),
    "half a character in a key": (r'{"\udfff": 1}', NOT_UNICODE),
}
TOML: dict[str, tuple[str, str]] = {
    "lists": (f"a = {'[' * 5_000}{']' * 5_000}", TOO_DEEP),
    "tables": (f"[{'.'.join('a' * 5_000)}]", TOO_DEEP),
    "dotted keys": (f"{'.'.join('a' * 5_000)} = 1", TOO_DEEP),
    "inline tables": (f"a = {'{a = ' * 5_000}1{'}' * 5_000}", TOO_DEEP),
    "digits without an end": (f"a = {'9' * 5_000}", TOO_LARGE),
    "hexadecimal digits without an end": (f"a = 0x{'f' * 5_000}", TOO_LARGE),
    "a bit too many": (f"a = {2**63}", TOO_LARGE),
}
EVERY = [pytest.param(text, reason, id=name) for name, (text, reason) in JSON.items()]


class TestDocument:
    @pytest.mark.parametrize(("text", "reason"), EVERY)
    @pytest.mark.parametrize("encode", [str, str.encode], ids=["text", "bytes"])
    def test_json_beyond_the_bounds_is_refused_with_the_reason(
        self, text: str, reason: str, encode: Callable[[str], str | bytes]
    ) -> None:
        with pytest.raises(Unreadable, match=reason):
            json_value(encode(text))

    @pytest.mark.parametrize(("text", "reason"), TOML.values(), ids=TOML.keys())
    def test_toml_beyond_the_bounds_is_refused_with_the_reason(self, text: str, reason: str) -> None:
        with pytest.raises(Unreadable, match=reason):
            toml_value(text)

    def test_what_is_within_the_bounds_is_read(self) -> None:
        deep = f"{'[' * MAX_LEVELS}{']' * MAX_LEVELS}"
        assert json.dumps(json_value(deep)) == deep
        extremes = [2**63 - 1, -(2**63), 1.5e300, "\U0001f600", '"[{\\', True, None]
        assert json_value(json.dumps(extremes)) == extremes
        assert json_value(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
        assert toml_value(f"a = {2**63 - 1}") == {"a": 2**63 - 1}

    def test_brackets_in_texts_are_no_levels(self) -> None:
        text = json.dumps({'["' * 100: r"\[{" * 100})
        assert json_value(text) == json.loads(text)

    @pytest.mark.parametrize(
        ("text", "reason"), [("{", "not JSON: Expecting"), ('{"a', "not JSON"), (b"\xff", "not JSON: 'utf-8'")]
    )
    def test_what_is_no_json_is_refused_with_the_reason(self, text: str | bytes, reason: str) -> None:
        with pytest.raises(Unreadable, match=reason):
            json_value(text)

    def test_the_keys_that_lead_to_a_fault_are_told(self) -> None:
        with pytest.raises(Unreadable) as caught:
            json_value(f'{{"a": [0, {{"b": {10**30}}}]}}')
        assert caught.value.path == ("a", "1", "b")
        assert str(caught.value).startswith("a.1.b: this integer is too large")

    def test_a_thread_with_a_small_stack_is_not_overrun(self) -> None:
        """The parser itself would end the interpreter here."""
        program = """
import threading
from stigg_guard.foreign import json_value
def read():
    for text in ("[" * 100_000, '{"a":' * 100_000):
        try:
            json_value(text)
        except ValueError as error:
            print(error)
threading.stack_size(128 * 1024)
thread = threading.Thread(target=read)
thread.start()
thread.join()
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.count(TOO_DEEP) == 2


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("customer-01 é 漢字", "customer-01 é 漢字"),
            ("a\nERROR forged", r"a\nERROR forged"),
            ("a\r\x0b\x0c\x1c\x85\u2028\u2029b", r"a\r\x0b\x0c\x1c\x85\u2028\u2029b"),
            ("\x1b[2J\x00", r"\x1b[2J\x00"),
            ("\u202egnp", r"\u202egnp"),
            ("\ud800", r"\ud800"),
        ],
    )
    def test_a_text_is_shown_on_one_line(self, text: str, shown: str) -> None:
        assert printable(text) == shown
        assert len(printable(text).splitlines()) == 1

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("a\nb", r"'a\nb'"),
            (7, "7"),
            pytest.param(10**5_000, "an integer of thousands of digits", id="huge"),
            ([[[[[[[[1]]]]]]]], "[[[[[[[...]]]]]]]"),
            ("x" * 500, f"'{'x' * 47}...{'x' * 48}'"),
        ],
    )
    def test_a_value_is_quoted_briefly_whatever_it_is(self, value: object, shown: str) -> None:
        assert quoted(value) == shown

    def test_a_value_that_shows_itself_on_several_lines_is_quoted_on_one(self) -> None:
        class Many:
            def __repr__(self) -> str:
                return "many\nlines"

        assert quoted(Many()) == r"many\nlines"


def fallbacks(text: str, _folder: Path) -> object:
    return parse_fallbacks(text)


def setting(name: str) -> Callable[[str, Path], object]:
    return lambda text, _folder: Config.from_env({f"STIGG_GUARD_{name}": text})


def file(read: Callable[[Path], object]) -> Callable[[str, Path], object]:
    def from_file(text: str, folder: Path) -> object:
        path = folder / "foreign.json"
        path.write_text(text)
        return read(path)

    return from_file


DOORS = {
    "fallbacks": fallbacks,
    **{name: setting(name) for name in ("FALLBACKS", "RULES", "STATUS_CODES")},
    "a catalog in JSON": file(load_catalog),
    "a list of features": file(known_features),
    "an offline guard": file(
        lambda path: Guard(Config(sidecar="offline", offline_file=str(path))).check("f", customer="c")
    ),
}


@pytest.mark.parametrize(("text", "reason"), EVERY)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_json_beyond_the_bounds(door: str, text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        DOORS[door](text, tmp_path)


@pytest.mark.parametrize(("text", "reason"), TOML.values(), ids=TOML.keys())
def test_a_catalog_in_toml_refuses_what_is_beyond_the_bounds(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"shop\.toml: .*{reason}"):
        load_catalog(path)


def test_a_catalog_tells_the_line_of_an_integer_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(f"[plans.p.entitlements]\nf = {{ limit = {10**30} }}\n")
    with pytest.raises(ConfigError, match=r"shop\.toml: line 2, plans\.p\.entitlements\.f\.limit: this integer"):
        load_catalog(path)


def test_a_text_that_looks_like_a_deep_table_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(f"a = '''\n[{'.'.join('a' * 50_000)}]\n'''")
    with pytest.raises(ConfigError, match="a: unknown key"):
        load_catalog(path)


@pytest.mark.parametrize(("text", "reason"), EVERY)
def test_a_webhook_beyond_the_bounds_is_a_bad_request(text: str, reason: str, make_guard: Callable[..., Guard]) -> None:
    guard = make_guard(WEBHOOK_SECRET="secret")
    assert receive(guard, "secret", BytesIO(text.encode()).read) is HTTPStatus.BAD_REQUEST


def put(sidecar: Sidecar, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """The status and the problem that the sidecar answers a plan change with."""
    host, _, port = sidecar.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("PUT", path)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    problem = json.loads(answer.read() or b"null")
    connection.close()
    return answer.status, problem


@pytest.mark.parametrize(("text", "reason"), [(text[:60_000], reason) for text, reason in JSON.values()], ids=JSON)
def test_a_plan_change_beyond_the_bounds_is_a_bad_request(sidecar: Sidecar, text: str, reason: str) -> None:
    status, problem = put(sidecar, "/customers/customer-demo-01", text.encode())
    assert (status, problem["status"]) == (400, 400)
    assert reason in problem["detail"] or "not JSON" in problem["detail"]  # where the text was cut


@pytest.mark.parametrize("path", ["/customers/%ff%00%0a", "//[", "/customers/[::1", "/customers/?plan=growth"])
def test_a_plan_change_of_a_strange_address_is_not_found(sidecar: Sidecar, path: str) -> None:
    status, problem = put(sidecar, path, b'{"plan": "growth"}')
    assert (status, problem["status"]) == (404, 404)


@pytest.mark.parametrize("length", ["9" * 5_000, "0" * 5_000, "1048577"])
def test_a_length_that_no_body_may_have_is_refused(sidecar: Sidecar, length: str) -> None:
    status, _ = put(sidecar, "/customers/customer-demo-01", b"", **{"Content-Length": length})
    assert status == 413


DEEP = json.loads("[" * 900 + "]" * 900)
HUGE = 10**5_000
OF_CODE: dict[str, list[object]] = {
    **{
        name: [DEEP, HUGE, "9" * 5_000]
        for name in ("TIMEOUT", "CACHE_SIZE", "REDIS_KEYS_TTL", "STALE_TTL", "ENABLED", "ON_OUTAGE")
    },
    "SIDECAR": [DEEP, HUGE, f"host:{'9' * 5_000}"],
    "FALLBACKS": [
        *({"f": {"hasAccess": True, key: value}} for key in ("value", "usageLimit") for value in (DEEP, HUGE))
    ],
    "STATUS_CODES": [{"REVOKED": DEEP}, {"REVOKED": HUGE}, {HUGE: 402}],
    "RULES": [[DEEP], [HUGE], [{"path": HUGE, "feature": "f"}], [{"path": "/", "feature": "f", "methods": DEEP}]],
}


@pytest.mark.parametrize("name", OF_CODE)
def test_a_setting_that_code_has_made_of_anything_is_refused_by_its_name(name: str) -> None:
    for value in OF_CODE[name]:
        with pytest.raises(ConfigError, match=f"^{name}: "):
            Config.from_mapping({name: value})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("(" * 5_000, "the file is not Python: "),
        (f"x = {'9' * 5_000}", "the file is not Python: "),
        (f"x = {'-' * 100_000}1", "the file is nested too deep to be read"),
    ],
)
def test_code_that_python_cannot_read_is_listed_and_not_checked(source: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "generated.py"
    path.write_text(source)
    (one,) = mentions([path])
    assert one.problem.startswith(problem)

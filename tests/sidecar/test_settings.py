"""The settings of the local sidecar: variables and options, how they are checked, printed and warned about."""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser
from pathlib import Path

import pytest

from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.logs import JsonLines
from stigg_guard.sidecar.settings import (
    VARIABLES,
    Settings,
    configure_settings,
    described,
    options_of,
    warn,
    without_settings,
)

REDIS = {"REDIS_ENVIRONMENT_PREFIX": "dev"}


def test_without_variables_all_is_at_its_default():
    assert Settings.read({}) == Settings()
    assert Settings.read({"GRPC_PORT": "", "LOG_LEVEL": ""}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("GRPC_PORT", "80", 80),
        ("LOG_LEVEL", "DEBUG", "debug"),
        ("OFFLINE", "TRUE", True),
        ("EDGE_ENABLED", "0", False),
        ("CACHE_MAX_SIZE_BYTES", "1024", 1024),
        ("SERVER_API_KEY", "server-1", "server-1"),
        ("STIGG_SIDECAR_HTTP_PORT", "0", 0),
        ("WS_URL", "ws://localhost:1", "ws://localhost:1"),
    ],
)
def test_a_variable_is_read(variable, text, value):
    (name,) = [name for name, known in VARIABLES.items() if known == variable]
    assert getattr(Settings.read({variable: text}), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("GRPC_PORT", "65536", "'65536' is no port; give a number from 0 to 65535"),
        ("GRPC_PORT", "eighty", "is no port"),
        ("LOG_LEVEL", "loud", "expected one of error, warn, info, debug, not 'loud'"),
        ("OFFLINE", "maybe", "expected 1 or 0, true or false"),
        ("API_URL", "https://user:secret@api", "without user and password"),
        ("WS_URL", "https://api", "expected a URL, as wss://"),
        ("EDGE_API_URL", "https://api\nAPI_URL=x", "without line breaks"),
        ("CACHE_MAX_SIZE_BYTES", "0", "is no number of bytes"),
        ("ENTITLEMENTS_FALLBACK", "{", "not JSON"),
        ("SERVER_API_KEY", "two words", "without spaces"),
        ("STIGG_SIDECAR_HOST", " here", "without line breaks"),
        ("REQUIRE_API_KEY", "1", "set SERVER_API_KEY"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(variable, text, said):
    with pytest.raises(ConfigError, match=rf"^{variable}: ") as refused:
        Settings.read({variable: text})
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_every_wrong_variable_is_named_at_once():
    with pytest.raises(ConfigError, match=r"GRPC_PORT: .*; LOG_LEVEL: |LOG_LEVEL: .*; GRPC_PORT: "):
        Settings.read({"GRPC_PORT": "x", "LOG_LEVEL": "x"})


def test_an_option_goes_before_its_variable():
    parser = ArgumentParser()
    configure_settings(parser)
    options = options_of(vars(parser.parse_args(["--port", "81"])))
    assert Settings.read({"GRPC_PORT": "80", "STIGG_SIDECAR_HOST": "::1"}, options) == Settings(
        grpc_port=81, host="::1"
    )
    wrong = options_of(vars(parser.parse_args(["--http-port", "x"])))
    with pytest.raises(ConfigError, match=r"^--http-port: 'x' is no port"):
        Settings.read({}, wrong)


@pytest.mark.parametrize("variable", ["REDIS_KEYS_TTL_IN_SECS", "KEYS_TTL_IN_SECS"])
def test_both_names_of_the_ttl_are_read(variable):
    assert Settings.read(REDIS | {variable: "-1"}).redis_keys_ttl_in_secs == -1


def test_redis_is_where_its_variables_say():
    there = {"REDIS_HOST": "::1", "REDIS_PORT": "7000", "REDIS_DB": "3", "REDIS_TLS": "1"}
    access = {"REDIS_USERNAME": "us/er", "REDIS_PASSWORD": "p@ss"}
    assert Settings.read(REDIS).redis_url == "redis://localhost:6379/0"
    assert Settings.read(REDIS | there | access).redis_url == "rediss://us%2Fer:p%40ss@[::1]:7000/3"


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("REDIS_HOST", "user@elsewhere", "expected a name or an address"),
        ("REDIS_HOST", "redis://here", "expected a name or an address"),
        ("REDIS_USERNAME", "two\nlines", "without line breaks"),
        ("REDIS_PASSWORD", "secret\udcff", "expected a text in UTF-8"),
    ],
)
def test_what_makes_no_address_of_redis_is_refused_by_its_name(variable, text, said):
    with pytest.raises(ConfigError, match=rf"^{variable}: ") as refused:
        Settings.read({**REDIS, variable: text})
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_url_of_redis_goes_before_its_other_variables():
    url = "redis+sentinel://:secret@a:1,b:2/shop?db=3"
    given = {**REDIS, "STIGG_SIDECAR_REDIS": url, "REDIS_HOST": "elsewhere"}
    assert Settings.read(given).redis_url == url
    assert "secret" not in repr(Settings.read(given)) + "".join(described(given))
    with pytest.raises(ConfigError, match="STIGG_SIDECAR_REDIS: set REDIS_ENVIRONMENT_PREFIX, too"):
        Settings.read({"STIGG_SIDECAR_REDIS": url})
    with pytest.raises(ConfigError, match="STIGG_SIDECAR_REDIS: expected redis://") as caught:
        Settings.read({**REDIS, "STIGG_SIDECAR_REDIS": "redis+sentinel://:secret@a:1"})
    assert "secret" not in str(caught.value)


def test_without_its_prefix_redis_is_not_used_and_its_variables_not_read(caplog):
    of_a_container = {"REDIS_PORT": "tcp://10.0.0.1:6379"}
    assert Settings.read(of_a_container).redis_url is None
    caplog.set_level(logging.INFO, "stigg_guard")
    warn(of_a_container)
    assert [record.message for record in caplog.records] == [
        "Redis is not used without REDIS_ENVIRONMENT_PREFIX; not read: REDIS_PORT"
    ]


def test_usage_has_one_home():
    with pytest.raises(ConfigError, match="usage is kept in Redis"):
        Settings.read(REDIS | {"STIGG_SIDECAR_STATE": "state.sqlite"})


def test_every_setting_is_described_and_no_secret_shown():
    environ = {"SERVER_API_KEY": "server-1", "WS_ENABLED": "0", "REDIS_PASSWORD": "secret", **REDIS}
    environ["ENTITLEMENTS_FALLBACK"] = '{"f": true}'
    lines = list(described(environ, {"grpc_port": "80"}))
    assert [line.partition("=")[0] for line in lines] == list(VARIABLES.values())
    assert "GRPC_PORT=80  # --port" in lines
    assert "LOG_LEVEL=info  # default" in lines
    assert "SERVER_API_KEY=********  # SERVER_API_KEY" in lines
    assert "REDIS_PASSWORD=********  # REDIS_PASSWORD" in lines
    assert "WS_ENABLED=0  # WS_ENABLED, without effect here" in lines
    assert "ENTITLEMENTS_FALLBACK=1 given  # ENTITLEMENTS_FALLBACK" in lines
    assert not [line for line in lines if "server-1" in line or "secret" in line]
    assert "server-1" not in repr(Settings.read(environ))


def test_what_has_no_effect_and_what_is_unknown_is_named_once(caplog):
    warn({"EDGE_ENABLED": "1", "WS_URL": "wss://x", "STIGG_SIDECAR_CATALOGUE": "x", "STIGG_SIDECAR_Y": "", "OTHER": ""})
    assert [record.message for record in caplog.records] == [
        "without effect on the local sidecar, which has no cloud behind it: EDGE_ENABLED, WS_URL",
        "unknown variables of the local sidecar: "
        "STIGG_SIDECAR_CATALOGUE (did you mean STIGG_SIDECAR_CATALOG?), STIGG_SIDECAR_Y",
    ]


def test_a_child_inherits_no_setting():
    environ = {"PATH": "/bin", "LOG_LEVEL": "whatever", "KEYS_TTL_IN_SECS": "1", "REDIS_PORT": "tcp://x"}
    assert without_settings(environ) == {"PATH": "/bin"}


def test_a_log_line_of_json_is_one_object():
    record = logging.LogRecord("stigg_guard", logging.WARNING, __file__, 1, "who is %s", ("a\nb",), None)
    told = json.loads(JsonLines().format(record))
    assert (told["level"], told["logger"], told["message"]) == ("warning", "stigg_guard", "who is a\nb")
    assert told["time"].endswith("+00:00")
    assert "\n" not in JsonLines().format(record)


def test_a_traceback_is_part_of_the_object():
    try:
        Path("/nowhere").read_text()
    except OSError as error:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), (OSError, error, error.__traceback__))
    assert "FileNotFoundError" in json.loads(JsonLines().format(record))["exception"]

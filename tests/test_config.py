"""The settings: from the environment and from mappings, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stigg_guard.config import PREFIX, STATUS_CODES, Config, OnOutage, ReportMode
from stigg_guard.entitlements import Reason
from stigg_guard.errors import ConfigError
from stigg_guard.fallbacks import Fallback
from stigg_guard.settings.readers import split_address

SECRET = "server-0123456789"

# Each setting as the environment has it, as code has it, and what comes of both.
SETTINGS: dict[str, tuple[str, Any, Any]] = {
    "SIDECAR": (" sidecar.internal:8433 ", "sidecar.internal:8433", "sidecar.internal:8433"),
    "API_KEY": (SECRET, SECRET, SECRET),
    "TLS_CA_FILE": (__file__, Path(__file__), __file__),
    "TIMEOUT": ("0.5", 0.5, 0.5),
    "CACHE_TTL": ("60", 60, 60.0),
    "CACHE_SIZE": ("500", 500, 500),
    "CACHE": (" redis://cache:6379/1 ", "redis://cache:6379/1", "redis://cache:6379/1"),
    "REDIS_ENVIRONMENT_PREFIX": ("live", "live", "live"),
    "REDIS_KEYS_TTL": ("-1", -1, -1),
    "STALE_TTL": ("0", 0, 0.0),
    "FALLBACKS": ('{"f": {"hasAccess": true}}', {"f": True}, {"f": Fallback(True)}),
    "ON_OUTAGE": (" Allow ", OnOutage.ALLOW, OnOutage.ALLOW),
    "LEDGER": ("sqlite:///ledger.db", "sqlite:///ledger.db", "sqlite:///ledger.db"),
    "HOLD_TTL": ("1e2", 100, 100.0),
    "REPORT": ("inline", "INLINE", ReportMode.INLINE),
    "CUSTOMER": ("shop.customers.current", str, None),
    "UPGRADE_URL": ("/plans?f={feature}", "/plans?f={feature}", "/plans?f={feature}"),
    "FEATURE_NAMES": ('{"f": "Templates"}', {"f": "Templates"}, {"f": "Templates"}),
    "STATUS_CODES": ('{"REVOKED": 410}', {Reason.REVOKED: 410}, {**STATUS_CODES, Reason.REVOKED: 410}),
    "ENABLED": ("off", False, False),
}


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"CUSTOMER"}))
def test_setting_reads_alike_from_the_environment_and_from_code(name: str) -> None:
    spelled, value, expected = SETTINGS[name]
    for config in (Config.from_env({PREFIX + name: spelled}), Config.from_mapping({name: value})):
        assert getattr(config, name.lower()) == expected
        assert type(getattr(config, name.lower())) is type(expected)


def test_customer_is_a_dotted_path_or_a_callable() -> None:
    path, function, _ = SETTINGS["CUSTOMER"]
    assert Config.from_env({PREFIX + "CUSTOMER": path}).customer == path
    assert Config.from_mapping({"CUSTOMER": function}).customer is function


def test_local_sidecar_has_a_catalog_and_an_offline_one_a_file() -> None:
    assert Config.from_mapping({"SIDECAR": "local", "CATALOG": Path(__file__)}).catalog == __file__
    assert Config.from_mapping({"SIDECAR": "offline", "OFFLINE_FILE": __file__}).offline_file == __file__


@pytest.mark.parametrize("name", ["CATALOG", "OFFLINE_FILE", "TLS_CA_FILE"])
def test_file_that_is_not_there_is_a_fault_at_the_start(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: there is no file /nowhere/at.all"):
        Config(**{name.lower(): "/nowhere/at.all"})


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"on_outage": "allow"}, OnOutage.ALLOW),
        ({"report": "inline"}, ReportMode.INLINE),
        ({"fallbacks": {"f": {"hasAccess": True}}}, {"f": Fallback(has_access=True)}),
    ],
)
def test_value_given_in_code_is_read_like_any_other(setting: dict[str, Any], expected: object) -> None:
    (name,) = setting
    assert getattr(Config(**setting), name) is expected or getattr(Config(**setting), name) == expected


@pytest.mark.parametrize(
    "setting", [{"timeout": 0}, {"cache_ttl": -1}, {"sidecar": "nonsense:port"}, {"sidecar": "a b"}]
)
def test_wrong_value_given_in_code_is_refused(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"^{name.upper()}: "):
        Config(**setting)


def test_nothing_given_is_the_documented_defaults() -> None:
    config = Config.from_env({})
    assert config == Config() == Config.from_mapping({})
    assert (config.sidecar, config.timeout, config.cache_ttl, config.stale_ttl) == ("localhost:80", 1, 30, 86_400)
    assert (config.on_outage, config.report, config.enabled) == (OnOutage.ERROR, ReportMode.AUTO, True)
    assert config.status_codes == STATUS_CODES


def test_real_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIGG_GUARD_CACHE_TTL", "7")
    assert Config.from_env().cache_ttl == 7


def test_only_keys_of_the_prefix_are_read() -> None:
    settings = {"DEBUG": True, "STIGG_GUARD_TIMEOUT": 2, "STIGG_GUARDIAN": 1, "TIMEOUT": 9}
    assert Config.from_mapping(settings, prefix=PREFIX).timeout == 2


def test_optional_settings_may_be_none() -> None:
    names = ("CATALOG", "OFFLINE_FILE", "API_KEY", "TLS_CA_FILE", "UPGRADE_URL", "CUSTOMER", "FALLBACKS")
    assert Config.from_mapping(dict.fromkeys(names)) == Config()


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("CACHE_TIL", "did you mean CACHE_TTL?"),
        ("cache_ttl", "did you mean CACHE_TTL?"),
        ("STATUS_CODE", "did you mean STATUS_CODES?"),
        ("XYZZY", "the settings are ANONYMOUS, API_KEY, API_SHARE, API_URL"),
        ("", "the settings are ANONYMOUS, API_KEY, API_SHARE, API_URL"),
    ],
)
def test_unknown_setting_is_named_with_the_nearest_right_one(key: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({key: 1})
    assert str(caught.value).startswith(f"{key}: unknown setting; {advice}")


def test_message_speaks_of_settings_by_their_full_name() -> None:
    with pytest.raises(ConfigError, match=r"STIGG_GUARD_TIMEOT: .* did you mean STIGG_GUARD_TIMEOUT\?"):
        Config.from_env({"STIGG_GUARD_TIMEOT": "1"})
    with pytest.raises(ConfigError, match="STIGG_GUARD_OFFLINE_FILE: "):
        Config.from_env({"STIGG_GUARD_SIDECAR": "offline"})


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping(
            {"TIMEOUT": 0, "CACHE_SIZE": "many", "ENABLD": 1, "CATALOG": "shop.toml", "REPORT": "never"}
        )
    for name in ("TIMEOUT", "CACHE_SIZE", "ENABLD", "CATALOG", "REPORT"):
        assert f"{name}: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        *(
            (name, value, "expected a number of seconds above 0")
            for name in ("TIMEOUT", "HOLD_TTL")
            for value in (0, -1)
        ),
        ("CACHE_TTL", "-0.5", "expected a number of seconds above 0"),
        ("STALE_TTL", -1, "expected a number of seconds, 0 or more"),
        *(("TIMEOUT", value, "a finite number") for value in ("nan", "inf", True, None, [], "1s", "", 10**400)),
        *(("CACHE_SIZE", value, "a whole number of 1 or more") for value in (0, -5, 1.5, "2.5")),
        ("CACHE_SIZE", "inf", "a finite number"),
        *(("ENABLED", value, "expected true or false") for value in ("maybe", 2, None, "")),
        *(("ON_OUTAGE", value, "expected one of 'allow', 'deny', 'error'") for value in ("open", None, 1)),
        ("REPORT", "later", "expected one of 'auto', 'background', 'inline'"),
        ("LEDGER", "", "expected text, not nothing"),
        *((name, url, "names no host") for name in ("CACHE", "LEDGER") for url in ("redis://", "rediss://:pw@:6379/0")),
        *(("CACHE", value, "expected memory://, redis://") for value in ("memory", "http://cache", "sqlite:///x")),
        ("REDIS_ENVIRONMENT_PREFIX", "", "expected text, not nothing"),
        *(("REDIS_KEYS_TTL", value, "a whole number of seconds, negative for never") for value in (0, 1.5)),
        ("UPGRADE_URL", "  ", "expected text, not nothing"),
        ("CUSTOMER", 7, "expected text, not int"),
        ("FALLBACKS", '{"f": ', "not JSON"),
        ("FALLBACKS", {"f": {"hasAcces": True}}, "did you mean 'hasAccess'"),
        ("STATUS_CODES", [402], "expected a mapping of denial reasons"),
        ("FEATURE_NAMES", ["Templates"], "expected a mapping of feature ids"),
        *(("FEATURE_NAMES", {"f": name}, "f: expected a text, not") for name in (None, 1, True, [], {})),
        ("STATUS_CODES", "{", "Expecting property name"),
        ("STATUS_CODES", {"revokd": 410}, "unknown reason 'revokd'; did you mean REVOKED?"),
        ("STATUS_CODES", {"?": 410}, "unknown reason '?'; see Reason"),
        *(("STATUS_CODES", {"REVOKED": status}, "HTTP status from 400 to 599") for status in (200, 600, "402", True)),
    ],
)
def test_malformed_value_is_refused_with_its_name_and_the_remedy(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({name: value})
    assert str(caught.value).startswith(f"{name}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"SIDECAR": "offline"}, "OFFLINE_FILE: SIDECAR is 'offline', so name the file"),
        ({"SIDECAR": "local", "OFFLINE_FILE": __file__}, "OFFLINE_FILE: a local sidecar answers from CATALOG"),
        ({"SIDECAR": "local", "OFFLINE_FILE": "data.json"}, "OFFLINE_FILE: there is no file data.json"),
        (
            {"SIDECAR": "offline", "OFFLINE_FILE": __file__, "CATALOG": __file__},
            "CATALOG: with SIDECAR = 'offline' answers come from OFFLINE_FILE",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Config.from_mapping(settings)


def test_secrets_show_neither_in_the_repr_nor_in_a_message() -> None:
    url = f"redis://:{SECRET}@redis:6379/0"
    assert SECRET not in repr(Config.from_mapping({"API_KEY": SECRET, "LEDGER": url, "CACHE": url}))
    wrong = ({"API_KY": SECRET}, {"API_KEY": SECRET, "TIMEOUT": 0}, {"API_KEY": SECRET.encode()}, {"CACHE": f":{url}"})
    for settings in wrong:
        with pytest.raises(ConfigError) as caught:
            Config.from_mapping(settings)
        assert SECRET not in str(caught.value)


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().timeout = 2


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("sidecar:8433", ("sidecar", 8433)),
        ("sidecar", ("sidecar", 80)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("host:65535", ("host", 65_535)),
        ("[::1]:8433", ("::1", 8433)),
        ("[::1]", ("::1", 80)),
        ("::1", ("::1", 80)),
        ("::", ("::", 80)),
        ("2001:db8::5:80", ("2001:db8::5:80", 80)),
    ],
)
def test_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        *("", ":80", "host:", "host:0", "host:65536", "host:-1", "host:http", "host:8O", "host:\uff18", "[]:80"),
        *("http://host:80", "http://host", "host:80/path", "user@host:80", "two words:80"),
        *("[::1", "::1]", "[[::1]]:80", "[::1]80", "[host]:80", "[::1]]:80", "1::2::3", "a:b:80", "[::1]:", "host\n"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form(address: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port, host, 'local', 'offline' or 'cloud'"):
        split_address(address)

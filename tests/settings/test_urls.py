"""The URLs of ledgers and caches: each part is heeded or refused, and no error shows a password."""

from __future__ import annotations

import pytest
from redis import ConnectionPool

from stigg_guard import Config, ConfigError
from stigg_guard.settings.urls import LedgerFile, RedisUrl, ledger_file, redis_url, require_parts

SECRET = "s3cr3t"
REDIS = [
    *("redis://h", "redis://h/", "redis://h:6379/0", "redis://h/15", "redis://h?db=1", "redis://h/?db=1"),
    *(f"redis://:{SECRET}@h:1/0", f"redis://ann:{SECRET}%2F%40@h", "redis://[::1]:6379/1", "redis://10.0.0.1:65535"),
    "redis://h/0?socket_timeout=0.5&socket_connect_timeout=2&socket_keepalive=true&health_check_interval=0",
    f"redis://h?username=ann&password={SECRET}%26&client_name=shop&protocol=3&max_connections=10",
    "rediss://h:6380/0?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=none",
    *("unix:///run/redis.sock", "unix:///run/redis.sock?db=3", f"unix://ann:{SECRET}@/run/redis.sock?db=3"),
]
SEVERAL = {
    "redis+cluster://a:1,b": RedisUrl("redis://a:1", "cluster", (("a", 1), ("b", 6379))),
    f"rediss+cluster://ann:{SECRET}%2F@[::1]:1/0?socket_timeout=3": RedisUrl(
        f"rediss://ann:{SECRET}%2F@[::1]:1?socket_timeout=3", "cluster", (("::1", 1),)
    ),
    "redis+sentinel://a:1,b/shop?db=3": RedisUrl("redis://a:1?db=3", "sentinel", (("a", 1), ("b", 26379)), "shop"),
    f"redis+sentinel://:{SECRET}@a/shop?sentinel_username=ann&sentinel_password={SECRET}%26": RedisUrl(
        f"redis://:{SECRET}@a", "sentinel", (("a", 26379),), "shop", 0, {"username": "ann", "password": f"{SECRET}&"}
    ),
}
WRONG_REDIS = {
    "redis+cluster://": "names no host",
    "redis+cluster://a:1,": "names no host",
    f"redis+cluster://a:1,b:{SECRET}": "has a port that is no number",
    "redis+cluster://a:1/1": "names a database, and a cluster has only one",
    "redis+cluster://a:1?db=1": "names a database, and a cluster has only one",
    f"redis+cluster://:{SECRET}/@a:1": "percent-encoded",
    "redis+cluster://a:1?sentinel_password=x": "an option that does not exist",
    "redis+sentinel://a:1": "names no service that sentinels know",
    "redis+sentinel://a:1/sh\nop": "percent-encoded",
    "redis+sentinel://a:1/b/c": "names no service that sentinels know",
    "redis+sentinel://a:1/shop?socket_timeout=x": "socket_timeout has a value",
    "redis://h/abc": "has a path that is no number of a database",
    "redis://h/0/1": "has a path that is no number of a database",
    "redis://h/0;x=1": "has a path that is no number of a database",
    "redis://h/-1": "has a path that is no number of a database",
    "redis://h/9999999999": "has a path that is no number of a database",
    "redis://h/1?db=2": "names a database twice",
    "redis://h?db=1&db=2": "has one option twice",
    "redis://h?db=x": "db has a value",
    "redis://h?db=": "db has a value",
    "redis://h?db": "name=value",
    "redis://h?socket_timeuot=1": r"did you mean socket_timeout\?",
    "redis://h?xyzzy=1": "there are client_name, db, ",
    "redis://h?decode_responses=true": "there are client_name, db, ",
    "redis://h?ssl_ca_certs=/etc/ca.pem": "an option that does not exist",
    "redis://h?socket_timeout=-1": "socket_timeout has a value",
    "redis://h?socket_timeout=nan": "socket_timeout has a value",
    "redis://h?socket_timeout=0": "socket_timeout has a value",
    "redis://h?socket_keepalive=off": "socket_keepalive has a value",
    "redis://h#0": "percent-encoded",
    "redis://h/0#1": "percent-encoded",
    "redis://h?password=a#b": "percent-encoded",
    "redis://h\n/0": "percent-encoded",
    "redis://h h/0": "percent-encoded",
    f"redis://:{SECRET}/@h/0": "percent-encoded",
    f"redis://:{SECRET}#@h/0": "percent-encoded",
    f"redis://:1?{SECRET}@h/0": "percent-encoded",
    f"redis://h:{SECRET}": "has a port that is no number",
    "redis://h:": "has a port that is no number",
    "redis://h:0": "has a port that is no number",
    "redis://h:65536": "has a port that is no number",
    "redis://h:99999999999999999999": "has a port that is no number",
    "redis://h:\uff16379": "has a port that is no number",
    "redis://": "names no host",
    "redis:///0": "names no host",
    f"redis://:{SECRET}@:6379/0": "names no host",
    "redis://[::1": "percent-encoded",
    "unix://run/redis.sock": "has a host",
    "unix://:1/redis.sock": "has a host",
    "unix://": "has no path",
    "unix:///": "has no path",
    "unix:///run/redis.sock?socket_timeout=x": "socket_timeout has a value",
}
FILES = {
    "sqlite:///ledger.db": LedgerFile("ledger.db"),
    "sqlite:////srv/a%20b%3F%23%25/l.db": LedgerFile("/srv/a b?#%/l.db"),
    "sqlite:////srv/l.db?mode=0660&group=web": LedgerFile("/srv/l.db", 0o660, "web"),
    "sqlite:////srv/l.db?group=1000&mode=664": LedgerFile("/srv/l.db", 0o664, "1000"),
    "sqlite:////srv/l.db?mode=0600": LedgerFile("/srv/l.db", 0o600),
    "sqlite:////srv/l.db?group=a%20b&mode=660": LedgerFile("/srv/l.db", 0o660, "a b"),
}
WRONG_FILES = {
    **dict.fromkeys(("sqlite://", "sqlite:///", "sqlite://srv/l.db", "sqlite:///?mode=0660"), "are written %25"),
    **dict.fromkeys(("sqlite:///l#1.db", "sqlite:///l.db?mode=0660#x", "sqlite:///a%00b"), "are written %25 %3F %23"),
    "sqlite:///:memory:": ":memory: is memory:// here",
    "sqlite:///l.db?mod=0660": r"did you mean mode\?",
    "sqlite:///l.db?cache=shared": "there are group, mode",
    "sqlite:///l.db?mode=0660&mode=0600": "one option twice",
    "sqlite:///l.db?mode": "name=value",
    **{
        f"sqlite:///l.db?mode={mode}": "mode has a value"
        for mode in ("", "rw", "0777", "4660", "0260", "660x", "432", "00660", "-660")
    },
    **dict.fromkeys(("sqlite:///l.db?group=web", "sqlite:///l.db?mode=0600&group=web"), "group is whom mode lets in"),
    "sqlite:///l.db?mode=0660&group=": "group has a value",
}


@pytest.mark.parametrize("url", REDIS)
def test_a_url_of_a_redis_is_taken_for_ledger_and_cache(url: str) -> None:
    assert (Config(cache=url).cache, Config(ledger=url).ledger) == (url, url)


@pytest.mark.parametrize(("url", "parts"), SEVERAL.items())
def test_a_url_of_several_servers_says_where_they_are(url: str, parts: RedisUrl) -> None:
    assert (Config(cache=url).cache, Config(ledger=url).ledger) == (url, url)
    assert redis_url(url) == parts
    assert SECRET not in repr(parts)


def test_a_ledger_may_wait_for_replicas_and_a_cache_may_not() -> None:
    assert redis_url("redis://h/1?wait=2&socket_timeout=1", of_ledger=True) == RedisUrl(
        "redis://h/1?socket_timeout=1", wait=2
    )
    with pytest.raises(ConfigError, match=r"LEDGER: .*wait has a value"):
        Config.from_mapping({"LEDGER": "redis://h?wait=0"})
    with pytest.raises(ConfigError, match=r"CACHE: .*an option that does not exist"):
        Config.from_mapping({"CACHE": "redis://h?wait=1"})


@pytest.mark.parametrize("url", REDIS)
def test_redis_py_takes_it_too(url: str) -> None:
    ConnectionPool.from_url(url).make_connection()


@pytest.mark.parametrize(("url", "problem"), WRONG_REDIS.items())
@pytest.mark.parametrize("setting", ["CACHE", "LEDGER"])
def test_a_part_that_would_be_ignored_is_refused_and_not_shown(setting: str, url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}: expected redis://user:password@host.*({problem})") as caught:
        Config.from_mapping({setting: url})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("url", "file"), FILES.items())
def test_a_url_of_a_file_says_where_it_is_and_whom_it_lets_in(url: str, file: LedgerFile) -> None:
    assert ledger_file(url) == file
    assert Config(ledger=url).ledger == url


@pytest.mark.parametrize(("url", "problem"), WRONG_FILES.items())
def test_a_wrong_url_of_a_file_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^LEDGER: expected memory://, sqlite:///path.*({problem})"):
        Config.from_mapping({"LEDGER": url})


@pytest.mark.parametrize("url", ["memory://", "django://default", "mysql://root@h/x"])
def test_other_schemes_are_left_to_those_who_know_them(url: str) -> None:
    require_parts(url)

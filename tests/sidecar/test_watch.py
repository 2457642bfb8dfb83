"""A catalog's file that changes while a sidecar serves it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from stigg_guard.sidecar.catalog import load_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.sidecar.watch import CatalogWatch
from stigg_guard.wire import sidecar_pb2 as pb


def catalog(limit: int) -> str:
    return f"""
[features.f]
type = "metered"
meter = "fluctuating"
[plans.p.entitlements]
f = {{ limit = {limit} }}
[customers.c]
plan = "p"
"""


def limit_of(engine: Engine) -> float:
    answer = engine.answer("GetMeteredEntitlement", pb.GetMeteredEntitlementRequest(customer_id="c", feature_id="f"))
    assert isinstance(answer, pb.GetMeteredEntitlementResponse)
    return answer.entitlement.usage_limit


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(catalog(5))
    return path


@pytest.fixture
def watch(file: Path) -> CatalogWatch:
    return CatalogWatch(file)


@pytest.fixture
def engine(watch: CatalogWatch, file: Path) -> Iterator[Engine]:
    with closing(Engine(load_catalog(file), Store(None))) as made:
        yield made


def look_twice(watch: CatalogWatch, engine: Engine) -> None:
    watch.look(engine)
    watch.look(engine)


def test_a_changed_file_is_taken_in(watch: CatalogWatch, engine: Engine, file: Path) -> None:
    file.write_text(catalog(10))
    look_twice(watch, engine)
    assert limit_of(engine) == 10


def test_a_file_is_not_taken_in_before_it_rests(watch: CatalogWatch, engine: Engine, file: Path) -> None:
    for half_written in ("[features", catalog(10)):
        file.write_text(half_written)
        watch.look(engine)
    assert limit_of(engine) == 5
    watch.look(engine)
    assert limit_of(engine) == 10


def test_a_change_between_the_making_of_the_watch_and_the_first_reading_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(catalog(5))
    watch = CatalogWatch(path)
    with closing(Engine(load_catalog(path), Store(None))) as engine:
        path.write_text(catalog(10))
        look_twice(watch, engine)
        assert limit_of(engine) == 10


def test_a_wrong_catalog_is_told_once_with_its_faults_and_the_one_before_stays(
    watch: CatalogWatch, engine: Engine, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(catalog(10).replace("metered", "meterd"))
    look_twice(watch, engine)
    look_twice(watch, engine)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told.startswith(f"the catalog from before the change stays in force: {file}: 1 fault")
    assert "did you mean 'metered'?" in told
    assert limit_of(engine) == 5


def test_a_file_that_went_is_told_and_taken_in_when_it_is_back(
    watch: CatalogWatch, engine: Engine, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.unlink()
    look_twice(watch, engine)
    assert "cannot be read: No such file" in caplog.text
    file.write_text(catalog(10))
    look_twice(watch, engine)
    assert limit_of(engine) == 10


def test_a_file_that_stays_as_it_is_is_not_read_again(
    watch: CatalogWatch, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    look_twice(watch, engine)
    assert caplog.records == []


def test_a_thread_looks_until_the_block_ends(watch: CatalogWatch, engine: Engine, file: Path) -> None:
    taken_in = Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            taken_in.set()

    log = logging.getLogger("stigg_guard")
    handler, before = Told(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with watch.over(engine, interval=0.001):
            file.write_text(catalog(10))
            assert taken_in.wait(20)
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    assert limit_of(engine) == 10

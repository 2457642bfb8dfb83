"""Usage in Flask that follows the transaction of the request's SQLAlchemy session."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, stream_with_context
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import DDL, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from stigg_guard import Guard
from stigg_guard.flask import StiggGuard, consumes_usage, releases_usage
from stigg_guard.flask.sqlalchemy import follow, is_write
from stigg_guard.sidecar.server import Sidecar

ESSENTIALS = "customer-demo-01"
TEMPLATES = "feature-templates"


class Base(DeclarativeBase):
    pass


class Template(Base):
    __tablename__ = "template"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Shop:
    """An app with a database, whose view at ``/`` does what a test gives it and consumes one template."""

    def __init__(self, app: Flask, db: SQLAlchemy) -> None:
        self.app = app
        self.db = db
        self.does: Callable[[], Any] = lambda: "done"
        app.add_url_rule("/", "view", consumes_usage(1, TEMPLATES)(lambda: self.does()), methods=["GET", "POST"])

    @property
    def guard(self) -> Guard:
        return self.app.extensions["stigg_guard"].guard

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def write(self, title: str = "poster") -> None:
        self.db.session.add(Template(title=title))
        self.db.session.flush()

    def read(self) -> int:
        return len(self.db.session.scalars(select(Template)).all())

    def post(self, does: Callable[[], Any]) -> int:
        self.does = does
        return self.client.post("/").status_code

    def counted(self) -> tuple[float, int]:
        """How many units were used beyond the three of the catalog, and how many holds are open."""
        assert self.guard.flush() == 0
        self.guard.reload(ESSENTIALS)
        used = self.guard.check(TEMPLATES, customer=ESSENTIALS).current_usage
        return used - 3, self.guard.stats()["held"]


@pytest.fixture
def shop(sidecar: Sidecar, tmp_path: Path) -> Iterator[Shop]:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(
        STIGG_GUARD_SIDECAR=sidecar.address,
        STIGG_GUARD_CUSTOMER=lambda _: ESSENTIALS,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/shop.sqlite3",
    )
    db = SQLAlchemy(model_class=Base)
    db.init_app(app)
    StiggGuard(app, confirm=follow(db.session))
    made = Shop(app, db)
    with app.app_context():
        db.create_all()
    yield made
    made.guard.close()
    with app.app_context():
        db.engine.dispose()


def test_commit_in_the_view_is_counted(shop: Shop) -> None:
    def view() -> str:
        shop.write()
        shop.db.session.commit()
        return "made"

    assert shop.post(view) == 200
    assert shop.counted() == (1, 0)


def test_what_the_view_wrote_and_nobody_committed_is_given_back(shop: Shop) -> None:
    def view() -> str:
        shop.write()
        return "made"

    assert shop.post(view) == 200
    assert shop.counted() == (0, 0)


@pytest.mark.parametrize(
    "statement",
    [
        insert(Template).values(title="poster"),
        text("insert into template (title) values ('poster')"),
        text("with one as (select 'poster') insert into template (title) select * from one"),
        DDL("create table other (id integer)"),
    ],
)
def test_an_uncommitted_statement_is_given_back(shop: Shop, statement: Any) -> None:
    def view() -> str:
        shop.db.session.execute(statement)
        return "made"

    shop.post(view)
    assert shop.counted() == (0, 0)


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.bulk_save_objects([Template(title="poster")]),
        lambda session: session.bulk_insert_mappings(Template, [{"title": "poster"}]),
        lambda session: session.query(Template).delete(),
        lambda session: session.connection().execute(insert(Template).values(title="poster")),
    ],
)
def test_an_uncommitted_write_on_other_ways_is_given_back(shop: Shop, write: Callable[[Any], None]) -> None:
    def view() -> str:
        write(shop.db.session)
        return "made"

    shop.post(view)
    assert shop.counted() == (0, 0)


def test_an_unflushed_object_is_given_back(shop: Shop) -> None:
    def view() -> str:
        shop.db.session.add(Template(title="poster"))
        return "made"

    shop.post(view)
    assert shop.counted() == (0, 0)


def test_commit_after_the_view_is_counted_then(shop: Shop) -> None:
    before: list[tuple[float, int]] = []

    @shop.app.after_request
    def commit(response: Response) -> Response:
        before.append(shop.counted())
        shop.db.session.commit()
        return response

    def view() -> str:
        shop.write()
        return "made"

    shop.post(view)
    assert before == [(0, 1)]
    assert shop.counted() == (1, 0)


def test_rollback_after_the_view_is_given_back(shop: Shop) -> None:
    @shop.app.after_request
    def rollback(response: Response) -> Response:
        shop.db.session.rollback()
        return response

    def view() -> str:
        shop.write()
        return "made"

    shop.post(view)
    assert shop.counted() == (0, 0)


READS = [
    select(Template),
    select(select(Template.id).cte()),
    select(Template).from_statement(text("with few as (select 1) select * from template")),
    select(func.replace(Template.title, "insert", "delete")),
    func.count(),
    text(" SELECT count(*) FROM template"),
    text("WITH few AS (SELECT 1) SELECT * FROM few"),
    text("/* update it? */ SELECT 1 -- delete it?"),
    text("VALUES (1)"),
    text("EXPLAIN SELECT 1"),
    text("PRAGMA busy_timeout"),
    text("SELECT 'it''s; drop', 1 AS \"delete\", 2 AS `update`"),
    text("SELECT replace(title, 'a', 'b') FROM template AS t WHERE t.title != :create").bindparams(create="poster"),
]


@pytest.mark.parametrize("statement", READS, ids=str)
def test_a_transaction_that_only_reads_is_counted(shop: Shop, statement: Any) -> None:
    def view() -> str:
        shop.db.session.execute(statement).all()
        return "read"

    assert shop.post(view) == 200
    assert shop.counted() == (1, 0)


@pytest.mark.parametrize("sql", ["SELECT 1 FOR UPDATE", "select 1 for  no key update", "SHOW server_version"])
def test_sql_of_other_databases_that_reads_is_no_write(sql: str) -> None:
    assert not is_write(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH gone AS (DELETE FROM template RETURNING *) SELECT * FROM gone",
        "MERGE INTO template USING other ON true WHEN MATCHED THEN DO NOTHING",
        "/* select */ TRUNCATE template",
        "call make('poster')",
        "REPLACE template VALUES (1)",
        "DO $$ BEGIN PERFORM make(); END $$",
    ],
)
def test_sql_of_other_databases_that_writes_is_a_write(sql: str) -> None:
    assert is_write(sql)


def test_reading_is_counted_as_the_view_ends_where_the_test_has_a_context_of_its_own(shop: Shop) -> None:
    with shop.app.app_context():
        shop.post(lambda: str(shop.read()))
        assert shop.counted() == (1, 0)


@pytest.mark.parametrize("reads_again", [True, False])
def test_an_attribute_that_is_set_to_its_own_value_is_no_write(shop: Shop, reads_again: bool) -> None:
    with shop.app.app_context():
        shop.write()
        shop.db.session.commit()

    def view() -> str:
        template = shop.db.session.scalars(select(Template)).one()
        template.title = template.title
        return str(shop.read() if reads_again else template.title)

    shop.post(view)
    assert shop.counted() == (1, 0)


def test_a_changed_attribute_that_nobody_committed_is_given_back(shop: Shop) -> None:
    with shop.app.app_context():
        shop.write()
        shop.db.session.commit()

    def view() -> str:
        shop.db.session.scalars(select(Template)).one().title = "letter"
        return "changed"

    shop.post(view)
    assert shop.counted() == (0, 0)


def test_reads_after_the_commit_do_not_lose_the_usage(shop: Shop) -> None:
    def view() -> str:
        shop.write()
        shop.db.session.commit()
        return str(shop.read())

    shop.post(view)
    assert shop.counted() == (1, 0)


def make_and_show(shop: Shop, change: Callable[[Template], None]) -> None:
    """Commits one template, and changes another one that is only shown."""
    with shop.app.app_context():
        shop.write("shown")
        shop.db.session.commit()
    shop.write("made")
    shop.db.session.commit()
    change(shop.db.session.scalars(select(Template).limit(1)).one())


def change_for_display(shop: Shop) -> None:
    def upper(template: Template) -> None:
        template.title = template.title.upper()

    make_and_show(shop, upper)


def add_for_display(shop: Shop) -> None:
    make_and_show(shop, lambda _: shop.db.session.add(Template(title="a draft")))


@pytest.mark.parametrize("display", [change_for_display, add_for_display])
def test_committed_work_is_counted_whatever_is_changed_afterwards(
    shop: Shop, display: Callable[[Shop], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert shop.post(lambda: str(display(shop))) == 200
    assert shop.counted() == (1, 0)
    assert caplog.text == ""


@pytest.mark.parametrize("display", [change_for_display, add_for_display])
def test_committed_work_of_a_block_is_counted_too(shop: Shop, display: Callable[[Shop], None]) -> None:
    def view() -> tuple[str, int]:
        with shop.guard.consume(TEMPLATES, customer=ESSENTIALS):
            display(shop)
        return "only the block is counted", 400

    shop.post(view)
    assert shop.counted() == (1, 0)


@pytest.mark.parametrize("display", [change_for_display, add_for_display])
def test_units_are_given_back_by_committed_work(shop: Shop, display: Callable[[Shop], None]) -> None:
    shop.app.view_functions["view"] = releases_usage(2, TEMPLATES)(lambda: str(display(shop)))
    shop.client.post("/")
    assert shop.counted() == (-2, 0)


def test_committed_work_is_counted_with_a_warning_where_more_was_written(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def view() -> str:
        shop.write()
        shop.db.session.commit()
        shop.write("and another")
        return "made"

    shop.post(view)
    assert shop.counted() == (1, 0)
    assert "commit once, after the last write" in caplog.text


def test_what_was_committed_before_the_units_were_held_is_no_work(shop: Shop) -> None:
    @shop.app.before_request
    def note_the_visit() -> None:
        shop.write("visit")
        shop.db.session.commit()

    def view() -> str:
        shop.write()
        return "made"

    shop.post(view)
    assert shop.counted() == (0, 0)


def test_a_commit_that_wrote_nothing_is_no_work(shop: Shop) -> None:
    def view() -> str:
        shop.read()
        shop.db.session.commit()
        shop.write()
        return "made"

    shop.post(view)
    assert shop.counted() == (0, 0)


@pytest.mark.parametrize(("commits", "used"), [(True, 1), (False, 0)])
@pytest.mark.parametrize("writes_in_stream", [True, False])
def test_a_stream_that_outlives_the_transaction_follows_it(
    shop: Shop, writes_in_stream: bool, commits: bool, used: int
) -> None:
    def work() -> None:
        shop.write()
        if commits:
            shop.db.session.commit()

    def parts() -> Iterator[str]:
        if writes_in_stream:
            work()
        yield "made"

    def view() -> Response:
        if not writes_in_stream:
            work()
        return Response(stream_with_context(parts()) if writes_in_stream else parts())

    shop.does = view
    assert shop.client.post("/").text == "made"
    assert shop.counted() == (used, 0)


def test_a_view_without_the_database_is_counted(shop: Shop) -> None:
    assert shop.post(lambda: "done") == 200
    assert shop.counted() == (1, 0)


def test_a_failure_after_the_commit_is_given_back(shop: Shop) -> None:
    def view() -> tuple[str, int]:
        shop.write()
        shop.db.session.commit()
        return "sold out", 409

    shop.post(view)
    assert shop.counted() == (0, 0)


@pytest.mark.parametrize(("keeps", "used"), [(True, 1), (False, 0)])
def test_usage_in_a_savepoint_follows_the_savepoint(shop: Shop, keeps: bool, used: int) -> None:
    def view() -> tuple[str, int]:
        shop.write("kept")
        with shop.db.session.begin_nested() as savepoint:
            shop.write()
            with shop.guard.consume(TEMPLATES, customer=ESSENTIALS):
                pass
            if not keeps:
                savepoint.rollback()
        shop.db.session.commit()
        return "only the block is counted", 400

    shop.post(view)
    assert shop.counted() == (used, 0)


def test_usage_in_a_kept_savepoint_is_given_back_with_its_transaction(shop: Shop) -> None:
    def view() -> tuple[str, int]:
        with shop.db.session.begin_nested():
            shop.write()
            with shop.guard.consume(TEMPLATES, customer=ESSENTIALS):
                pass
        shop.db.session.rollback()
        return "only the block is counted", 400

    shop.post(view)
    assert shop.counted() == (0, 0)


def test_a_reported_use_follows_the_transaction_too(shop: Shop) -> None:
    def view() -> tuple[str, int]:
        shop.write()
        shop.guard.report(TEMPLATES, 1, customer=ESSENTIALS)
        shop.db.session.rollback()
        shop.write()
        shop.guard.report(TEMPLATES, 2, customer=ESSENTIALS)
        shop.db.session.commit()
        return "only the reports are counted", 400

    shop.post(view)
    assert shop.counted() == (2, 0)


def test_requests_on_one_thread_have_transactions_of_their_own(shop: Shop) -> None:
    def forgetful() -> str:
        shop.write()
        return "made"

    def careful() -> str:
        shop.write()
        shop.db.session.commit()
        return "made"

    for view in (forgetful, careful, forgetful):
        assert shop.post(view) == 200
    assert shop.counted() == (1, 0)


def test_a_session_that_is_dropped_open_gives_its_units_back(shop: Shop) -> None:
    with shop.app.app_context():
        shop.write()
        with shop.guard.consume(TEMPLATES, customer=ESSENTIALS):
            pass
        shop.db.session.registry.clear()
        gc.collect()
    assert shop.counted() == (0, 0)


def test_work_outside_of_the_app_is_counted_at_once(shop: Shop) -> None:
    with shop.guard.consume(TEMPLATES, customer=ESSENTIALS):
        pass
    assert shop.counted() == (1, 0)


def test_import_without_sqlalchemy_says_the_pip_line() -> None:
    script = "import sys; sys.modules['sqlalchemy'] = None\nimport stigg_guard.flask.sqlalchemy"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtra" in failed.stderr
    assert "pip install 'stigg-guard[sqlalchemy]'" in failed.stderr

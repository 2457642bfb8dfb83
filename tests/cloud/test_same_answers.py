"""One table of requests and answers, equal for whatever answers them: gRPC, the engine in process, Stigg's API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from stigg_guard import InvalidRequest, SidecarError
from stigg_guard.api import Api
from stigg_guard.channel import Channel
from stigg_guard.cloud.answers import Cloud
from stigg_guard.sidecar.catalog import load_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS, Answerer

DATA = Path(__file__).parents[1] / "data"
TABLE: list[dict[str, Any]] = json.loads((DATA / "requests.json").read_text(encoding="utf-8"))
NOW = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
FIELD = re.compile(r"(?:^|\()([\w.\[\]-]+): ")


@contextmanager
def in_process() -> Iterator[Engine]:
    engine = Engine(load_catalog(str(DATA / "requests.toml")), Store(None), now=lambda: NOW)
    with closing(engine):
        yield engine


@contextmanager
def over_grpc() -> Iterator[Answerer]:
    with in_process() as engine, Sidecar(engine) as server:
        host, _, port = server.address.rpartition(":")
        with closing(Channel(host, port)) as channel:
            yield channel


@contextmanager
def over_graphql() -> Iterator[Answerer]:
    with in_process() as engine, Sidecar(engine) as server:
        api = Api("any-key", f"http://{server.http_address}")
        with closing(Cloud(api, now=lambda: NOW)) as cloud:
            yield cloud


@contextmanager
def over_a_sidecar_before_graphql() -> Iterator[Answerer]:
    """As other languages have it: a sidecar of ours in front of the API."""
    with over_graphql() as cloud, Sidecar(cloud) as server:
        host, _, port = server.address.rpartition(":")
        with closing(Channel(host, port)) as channel:
            yield channel


def outcome(answers: Answerer, case: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer as JSON without what differs by nature, or the field for which it is refused."""
    request = ParseDict(case["request"], METHODS[case["method"]].request())
    try:
        answer = answers.answer(case["method"], request, timeout=20, idempotency_key=case.get("key"))
    except InvalidRequest as error:
        return {"refused": error.field}
    except SidecarError as error:
        found = FIELD.search(str(error))
        return {"refused" if error.code == "INVALID_ARGUMENT" else error.code: found[1] if found else ""}
    told = MessageToDict(answer, preserving_proto_field_name=True)
    for measured in (told, *told.get("usages", ())):
        measured.pop("measurement_id", None)
    return {"answer": told}


@pytest.mark.parametrize("running", [in_process, over_grpc, over_graphql, over_a_sidecar_before_graphql])
def test_all_answer_alike(running: Callable[[], Any]) -> None:
    with running() as answers:
        found = [outcome(answers, case) for case in TABLE]
    expected = [{key: case[key] for key in ("answer", "refused") if key in case} for case in TABLE]
    assert [both for both in zip(found, expected, TABLE, strict=True) if both[0] != both[1]] == []


def test_the_table_has_all_methods_and_many_cases() -> None:
    assert len(TABLE) >= 200
    assert {case["method"] for case in TABLE} == set(METHODS)
    answered = [case["answer"] for case in TABLE if "answer" in case]
    reasons = {str(answer.get("access_denied_reason")) for answer in answered}
    assert len(reasons) > 8

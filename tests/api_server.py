"""A stand-in for Stigg's GraphQL API: a real HTTP server that holds requests to the schema and makes up the answers."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLEnumType,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLUnionType,
    build_schema,
    execute_sync,
    is_required_input_field,
    parse,
    validate,
)

from stigg_guard.api.generate import snake

SCHEMA = build_schema(files("stigg_guard.api").joinpath("stigg.graphql").read_text(encoding="utf-8"))
FACTS = json.loads(files("stigg_guard.api").joinpath("operations.json").read_text(encoding="utf-8"))
KEY = "server-key-of-the-tests"
INSTANT = "2026-01-02T03:04:05.678Z"
SCALARS = {"Int": 2, "Float": 1.5, "Boolean": True, "JSON": {"made": ["up"]}}


def sample(type_: Any, depth: int = 3) -> Any:
    """A value of an input type in plain dicts, with every field down to a depth, and only the necessary ones below."""
    if isinstance(type_, GraphQLNonNull):
        return sample(type_.of_type, depth)
    if isinstance(type_, GraphQLList):
        return [sample(type_.of_type, depth)]
    if isinstance(type_, GraphQLInputObjectType):
        fields = {name: entry for name, entry in type_.fields.items() if depth or is_required_input_field(entry)}
        return {snake(name): sample(entry.type, max(0, depth - 1)) for name, entry in fields.items()}
    if isinstance(type_, GraphQLEnumType):
        return list(type_.values)[-1]
    return {"String": "text", "Float": 2.5, "Int": 3, "Boolean": False, "JSON": {"any": ["thing", None]}}[type_.name]


def variable_types(operation: str) -> dict[str, Any]:
    def parsed(text: str) -> Any:
        if text.endswith("!"):
            return GraphQLNonNull(parsed(text[:-1]))
        return GraphQLList(parsed(text[1:-1])) if text.startswith("[") else SCHEMA.type_map[text]

    return {name: parsed(type_) for name, type_ in FACTS["operations"][operation]["variables"].items()}


@dataclass
class Received:
    """One request as it arrived, with the names of its headers in small letters."""

    headers: Mapping[str, str]
    payload: Mapping[str, Any]


@dataclass
class ApiServer:
    """Answers each operation with made-up data, or with what ``resolvers`` have for a root field. ``faults`` are taken
    first, one for each request: they get the handler and answer in their own way."""

    resolvers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    faults: deque[Callable[[Handler], None]] = field(default_factory=deque)
    received: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.released = threading.Event()
        self._http = _Http(("127.0.0.1", 0), Handler)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        document, errors = _validated(payload["query"])
        if errors:
            return {
                "errors": [{**error.formatted, "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}} for error in errors]
            }
        done = execute_sync(
            SCHEMA,
            document,
            variable_values=payload["variables"],
            operation_name=payload["operationName"],
            field_resolver=self._resolve,
            type_resolver=lambda value, *_: value["__typename"],
        )
        return dict(done.formatted)

    def _resolve(self, source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
        if source is None and info.field_name in self.resolvers:
            return self.resolvers[info.field_name](**arguments)
        if isinstance(source, dict) and info.field_name in source:
            return source[info.field_name]
        return _made_up(info.return_type, info.field_name)


@cache
def _validated(query: str) -> tuple[DocumentNode, list[GraphQLError]]:
    document = parse(query)
    return document, validate(SCHEMA, document)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    owner: ApiServer

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        owner = self.owner
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner.received.append(Received({name.lower(): value for name, value in self.headers.items()}, payload))
        if owner.faults:
            owner.faults.popleft()(self)
            return
        self.send(200, json.dumps(owner.answer(payload)).encode())

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def owner(self) -> ApiServer:
        assert isinstance(self.server, _Http)
        return self.server.owner

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at what was received."""


def _made_up(type_: Any, name: str) -> Any:
    if isinstance(type_, GraphQLNonNull):
        return _made_up(type_.of_type, name)
    if isinstance(type_, GraphQLList):
        item = type_.of_type.of_type if isinstance(type_.of_type, GraphQLNonNull) else type_.of_type
        if isinstance(item, GraphQLUnionType):
            return [{"__typename": member.name} for member in item.types]
        return [_made_up(item, name)]
    if isinstance(type_, GraphQLUnionType):
        return {"__typename": type_.types[0].name}
    if isinstance(type_, GraphQLObjectType):
        return {}
    if isinstance(type_, GraphQLEnumType):
        return next(iter(type_.values))
    return SCALARS.get(type_.name, INSTANT if name.endswith(("At", "Date")) or name == "timestamp" else name)

"""Stigg's GraphQL API in the local sidecar: requests are held to the schema, and answered by the engine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from hmac import compare_digest
from http import HTTPStatus
from importlib.resources import files
from threading import Lock
from typing import Any

from stigg_guard.errors import InvalidRequest, MissingExtra
from stigg_guard.runtime.log import logger
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.graph.inputs import GraphError
from stigg_guard.sidecar.graph.resolvers import Resolvers
from stigg_guard.sidecar.state import StateUnavailable

try:
    from graphql import (
        DocumentNode,
        GraphQLError,
        GraphQLNonNull,
        GraphQLResolveInfo,
        GraphQLSchema,
        build_schema,
        execute_sync,
        parse,
        validate,
    )
except ModuleNotFoundError as error:
    raise MissingExtra("sidecar", "The GraphQL API of the local sidecar") from error

MAX_TOKENS = 20_000
DOCUMENTS_KEPT = 100
"""How many requests, of those that came last, need not be read and checked again; clients repeat theirs."""

_READING = Lock()

# What the engine says of a field of a request, as the API's codes.
_CODES = {"customer_id": "CUSTOMER_NOT_FOUND", "feature_id": "FEATURE_NOT_FOUND"}


class Graph:
    """Answers GraphQL requests. With ``api_key`` only those that carry it."""

    def __init__(self, engine: Engine, api_key: str | None) -> None:
        self._resolvers = Resolvers(engine)
        self._api_key = api_key

    def answer(self, api_key: str | None, payload: Any) -> tuple[HTTPStatus, Mapping[str, Any]]:
        """The status and the JSON of the answer to a request's JSON."""
        if self._api_key is not None and not compare_digest((api_key or "").encode(), self._api_key.encode()):
            return HTTPStatus.UNAUTHORIZED, _failed("send X-API-KEY, the key of this server", "UNAUTHENTICATED")
        query, variables, name = (payload.get(key) for key in ("query", "variables", "operationName"))
        if not isinstance(query, str) or not isinstance(variables or {}, dict) or not isinstance(name or "", str):
            return HTTPStatus.BAD_REQUEST, _failed('send {"query": "…", "variables": {…}}', "BAD_USER_INPUT")
        try:
            document, faults = _validated(query)
        except GraphQLError as error:
            return HTTPStatus.BAD_REQUEST, _failed(str(error), "GRAPHQL_PARSE_FAILED")
        if faults:
            coded = {"extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}}
            return HTTPStatus.BAD_REQUEST, {"errors": [{**fault.formatted, **coded} for fault in faults]}
        done = execute_sync(
            _schema(),
            document,
            variable_values=variables,
            operation_name=name,
            field_resolver=self._resolve,
            type_resolver=lambda value, *_: value["__typename"],
        )
        errors = [_told(error) for error in done.errors or ()]
        return HTTPStatus.OK, {**({"errors": errors} if errors else {}), "data": done.data}

    def _resolve(self, source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        if source is None:
            return self._resolvers.resolve(info.field_name, arguments)
        if info.field_name in source:
            value = source[info.field_name]
            return value() if callable(value) else value
        if isinstance(info.return_type, GraphQLNonNull):
            raise GraphError("NOT_MODELLED", f"the local sidecar has no {info.parent_type}.{info.field_name}")
        return None


@cache
def _schema() -> GraphQLSchema:
    # As a path, since importing the client's package would import its client.
    text = files("stigg_guard").joinpath("api/stigg.graphql").read_text(encoding="utf-8")
    return build_schema(text, assume_valid=True)


def _validated(query: str) -> tuple[DocumentNode, list[GraphQLError]]:
    """The document, and what is wrong with it by the schema. Raises ``GraphQLError`` when it is none.

    One at a time: the first requests come together, and each would read the schema for itself.
    """
    with _READING:
        return _read(query)


@lru_cache(DOCUMENTS_KEPT)
def _read(query: str) -> tuple[DocumentNode, list[GraphQLError]]:
    document = parse(query, max_tokens=MAX_TOKENS)
    return document, validate(_schema(), document)


def _failed(message: str, code: str) -> Mapping[str, Any]:
    return {"errors": [{"message": message, "extensions": {"code": code}}]}


def _told(error: GraphQLError) -> Mapping[str, Any]:
    """The error with its code; of a fault of this library only that there was one."""
    cause = error.original_error
    if cause is None or isinstance(cause, GraphQLError):
        return {**error.formatted, "extensions": {"code": "BAD_USER_INPUT"}}
    if isinstance(cause, GraphError):
        return {**error.formatted, "extensions": {"code": cause.code}}
    if isinstance(cause, StateUnavailable):
        return {**error.formatted, "extensions": {"code": "SERVICE_UNAVAILABLE"}}
    if isinstance(cause, InvalidRequest):
        return {
            **error.formatted,
            "extensions": {"code": _CODES.get(cause.field.rpartition(".")[2], "VALIDATION_ERROR")},
        }
    logger.error("a GraphQL request failed", exc_info=cause)
    return {**error.formatted, "message": "the sidecar's log says why", "extensions": {"code": "INTERNAL_SERVER_ERROR"}}

"""Any client of the sidecar, made at run time from the contract's data alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "sidecar_v1.json").read_text())
PACKAGE: str = CONTRACT["package"]
SERVICE = f"{PACKAGE}.{CONTRACT['service']['name']}"
NOW = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
DEMO = "customer-demo-01"
NAN, INFINITY = float("nan"), float("inf")

SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
}


def contract_pool() -> DescriptorPool:
    """The contract as descriptors, in a pool of its own."""
    file = FileDescriptorProto(
        name=CONTRACT["file"], package=PACKAGE, syntax=CONTRACT["syntax"], dependency=CONTRACT["imports"]
    )
    for name, numbers in CONTRACT["enums"].items():
        enum = file.enum_type.add(name=name)
        for value, number in numbers.items():
            enum.value.add(name=value, number=number)
    for name, fields in CONTRACT["messages"].items():
        add_fields(file.message_type.add(name=name), fields)
    pool = DescriptorPool()
    for module in (empty_pb2, struct_pb2, timestamp_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return pool


def add_fields(message: DescriptorProto, fields: Sequence[dict[str, Any]]) -> None:
    oneofs = list(dict.fromkeys(field["oneof"] for field in fields if "oneof" in field))
    oneofs += [f"_{field['name']}" for field in fields if field.get("optional")]
    for oneof in oneofs:
        message.oneof_decl.add(name=oneof)
    for field in fields:
        described = message.field.add(name=field["name"], number=field["number"])
        described.label = FieldDescriptorProto.LABEL_OPTIONAL
        if field["type"].startswith("map<"):
            described.label = FieldDescriptorProto.LABEL_REPEATED
            set_type(described, add_map_entry(message, field))
            continue
        set_type(described, field["type"])
        if field.get("repeated"):
            described.label = FieldDescriptorProto.LABEL_REPEATED
        if field.get("optional"):
            described.proto3_optional = True
        if "oneof" in field or field.get("optional"):
            described.oneof_index = oneofs.index(field.get("oneof", f"_{field['name']}"))


def add_map_entry(message: DescriptorProto, field: dict[str, Any]) -> str:
    key_type, value_type = field["type"].removeprefix("map<").removesuffix(">").split(", ")
    entry = message.nested_type.add(name=f"{field['name'].title().replace('_', '')}Entry")
    entry.options.map_entry = True
    parts = ({"number": 1, "name": "key", "type": key_type}, {"number": 2, "name": "value", "type": value_type})
    add_fields(entry, parts)
    return f"{message.name}.{entry.name}"


def set_type(field: FieldDescriptorProto, name: str) -> None:
    if name in SCALARS:
        field.type = SCALARS[name]
        return
    field.type = FieldDescriptorProto.TYPE_ENUM if name in CONTRACT["enums"] else FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{name}" if name.startswith("google.") else f".{PACKAGE}.{name}"


class Client:
    """Calls by name; takes the request's fields and returns the response message."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.pool = contract_pool()
        self.methods = {method["name"]: method for method in CONTRACT["service"]["methods"]}

    def message(self, name: str) -> type[Message]:
        full_name = name if name.startswith("google.") else f"{PACKAGE}.{name}"
        return GetMessageClass(self.pool.FindMessageTypeByName(full_name))

    def __call__(self, method: str, *, key: str | None = None, **fields: Any) -> Any:
        request = self.message(self.methods[method]["request"])(**fields)
        return self.send(method, request.SerializeToString(), key)

    def send(self, method: str, request: bytes, key: str | None = None) -> Any:
        response = self.message(self.methods[method]["response"])
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}", request_serializer=None, response_deserializer=response.FromString
        )
        return call(request, timeout=20, metadata=(("idempotency-key", key),) if key else ())

    def templates_used(self) -> float:
        answer = self("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-templates")
        return float(answer.entitlement.current_usage)


def reason(name: str) -> int:
    return int(CONTRACT["enums"]["AccessDeniedReason"][f"ACCESS_DENIED_REASON_{name}"])


def refusal(client: Client, method: str, **fields: Any) -> str:
    """The text of the INVALID_ARGUMENT that the call is answered with."""
    with pytest.raises(grpc.RpcError) as refused:
        client(method, **fields)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(refused.value.details())


def report(value: float, **fields: Any) -> dict[str, Any]:
    return {"customer_id": DEMO, "feature_id": "feature-templates", "value": value, **fields}

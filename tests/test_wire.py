"""The wire code is the contract, number by number, and lives beside any other registration of the same file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto

from stigg_guard import wire
from stigg_guard.wire import METHODS, sidecar_pb2
from stigg_guard.wire.pool import POOL

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "sidecar_v1.json").read_text())
FILE = sidecar_pb2.DESCRIPTOR
WIRE = Path(wire.__file__).parent

SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
}


def short(full_name: str) -> str:
    return full_name.removeprefix(f"{CONTRACT['package']}.")


def type_name(field: FieldDescriptor) -> str:
    if field.enum_type:
        return short(field.enum_type.full_name)
    if not field.message_type:
        return SCALARS[field.type]
    if field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"map<{type_name(key)}, {type_name(value)}>"
    return short(field.message_type.full_name)


def facts(message: Descriptor) -> list[dict[str, Any]]:
    """The message in the contract's own notation."""
    proto = DescriptorProto()
    message.CopyToProto(proto)
    return [field_facts(message.fields_by_name[field.name], field) for field in proto.field]


def field_facts(field: FieldDescriptor, proto: FieldDescriptorProto) -> dict[str, Any]:
    name = type_name(field)
    repeated = proto.label == FieldDescriptorProto.LABEL_REPEATED and not name.startswith("map<")
    oneof = field.containing_oneof.name if field.containing_oneof and not proto.proto3_optional else ""
    flags = {"optional": proto.proto3_optional, "repeated": repeated, "deprecated": proto.options.deprecated}
    return {
        "number": field.number,
        "name": field.name,
        "type": name,
        **{flag: True for flag, is_set in flags.items() if is_set},
        **({"oneof": oneof} if oneof else {}),
    }


def test_file_package_and_imports_are_those_of_the_contract() -> None:
    assert FILE.name == CONTRACT["file"]
    assert FILE.package == CONTRACT["package"]
    assert [dependency.name for dependency in FILE.dependencies] == CONTRACT["imports"]
    assert f'syntax = "{CONTRACT["syntax"]}"' in (WIRE / "sidecar.proto").read_text()


def test_service_has_the_methods_of_the_contract() -> None:
    assert wire.SERVICE.full_name == f"{CONTRACT['package']}.{CONTRACT['service']['name']}"
    described = [
        {
            "name": method.name,
            "request": short(method.input_type.full_name),
            "response": short(method.output_type.full_name),
            "kind": "-".join("stream" if streams else "unary" for streams in streaming(method.name)),
        }
        for method in wire.SERVICE.methods
    ]
    assert described == CONTRACT["service"]["methods"]


def streaming(method: str) -> tuple[bool, bool]:
    descriptor = wire.SERVICE.methods_by_name[method]
    return descriptor.client_streaming, descriptor.server_streaming


def test_methods_carry_the_paths_and_classes_of_the_service() -> None:
    service = f"{CONTRACT['package']}.{CONTRACT['service']['name']}"
    assert {name: method.path for name, method in METHODS.items()} == {
        method["name"]: f"/{service}/{method['name']}" for method in CONTRACT["service"]["methods"]
    }
    assert METHODS["ReportUsage"].request is sidecar_pb2.ReportUsageRequest
    assert METHODS["ReportUsage"].response is sidecar_pb2.ReportUsageResponse


def test_messages_and_enums_are_all_those_of_the_contract_and_no_others() -> None:
    assert set(FILE.message_types_by_name) == set(CONTRACT["messages"])
    assert set(FILE.enum_types_by_name) == set(CONTRACT["enums"])


@pytest.mark.parametrize("name", CONTRACT["messages"])
def test_message_fields_are_those_of_the_contract(name: str) -> None:
    assert facts(FILE.message_types_by_name[name]) == CONTRACT["messages"][name]


@pytest.mark.parametrize("name", CONTRACT["enums"])
def test_enum_values_are_those_of_the_contract(name: str) -> None:
    proto = EnumDescriptorProto()
    FILE.enum_types_by_name[name].CopyToProto(proto)
    assert {value.name: value.number for value in proto.value} == CONTRACT["enums"][name]


def test_messages_live_in_our_own_pool() -> None:
    assert FILE.pool is POOL
    assert sidecar_pb2.Event.DESCRIPTOR.file.pool is POOL


def test_generated_code_is_up_to_date_with_the_proto_file(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="the lowest grpcio has no tools of its own here")
    source = tmp_path / CONTRACT["file"]
    source.parent.mkdir(parents=True)
    source.write_text((WIRE / "sidecar.proto").read_text())
    set_file = tmp_path / "set.pb"
    command = ["-m", "grpc_tools.protoc", "-I", str(tmp_path), f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    run(*command, f"--descriptor_set_out={set_file}", CONTRACT["file"])
    fresh = source.with_name("sidecar_pb2.py").read_text()
    assert serialized_file(fresh) == serialized_file((WIRE / "sidecar_pb2.py").read_text())
    stub = source.with_name("sidecar_pb2.pyi").read_text()
    assert without_timestamp_class(stub) == (WIRE / "sidecar_pb2.pyi").read_text()


def serialized_file(generated: str) -> str:
    found = re.search(r"AddSerializedFile\((b'.*')\)", generated)
    assert found
    return found[1]


def without_timestamp_class(stub: str) -> str:
    return stub.replace(
        "_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]", "_Union[datetime.datetime, _Mapping]"
    )


def run(*arguments: str, **environment: str) -> str:
    """Run a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], env=environment or None, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What the generated module of another library does when it is imported.
REGISTER_ANOTHER = f"""
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.internal import builder
other = descriptor_pb2.FileDescriptorProto(name={CONTRACT["file"]!r}, package={CONTRACT["package"]!r}, syntax="proto3")
other.message_type.add(name="Event").field.add(name="something_else", number=1, type=9, label=1)
module = {{}}
descriptor = descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
builder.BuildTopDescriptorsAndMessages(descriptor, "other_pb2", module)
Other = module["Event"]
"""

USE_OURS = "from stigg_guard.wire.sidecar_pb2 import Event\n"

BOTH_WORK = """
assert Event.FromString(Event(customer_id="customer-demo-01").SerializeToString()).customer_id == "customer-demo-01"
assert Other(something_else="x").something_else == "x"
print("both work")
"""


@pytest.mark.parametrize(
    ("script", "implementation"),
    [
        pytest.param(REGISTER_ANOTHER + USE_OURS, "upb", id="before-upb"),
        pytest.param(USE_OURS + REGISTER_ANOTHER, "upb", id="after-upb"),
        pytest.param(REGISTER_ANOTHER + USE_OURS, "python", id="before-python"),
        pytest.param(
            USE_OURS + REGISTER_ANOTHER,
            "python",
            id="after-python",
            marks=pytest.mark.xfail(
                strict=True, reason="pure-Python protobuf also keeps our classes by name in the default pool"
            ),
        ),
    ],
)
def test_another_file_of_the_same_name_in_the_default_pool_does_no_harm(script: str, implementation: str) -> None:
    printed = run("-c", script + BOTH_WORK, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=implementation)
    assert printed == "both work\n"


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_wire_accepts_a_datetime_with_each_protobuf_implementation(implementation: str) -> None:
    script = """
from datetime import datetime, timezone
from google.protobuf.internal import api_implementation
from stigg_guard.wire.sidecar_pb2 import Event
event = Event.FromString(Event(timestamp=datetime(2026, 1, 2, tzinfo=timezone.utc)).SerializeToString())
print(api_implementation.Type(), event.timestamp.ToJsonString())
"""
    printed = run("-c", script, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=implementation)
    assert printed == f"{implementation} 2026-01-02T00:00:00Z\n"

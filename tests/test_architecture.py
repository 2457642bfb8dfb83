"""The rooms of the package and the direction of their imports; what importing the package does, and what it offers."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

import stigg_guard
from stigg_guard.wire import METHODS, sidecar_pb2

PACKAGE = Path(stigg_guard.__file__).parent

MANUAL = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
STEP = {
    room: int(number)
    for number, rooms in re.findall(r"^(\d+)\. ((?:`[\w/]+` ?)+)$", MANUAL, re.MULTILINE)
    for room in re.findall(r"`([\w/]+)`", rooms)
}
WINGS = {"cache", "checks", "cloud", "usage", "web", "cli", "runtime", "settings"}
STARTS_A_SIDECAR = {
    "client",
    "testing",
    "__main__",
    "django/management/commands/stigg_sidecar.py",
    "flask/cli.py",
}
READS_CATALOGS = {"cli/features", "web/names"}
FOREIGN = {
    "grpc": {"channel", "sidecar"},
    "grpc_health": {"sidecar"},
    "grpc_reflection": {"sidecar"},
    "prometheus_client": {"cache/service", "cache/sqs", "sidecar", "metrics"},
    "boto3": {"cache/sqs"},
    "botocore": {"cache/sqs"},
    "openfeature": {"openfeature"},
    "opentelemetry": {"otel"},
    "django": {"django"},
    "flask": {"flask"},
    "rest_framework": {"django"},
    "drf_spectacular": {"django"},
    "debug_toolbar": {"django"},
    "sqlalchemy": {"flask"},
    "werkzeug": {"flask"},
    "jinja2": {"django", "flask"},
    "redis": {"settings/redis_homes", "ledger", "cache/redis", "sidecar"},
    "requests": {"api"},
    "urllib3": {"api"},
    "graphql": {"api", "sidecar"},
    "cachetools": {"cache/ttl_cache"},
    "sqlite3": {"ledger", "sidecar"},
}


def room_of(parts: Sequence[str]) -> str:
    """The room of a module, by the parts of its path or name: a file of a wing, or else what is in the root."""
    first, *others = (part.removesuffix(".py") for part in parts)
    return f"{first}/{others[0]}" if first in WINGS and others else first


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports when it runs, wherever in the file it does so."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


DOORS = {PACKAGE / "__init__.py", *(PACKAGE / wing / "__init__.py" for wing in WINGS)}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path not in DOORS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_staircase(path: Path) -> None:
    room = room_of(path.relative_to(PACKAGE).parts)
    assert room in STEP, f"{room} has no place on the staircase"
    for name in imported(path):
        top, *rest = name.split(".")
        if top != "stigg_guard":
            assert room in FOREIGN.get(top, {room}), f"{room} imports {top}"
            continue
        seen = room_of(rest)
        assert seen in STEP, f"{room} imports {name} from the root, which is for users"
        assert seen == room or STEP[seen] < STEP[room], f"{room} imports {seen}, which stands on it or beside it"
        knows_sidecar = {room, str(path.relative_to(PACKAGE))} & (STARTS_A_SIDECAR | READS_CATALOGS | {"sidecar"})
        assert seen != "sidecar" or knows_sidecar, f"{path} imports the sidecar"


def test_the_staircase_is_of_the_rooms_that_there_are() -> None:
    assert STEP.keys() == {room_of(path.relative_to(PACKAGE).parts) for path in SOURCES}


@pytest.mark.parametrize("wing", sorted(WINGS))
def test_a_wing_has_no_door_of_its_own(wing: str) -> None:
    assert not list(imported(PACKAGE / wing / "__init__.py"))


def fresh(code: str) -> list[str]:
    """What the code prints as JSON in an interpreter that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    printed: list[str] = json.loads(done.stdout)
    return printed


def test_import_loads_no_framework_no_server_and_no_local_sidecar() -> None:
    modules = fresh("import stigg_guard, sys, json; print(json.dumps(sorted(sys.modules)))")
    frameworks = ("django", "flask", "werkzeug", "jinja2", "redis", "requests", "graphql", "stigg_guard.api")
    servers = ("prometheus_client", "grpc_health.v1", "grpc_reflection.v1alpha", "http.server", "stigg_guard.sidecar")
    assert "stigg_guard.guard" in modules
    assert not [name for name in modules if f"{name}.".startswith(tuple(f"{one}." for one in frameworks + servers))]


def test_import_and_a_guard_start_no_thread_and_open_nothing() -> None:
    watched = """
import json, sys, threading
events = []
sys.addaudithook(lambda event, _: events.append(event))
import stigg_guard
guard = stigg_guard.Guard(stigg_guard.Config(ledger="sqlite:///never.db"))
started = {"socket.__new__", "socket.connect", "socket.bind", "sqlite3.connect", "subprocess.Popen", "os.fork"}
print(json.dumps([*(event for event in events if event in started), *(t.name for t in threading.enumerate())]))
"""
    assert fresh(watched) == ["MainThread"]


def test_all_names_what_can_be_imported_and_nothing_else() -> None:
    own = {name for name, value in vars(stigg_guard).items() if not name.startswith("_") and name != "annotations"}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert own - modules == set(stigg_guard.__all__)
    assert stigg_guard.__all__ == sorted(stigg_guard.__all__, key=lambda name: (not name.isupper(), name))


def test_all_has_every_request_response_and_enum_of_the_wire() -> None:
    contract = {method.request.DESCRIPTOR.name for method in METHODS.values()}
    contract |= {method.response.DESCRIPTOR.name for method in METHODS.values()}
    contract |= {enum.name for enum in sidecar_pb2.DESCRIPTOR.enum_types_by_name.values()}
    assert contract - {"Empty"} <= set(stigg_guard.__all__)


def test_all_has_every_message_that_goes_into_a_request() -> None:
    def parts(message: Descriptor) -> Iterator[str]:
        yield message.name
        for field in message.fields:
            own = field.message_type
            if own is not None and own.file is sidecar_pb2.DESCRIPTOR and not own.GetOptions().map_entry:
                yield from parts(own)
            elif own is not None and own.GetOptions().map_entry:
                value = own.fields_by_name["value"].message_type
                yield from parts(value) if value is not None else ()

    for method in METHODS.values():
        assert set(parts(method.request.DESCRIPTOR)) <= set(stigg_guard.__all__)


def test_every_public_object_says_what_it_is() -> None:
    for name in stigg_guard.__all__:
        value = getattr(stigg_guard, name)
        if getattr(value, "__module__", "").startswith("stigg_guard") and not hasattr(value, "DESCRIPTOR"):
            assert value.__doc__, name

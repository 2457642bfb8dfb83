"""The text of each operation, put together from ``operations.json``: what the official clients ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: ``field`` is asked for with ``arguments`` and answered under ``key``. ``variables`` are by name
    their GraphQL types; ``view`` is the name of what is selected, None when the answer has no fields."""

    name: str
    kind: str
    field: str
    key: str
    arguments: Mapping[str, str]
    variables: Mapping[str, str]
    view: str | None

    @property
    def changes(self) -> bool:
        """Whether it may change anything: estimates and previews are mutations by name only."""
        return self.kind == "mutation" and not self.name.startswith(("Estimate", "Preview"))

    def document(self, fields: str | None = None) -> str:
        """The text to send; ``fields`` is selected instead of what the official clients select."""
        declared = ", ".join(f"${name}: {type_}" for name, type_ in self.variables.items())
        arguments = ", ".join(f"{argument}: {value}" for argument, value in self.arguments.items())
        root = f"{self.key}: {self.field}" if self.key != self.field else self.field
        selected = fields if fields is not None else f"...{self.view}" if self.view is not None else ""
        operation = (
            f"{self.kind} {self.name}{_in('()', declared)} {{ {root}{_in('()', arguments)}{_in('{}', selected)} }}"
        )
        views = _reached(self.view) if fields is None and self.view is not None else ()
        return "\n".join((operation, *map(_fragment, views)))


@cache
def operations() -> Mapping[str, Operation]:
    """All operations by name."""
    return {name: _operation(name, facts) for name, facts in _data()["operations"].items()}


@cache
def official_document(name: str) -> str:
    """The text of an operation, with what the official clients select."""
    return operations()[name].document()


@cache
def _data() -> Mapping[str, Any]:
    text = files(__package__).joinpath("operations.json").read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data


def _operation(name: str, facts: Mapping[str, Any]) -> Operation:
    field = facts["field"]
    return Operation(
        name=name,
        kind=facts["kind"],
        field=field,
        key=facts.get("alias", field),
        arguments=facts["arguments"],
        variables=facts["variables"],
        view=facts.get("view"),
    )


def _in(brackets: str, text: str) -> str:
    """The text in brackets; nothing when there is none."""
    return f"{brackets[0]}{text}{brackets[1]}" if text else ""


def _reached(view: str) -> Iterator[str]:
    """A view and all those inside it, each once."""
    found: dict[str, None] = {}
    todo = [view]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = None
            todo += _data()["views"][name].get("objects", {}).values()
    return iter(found)


def _fragment(name: str) -> str:
    """A view as a fragment. Unions say which member it is."""
    view = _data()["views"][name]
    objects = view.get("objects", {})
    leaves = view.get("fields", "").replace(":", ": ")
    is_union = any(key.startswith("... on ") for key in objects) and "__typename" not in leaves
    parts = [
        f"...{inner}" if key.startswith("... on ") else f"{key} {{ ...{inner} }}" for key, inner in objects.items()
    ]
    selected = " ".join((["__typename"] if is_union else []) + [leaves] * bool(leaves) + parts)
    return f"fragment {name} on {view['type']} {{ {selected} }}"

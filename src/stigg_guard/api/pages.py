"""Walks through the pages of an answer, by their cursors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from stigg_guard.api.generated.inputs import CursorPaging
from stigg_guard.api.record import NOT_GIVEN, Input, to_wire
from stigg_guard.errors import ApiUnreadable

AnyInput = TypeVar("AnyInput", bound=Input)


def nodes(page_after: Callable[[str | None], Any]) -> Iterator[Any]:
    """All nodes of a connection, page after page; ``page_after`` asks for the one after a cursor, or for the first.

    Raises:
        ApiUnreadable: a cursor leads back to a page that was there already.
    """
    seen: set[str] = set()
    cursor: str | None = None
    while True:
        page = page_after(cursor)
        yield from (edge.node for edge in page.edges)
        cursor = page.page_info.end_cursor
        if not page.page_info.has_next_page or cursor is None:
            return
        if cursor in seen:
            raise ApiUnreadable("the pages of the answer repeat: a cursor leads back to one that was there already")
        seen.add(cursor)


def paging_after(paging: Any, cursor: str | None) -> Any:
    """The paging of the page after the cursor; for the first it is as it was given."""
    if cursor is None:
        return paging
    given = to_wire("CursorPaging!", {} if paging is None or paging is NOT_GIVEN else paging, "paging")
    return CursorPaging.from_wire({**given, "after": cursor})


def inputs_after(kind: type[AnyInput], given: Any) -> Callable[[str | None], AnyInput]:
    """Makes the input of the page after a cursor, from one that has ``paging``.

    Raises:
        TypeError: what is given is no such input.
    """
    wire = to_wire(f"{kind.__name__}!", given, "input")

    def after(cursor: str | None) -> AnyInput:
        paging = paging_after(wire.get("paging"), cursor)
        return kind.from_wire(wire if cursor is None else {**wire, "paging": paging.to_dict()})

    return after

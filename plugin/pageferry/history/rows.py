"""A row of the history's file → a record; one that is not as we write them is damaged, and costs no other.

SQLite takes any type in any column, and the file may be anybody's by now: each cell is checked, and what is in a cell
of JSON as well, as far as those who show it rely on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Annotated, Any, TypedDict, TypeVar

import msgspec
from msgspec import Meta

from pageferry.kernel.files import shown

MOST_CHARACTERS = 65536
"""No cell that we wrote is longer."""

_MOST_DEPTH = 16
_JSON = frozenset({"pages", "details", "moments", "ledger"})

Row = TypeVar("Row")
_Count = Annotated[int, Meta(ge=0)]
_Flow = tuple[int, int, str, _Count]


class _Details(TypedDict, total=False):
    request: str
    name: str
    rule: str
    excluded: dict[str, int]


class _Part(TypedDict):
    what: str
    flows: list[_Flow]


class _Rest(TypedDict):
    backings: int
    flows: list[_Flow]


class _Ledger(TypedDict):
    page_bytes: Annotated[int, Meta(gt=0)]
    backings: list[_Part]
    rest: _Rest | None


def record(kind: type[Row], cells: Iterable[Any]) -> Row:
    """Return the record that a row holds, its cells in the order of the fields. Raises ValueError for a damaged one."""
    row = {column.name: cell for column, cell in zip(fields(kind), cells, strict=True)}  # type: ignore[arg-type]
    try:
        if any(isinstance(cell, str) and len(cell) > MOST_CHARACTERS for cell in row.values()):
            raise ValueError("a cell is too long")
        row |= {name: json.loads(row[name]) for name in _JSON & row.keys()}
        if not _is_plain(list(row.values())):
            raise ValueError("a number that has no end, or tables nested too deeply")
        msgspec.convert(row.get("details", {}), _Details)
        if "backings" in row.get("ledger", {}):
            msgspec.convert(row["ledger"], _Ledger)
        return msgspec.convert(_encodable(row), kind)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(shown(str(error))) from error


def _encodable(value: Any) -> Any:
    r"""Return a cell with each byte of others that is no UTF-8 as \xNN: a request may have held some."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if isinstance(value, list):
        return [_encodable(part) for part in value]
    if isinstance(value, dict):
        return {_encodable(name): _encodable(part) for name, part in value.items()}
    return value


def _is_plain(values: Sequence[Any]) -> bool:
    """Say whether all numbers are finite, and tables and lists no deeper than ours."""
    for _ in range(_MOST_DEPTH):
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            return False
        values = [
            part
            for value in values
            if isinstance(value, list | dict)
            for part in (value if isinstance(value, list) else value.values())
        ]
    return not values

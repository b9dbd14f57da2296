"""What must hold of the history's file when others have written in it: a damaged row is left out, the rest is shown."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pageferry import wire
from pageferry.cli import tables
from pageferry.history.store import Event, Migration, Store
from pageferry.page.view import view
from support.history_rows import row as history_row

ROW = history_row()
MIGRATION = Migration(**{name: value for name, value in ROW.items() if name not in {"requests_saved", "id"}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "history.sqlite3", clock=lambda: ROW["began"])
    for _ in range(3):
        assert store.record_migration(MIGRATION)
        store.record_event(7, 0, "hold", "text")
    yield store
    store.close()


def spoil(store: Store, table: str, column: str, value: object) -> None:
    """Put a value into a column of the second row of a table."""
    other = sqlite3.connect(store.path)
    with other:
        other.execute(f"UPDATE {table} SET {column} = ? WHERE id = 2", (value,))
    other.close()


def shown(store: Store) -> list[int]:
    """Show all that is read, in each way that there is; return the migrations."""
    found = store.migrations()
    told = [asdict(one) | {"requests_saved": one.requests_saved} for one in found]
    told = wire.decoded(wire.encoded({"migrations": told})[:-1])["migrations"]
    console = Console(width=200, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(tables.history_table(told))
    console.print(tables.history_blocks(told))
    console.file.close()
    for one in told:
        view(one)
    return [one.id for one in found]


DEEP = "[" * 5000 + "]" * 5000
WRONG_JSON = [
    "",
    "{",
    "[]",
    "1",
    "null",
    "NaN",
    '{"a": NaN}',
    '{"a": 1e999}',
    '"x"',
    DEEP,
    '{"a":' * 3000 + "1" + "}" * 3000,
]
WRONG_JSON += [
    '{"a": ' + "[" * 100 + "]" * 100 + "}",
    '{"moved": "many"}',
    '{"moved": [1]}',
    '{"moved": null}',
    '{"moved": 1.5}',
]
LEDGER = json.dumps(ROW["ledger"])
WRONG_LEDGERS = [
    LEDGER.replace('"moved"', "7"),
    LEDGER.replace("260000", '"260000"'),
    LEDGER.replace("260000", "null"),
    LEDGER.replace("260000", "-1"),
    LEDGER.replace('"page_bytes"', '"bytes"'),
    LEDGER.replace('"rest"', '"others"'),
    LEDGER.replace('"private memory"', "[1]"),
    LEDGER.replace("[0, 2,", "[0,"),
    '{"backings": []}',
    '{"backings": {}, "page_bytes": 4096, "rest": null}',
    '{"backings": [[]], "page_bytes": 4096, "rest": null}',
]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("pages", text) for text in WRONG_JSON),
        *(("moments", text) for text in WRONG_JSON if "1.5" not in text),
        *(("details", text) for text in WRONG_JSON if "moved" not in text),
        *(("ledger", text) for text in [*(text for text in WRONG_JSON if "moved" not in text), *WRONG_LEDGERS]),
        *(("details", f'{{"excluded": {value}}}') for value in ("[]", "1", '{"a": "b"}', '{"a": []}', "null")),
        *(("details", f'{{"{key}": {value}}}') for key in ("request", "name", "rule") for value in ("1", "[]", "null")),
        *((column, b"\xff") for column in ROW if column not in {"id", "requests_saved"}),
        *((column, "many") for column in ("uid", "began", "seconds", "seconds_stopped", "requested", "calls", "bytes")),
        *((column, 1.5) for column in ("uid", "requested", "calls", "bytes", "asked_per_process")),
        *((column, float("inf")) for column in ("began", "seconds", "seconds_stopped")),
        *((column, "x" * 100_000) for column in ("host", "event", "error")),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_damaged_migration_is_left_out_and_the_others_are_shown(
    store: Store, caplog: pytest.LogCaptureFixture, column: str, value: Any
) -> None:
    spoil(store, "migrations", column, value)
    assert shown(store) == [3, 1]
    assert store.fault
    assert store.fault.isprintable()
    assert len(store.fault) < 200
    assert shown(store) == [3, 1]
    assert len([said for said in caplog.records if "row 2 of migrations" in said.getMessage()]) == 1
    assert store.record_migration(MIGRATION) == 4, "the file is written on"
    assert len(store.events()) == 3


@pytest.mark.parametrize("column", ["host", "event", "error", "nodes_to"])
def test_text_that_is_not_utf8_costs_nothing(store: Store, column: str) -> None:
    other = sqlite3.connect(store.path)
    with other:
        other.execute(f"UPDATE migrations SET {column} = CAST(x'61ff0a00ed' AS TEXT) WHERE id = 2")
    other.close()
    assert shown(store) == [3, 2, 1]


@pytest.mark.parametrize(
    ("column", "value"),
    [("text", b"x"), ("kind", b"\xff"), ("began", "now"), ("began", float("inf")), ("uid", "x"), ("job", b"7")],
)
def test_a_damaged_event_is_left_out_and_the_others_are_shown(store: Store, column: str, value: object) -> None:
    spoil(store, "events", column, value)
    assert [event.id for event in store.events()] == [3, 1]
    assert all(isinstance(event, Event) for event in store.events())
    assert shown(store) == [3, 2, 1]


def test_rows_as_they_are_written_are_all_whole(store: Store) -> None:
    store.record_migration(
        Migration("12.server", 1, "h", "e", "", 0.0, 0, 0, "", "", "failed", ledger={"dropped_characters": 9})
    )
    assert shown(store) == [4, 3, 2, 1]
    assert store.fault is None


def test_a_request_that_held_bytes_that_are_no_utf8_is_shown_with_these_escaped(store: Store) -> None:
    details = {"request": "pageferry:nodes=\udcff é", "name": "x"}
    number = store.record_migration(Migration(7, 1, "h", "e", "", 0.0, 0, 0, "", "", "failed", details=details))
    (row,) = (row for row in store.migrations() if row.id == number)
    assert row.details["request"] == "pageferry:nodes=\\xff é"
    assert store.fault is None


def test_a_damaged_row_is_no_fault_of_what_is_written(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    spoil(store, "migrations", "began", "now")
    assert shown(store) == [3, 1]
    caplog.clear()
    store.record_migration(MIGRATION)
    assert caplog.records == []
    assert store.fault

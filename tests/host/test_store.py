"""What must hold of the history: whatever becomes of its file, nothing is raised, and what was written is kept."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pageferry.history.store import Migration, Store
from support.children import python, said

MIGRATION = Migration(
    job=7,
    uid=1000,
    host="n1",
    event="suspended",
    rule="AdminComment",
    began=1e9,
    seconds=1.5,
    seconds_stopped=0.25,
    nodes_from="0-1",
    nodes_to="2,3",
    outcome="done",
    pages={"moved": 5, "in_place": 2},
    requested=5,
    calls=1,
    bytes=20480,
    details={"strategy": "relative"},
    asked_per_process=45,
    moments={"held": 1e9},
    ledger={"page_bytes": 4096, "backings": [{"what": "private memory", "flows": [[0, 2, "moved", 5]]}], "rest": None},
)
FIRST_VERSION = """
    CREATE TABLE migrations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job INTEGER NOT NULL, uid INTEGER NOT NULL, host TEXT NOT NULL, event TEXT NOT NULL,
        rule TEXT NOT NULL, began REAL NOT NULL, seconds REAL NOT NULL, seconds_stopped REAL NOT NULL,
        nodes_from TEXT NOT NULL, nodes_to TEXT NOT NULL, outcome TEXT NOT NULL, pages TEXT NOT NULL,
        requested INTEGER NOT NULL, calls INTEGER NOT NULL, bytes INTEGER NOT NULL, error TEXT NOT NULL,
        details TEXT NOT NULL);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        began REAL NOT NULL, job INTEGER NOT NULL, uid INTEGER NOT NULL, kind TEXT NOT NULL,
        text TEXT NOT NULL);
    CREATE INDEX migrations_job ON migrations (job);
    CREATE INDEX migrations_uid ON migrations (uid);
    CREATE INDEX events_job ON events (job);
    CREATE INDEX events_uid ON events (uid);
    INSERT INTO migrations VALUES (NULL, 7, 1000, 'n1', 'suspended', 'AdminComment', 1e9, 1.5, 0.25, '0-1', '2,3',
        'done', '{"moved": 5, "in_place": 2}', 5, 1, 20480, '', '{"strategy": "relative"}');
    INSERT INTO events VALUES (NULL, 1e9, 7, 1000, 'held', 'text');
    PRAGMA user_version = 1;
"""
"""As the first version that kept a history left it; not to be changed with the code."""
WRITER = """
import sys
from pathlib import Path
from pageferry.history.store import Store
store, number = Store(Path({path!r})), 0
while True:
    number += 1
    store.record_event(number, 0, "hold", "text")
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with_clock_at_rest = Store(path, clock=lambda: 1e9)
    yield with_clock_at_rest
    with_clock_at_rest.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    return ballast


def write_until_lost(store: Store) -> None:
    for number in range(10_000):
        store.record_event(number, 0, "hold", "x" * 1000)
        if store.lost:
            return
    raise AssertionError("the disk is never full")


def aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("history.sqlite3.damaged-*[0-9]"))


def test_what_was_recorded_is_read_newest_first(store: Store) -> None:
    store.record_migration(MIGRATION)
    store.record_migration(replace(MIGRATION, job=8, uid=1001, error="node 2 is full"))
    assert store.migrations() == [
        replace(MIGRATION, job=8, uid=1001, error="node 2 is full", id=2),
        replace(MIGRATION, id=1),
    ]
    assert [found.id for found in store.migrations(limit=1)] == [2]
    assert store.migrations(limit=-1) == []
    assert [found.job for found in store.migrations(job=7)] == [7]
    assert [found.job for found in store.migrations(user=1001)] == [8]
    assert store.migrations(job=7, user=1001) == []
    assert store.lost == 0
    assert store.fault is None


def test_pbs_knows_its_jobs_by_texts_and_slurm_by_numbers(store: Store) -> None:
    for job in (12, "12.srv", "7[3].srv"):
        store.record_migration(replace(MIGRATION, job=job))
        store.record_event(job, 0, "held", "")
    for asked, job in ((12, 12), ("12", 12), ("12.srv", "12.srv"), ("7[3].srv", "7[3].srv")):
        assert [row.job for row in store.migrations(asked)] == [job]
        assert [row.job for row in store.events(asked)] == [job]


@pytest.mark.parametrize("job", ["12.e5", "12.0", "1.1e400", "12.5", "12.50", "7", "0.0", "12.srv"])
def test_an_id_of_pbs_that_looks_like_a_number_is_kept_as_it_is(store: Store, job: str) -> None:
    for other in (1200000, 12, 7):
        store.record_migration(replace(MIGRATION, job=other))
        store.record_event(other, 0, "held", "")
    number = store.record_migration(replace(MIGRATION, job=job))
    store.record_event(job, 0, "released", "")
    assert [str(row.job) for row in store.migrations(number=number)] == [job]
    assert [str(row.job) for row in store.events(limit=1)] == [job]
    if not job.isdigit():
        assert [(row.job, row.id) for row in store.migrations(job)] == [(job, number)]
        assert [row.kind for row in store.events(job)] == ["released"]
        for other in (1200000, 12, 7):
            assert [row.job for row in store.migrations(other)] == [other]
    assert store.migrations("") == []


def test_rows_of_before_in_which_an_id_of_pbs_became_a_number_are_mended_where_it_can_be_told(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as old:
        old.executescript(FIRST_VERSION)
        row = "NULL, ?, 0, 'n1', ?, '', 1e9, 1, 0, '0', '1', 'done', '{}', 5, 1, 20480, '', '{}'"
        for job in ("12.srv", "7[3].srv", "12.5", "12.e5", "12.0", "1.1e400"):
            old.execute(f"INSERT INTO migrations VALUES ({row})", (job, "execjob_preresume"))
            old.execute("INSERT INTO events VALUES (NULL, 1e9, ?, -1, 'held', '')", (job,))
        old.execute(f"INSERT INTO migrations VALUES ({row})", (1200000, "suspend"))
        old.commit()
    store = Store(path, clock=lambda: 1e9)
    jobs = [row.job for row in reversed(store.migrations())]
    assert jobs == [7, "12.srv", "7[3].srv", "12.5", "1200000.?", "12.?", "Inf.?", 1200000]
    assert [row.job for row in store.migrations(1200000)] == [1200000]
    assert [row.job for row in store.migrations("12.srv")] == ["12.srv"]
    # Nothing says of an event whose it is; a whole number may be Slurm's.
    assert [row.job for row in reversed(store.events())] == [7, "12.srv", "7[3].srv", "12.5", 1200000, 12, "Inf.?"]
    assert store.fault is None
    assert aside(path) == []
    store.close()


def test_events_are_kept_with_their_time(store: Store) -> None:
    store.record_event(7, 1000, "hold", "held by the agent")
    (event,) = store.events(job=7)
    assert (event.began, event.kind, event.text, event.uid) == (1e9, "hold", "held by the agent", 1000)


def test_the_history_is_its_owners_alone(store: Store, path: Path) -> None:
    old = os.umask(0)
    try:
        store.record_migration(MIGRATION)
    finally:
        os.umask(old)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
        "history.sqlite3": 0o600,
        "history.sqlite3-wal": 0o600,
        "history.sqlite3-shm": 0o600,
    }


def test_hostile_text_is_kept_printable_and_bounded(store: Store) -> None:
    store.record_event(7, 0, "hold", "a\x1b[2J\n\udcff\ud800'; DROP TABLE events; --" + "x" * 100_000)
    (event,) = store.events()
    assert event.text.startswith(r"a\x1b[2J\n")
    assert event.text.isprintable()
    assert "'; DROP TABLE events; --" in event.text
    assert len(event.text) < 10_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"bytes": 1 << 64},
        {"details": {"x": object()}},
        {"details": {"x": float("nan")}},
        {"host": None},
        {"host": object()},
        {"seconds": float("nan")},  # SQLite makes it NULL, which the table refuses
    ],
    ids=str,
)
def test_a_record_that_cannot_be_kept_is_counted_and_the_next_is_kept(store: Store, wrong: dict[str, Any]) -> None:
    store.record_migration(MIGRATION)
    store.record_migration(replace(MIGRATION, **wrong))
    assert store.lost == 1
    assert store.fault
    store.record_migration(replace(MIGRATION, job=9))
    assert [found.job for found in store.migrations()] == [9, 7]
    assert store.fault is None


def test_details_without_end_are_left_out(store: Store) -> None:
    store.record_migration(replace(MIGRATION, details={"x": "y" * 1_000_000}))
    assert store.migrations()[0].details == {"dropped_characters": 1_000_009}


def test_old_records_and_too_many_are_dropped_and_ids_are_not_given_again(path: Path) -> None:
    now = 100 * 86400.0
    store = Store(path, max_rows=300, max_days=10, clock=lambda: now)
    store.record_migration(replace(MIGRATION, began=now - 11 * 86400))
    assert store.migrations() == []
    store.record_migration(replace(MIGRATION, began=now - 9 * 86400))
    assert [found.id for found in store.migrations()] == [2]
    for _ in range(1000):
        store.record_event(1, 0, "hold", "")
    assert 300 <= len(store.events(limit=10_000)) < 300 + 256
    assert store.lost == 0
    store.close()


def test_a_restarted_agent_finds_what_the_last_one_wrote(path: Path) -> None:
    for job in (1, 2):
        store = Store(path, clock=lambda: 1e9)
        store.record_migration(replace(MIGRATION, job=job))
        store.close()
    assert [found.job for found in store.migrations()] == [2, 1]
    store.close()


def test_what_a_killed_writer_had_written_is_there(path: Path) -> None:
    with python(WRITER.format(path=str(path))) as process:
        number = 0
        while number < 300:  # past the first time that old records are looked for
            number = said(process)
        process.kill()
        process.wait()
    store = Store(path)
    found = [event.job for event in store.events(limit=100_000)]
    store.record_event(0, 0, "agent started", "")
    assert store.lost == 0
    store.close()
    assert found == list(range(len(found), 0, -1))
    assert len(found) >= number
    assert aside(path) == []


def test_a_reader_neither_stops_the_writer_nor_sees_half(store: Store, path: Path) -> None:
    store.record_migration(MIGRATION)
    with sqlite3.connect(path) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM migrations").fetchone() == (1,)
        for _ in range(1100):  # past the first time that the log is written back
            store.record_migration(MIGRATION)
        assert reader.execute("SELECT count(*) FROM migrations").fetchone() == (1,)
    assert reader.execute("SELECT count(*) FROM migrations").fetchone() == (1101,)
    reader.close()
    assert store.lost == 0


def test_another_writer_costs_a_record_and_no_more_than_a_moment(store: Store, path: Path) -> None:
    store.record_migration(MIGRATION)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    store.record_migration(MIGRATION)
    assert time.monotonic() - began < 5
    assert store.lost == 1
    other.execute("ROLLBACK")
    other.close()
    store.record_migration(MIGRATION)
    assert len(store.migrations()) == 2


@pytest.mark.parametrize("garbage", [b"not a database at all" * 500, b"\0" * 8192, os.urandom(8192)], ids=[*"abc"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(store: Store, path: Path, garbage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(garbage)
    store.record_migration(MIGRATION)
    assert [found.job for found in store.migrations()] == [7]
    assert [file.read_bytes() for file in aside(path)] == [garbage]
    assert store.lost == 0


def test_a_file_that_is_damaged_while_it_is_open_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(path, clock=lambda: 1e9)
    for _ in range(200):
        store.record_migration(MIGRATION)
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with caplog.at_level(logging.ERROR):
        store.record_migration(replace(MIGRATION, job=8))
    assert [found.job for found in store.migrations()] == [8]
    assert len(aside(path)) == 1
    assert [record.message for record in caplog.records if "set aside as" in record.message]
    store.close()


def test_a_database_of_another_program_or_version_is_set_aside(store: Store, path: Path) -> None:
    path.parent.mkdir()
    for statement in ("CREATE TABLE migrations (song TEXT)", "PRAGMA user_version = 99"):
        other = sqlite3.connect(path)
        other.execute(statement)
        other.commit()
        other.close()
        store.record_migration(MIGRATION)
        assert len(store.migrations()) == 1
        store.close()
        path.unlink()
    assert store.lost == 0
    assert aside(path)


def test_few_damaged_files_are_kept(store: Store, path: Path) -> None:
    path.parent.mkdir()
    for second in range(9):
        (path.parent / f"history.sqlite3.damaged-20200101T00000{second}").touch()
    path.write_bytes(b"garbage" * 1000)
    store.record_migration(MIGRATION)
    assert [file.name[-2:] for file in aside(path)][:2] == ["07", "08"]
    assert len(aside(path)) == 3


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_was_removed_under_the_agent_is_begun_anew(store: Store, path: Path, what: str) -> None:
    store.record_migration(MIGRATION)
    path.unlink()
    if what == "folder":
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
    store.record_migration(replace(MIGRATION, job=8))
    assert [found.job for found in store.migrations()] == [8]
    assert store.lost == 0


def test_a_full_disk_costs_records_is_said_once_and_is_over_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(small_disk / "history.sqlite3", clock=lambda: 1e9)
    store.record_migration(MIGRATION)
    ballast = fill(small_disk)
    write_until_lost(store)
    for _ in range(20):
        store.record_migration(MIGRATION)
    lost = store.lost
    assert lost >= 20
    assert "full" in str(store.fault)
    assert len(store.migrations()) == 1, "what was written before can still be read"
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    ballast.unlink()
    store.record_migration(replace(MIGRATION, job=8))
    assert [found.job for found in store.migrations()] == [8, 7]
    assert store.lost == lost
    assert store.fault is None
    assert f"{lost} records lost" in caplog.records[-1].message
    store.close()


def test_a_disk_that_is_full_from_the_start_is_no_error_either(small_disk: Path) -> None:
    ballast = fill(small_disk)
    store = Store(small_disk / "history.sqlite3", clock=lambda: 1e9)
    for _ in range(3):
        store.record_migration(MIGRATION)
    assert store.lost == 3
    assert store.migrations() == []
    ballast.unlink()
    store.record_migration(MIGRATION)
    assert len(store.migrations()) == 1
    store.close()


def test_a_disk_that_becomes_read_only_costs_records_until_it_is_writable(small_disk: Path) -> None:
    store = Store(small_disk / "history.sqlite3", clock=lambda: 1e9)
    store.record_migration(MIGRATION)
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for _ in range(3):
        store.record_migration(MIGRATION)
    assert store.lost == 3
    assert store.fault
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    store.record_migration(MIGRATION)
    assert store.lost == 3
    assert len(store.migrations()) == 2
    store.close()


def test_a_path_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "history", tmp_path / "folder"):
        store = Store(path)
        store.record_event(1, 0, "hold", "")
        assert store.lost == 1
        assert store.events() == []
        store.close()


def test_a_row_that_another_program_spoilt_is_said_and_not_raised(store: Store, path: Path) -> None:
    store.record_migration(MIGRATION)
    other = sqlite3.connect(path)
    other.execute("UPDATE migrations SET pages = '{'")
    other.commit()
    other.close()
    assert store.migrations() == []
    assert store.fault


def test_a_history_of_the_first_version_is_read_and_written_where_it_is(store: Store, path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_VERSION)
    old.close()
    store.record_migration(replace(MIGRATION, job=8))
    new = replace(MIGRATION, job=8, id=2)
    assert store.migrations() == [new, replace(MIGRATION, asked_per_process=0, moments={}, ledger={}, id=1)]
    assert [event.text for event in store.events(7)] == ["text"]
    assert (store.lost, store.fault, aside(path)) == (0, None, [])


def test_a_history_that_cannot_be_brought_up_to_date_now_is_later(small_disk: Path) -> None:
    path = small_disk / "history.sqlite3"
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_VERSION)
    old.close()
    ballast = fill(small_disk)
    store = Store(path, clock=lambda: 1e9)
    store.record_migration(MIGRATION)
    assert store.lost == 1
    assert aside(path) == []
    ballast.unlink()
    store.record_migration(replace(MIGRATION, job=8))
    assert [found.job for found in store.migrations()] == [8, 7]
    store.close()


def test_one_migration_is_found_by_its_number_and_only_by_who_may_see_it(store: Store) -> None:
    numbers = [store.record_migration(replace(MIGRATION, job=job)) for job in (7, 8)]
    assert numbers == [1, 2]
    assert [found.job for found in store.migrations(number=2)] == [8]
    assert store.migrations(number=3) == []
    assert store.migrations(number=2, user=1001) == []
    assert [found.ledger for found in store.migrations(ledgers=False)] == [{}, {}]


def test_moments_that_become_known_later_are_added_to_their_migration_alone(store: Store) -> None:
    first, second = (store.record_migration(MIGRATION) for _ in range(2))
    store.amend(first, {"held": 1e9, "released": 1e9 + 1})
    assert [found.moments for found in store.migrations()] == [{"held": 1e9}, {"held": 1e9, "released": 1e9 + 1}]
    store.amend(second, {"held": float("nan")})
    assert store.fault
    assert store.migrations()[0].moments == {"held": 1e9}


def test_a_file_that_cannot_be_written_raises_nothing_when_moments_are_added(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    store = Store(tmp_path / "folder")
    assert store.record_migration(MIGRATION) == 0
    store.amend(1, {"released": 1.0})
    assert store.fault
    store.close()


def test_ledgers_of_old_migrations_go_before_these_do(path: Path) -> None:
    store = Store(path, max_rows=10_000, max_ledgers=300, clock=lambda: 1e9)
    for _ in range(1000):
        store.record_migration(MIGRATION)
    kept = [found.id for found in store.migrations(limit=10_000) if found.ledger]
    assert kept == list(range(1000, 1000 - len(kept), -1))
    assert 300 <= len(kept) < 300 + 256
    assert len(store.migrations(limit=10_000)) == 1000
    plan = "EXPLAIN QUERY PLAN UPDATE migrations SET ledger = '{}' WHERE ledger != '{}' AND id <= 7"
    with sqlite3.connect(path) as reader:
        assert "migrations_ledger" in str(reader.execute(plan).fetchall()), "no walk over all that is kept"
    reader.close()
    store.close()


def test_requests_saved_are_known_only_where_somebody_counted() -> None:
    assert MIGRATION.requests_saved == 40
    assert replace(MIGRATION, asked_per_process=0).requests_saved is None
    assert replace(MIGRATION, requested=0).requests_saved is None
    assert replace(MIGRATION, asked_per_process=3).requests_saved == 0


@pytest.mark.parametrize("full", [False, True])
def test_records_do_not_wait_for_the_disk(small_disk: Path, tmp_path: Path, full: bool) -> None:
    """Neither a commit nor a failed one may sync: the agent has jobs to release."""
    path = (small_disk if full else tmp_path) / "history.sqlite3"
    if full:
        store = Store(path)
        store.record_event(1, 0, "hold", "")
        store.close()
        fill(small_disk)
    trace = tmp_path / "trace"
    program = WRITER.replace("while True", "while number < 200").format(path=str(path))
    program += "import os\nprint(store.lost, flush=True)\nos._exit(0)"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", os.fspath(trace), sys.executable, "-c", program]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()
    assert (int(said[-1]) >= 150) == full
    assert len([line for line in trace.read_text().splitlines() if "sync(" in line]) < 10


def test_migrations_are_plain_enough_for_the_socket(store: Store) -> None:
    store.record_migration(MIGRATION)
    assert json.loads(json.dumps(asdict(store.migrations()[0])))["pages"] == {"moved": 5, "in_place": 2}

"""Records on disk, changed at random: what cannot be is not taken, nobody raises, and what follows is written again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry import wire
from pageferry.agent.homes import Homes
from pageferry.cli import tables
from pageferry.cpus import record as cpu_record
from pageferry.gate import guardian, holds
from pageferry.gate.holds import Hold
from pageferry.history.rows import record
from pageferry.history.store import Event, Migration, Store
from pageferry.kernel.lists import MOST_NODES
from pageferry.kernel.private_cgroup import MOUNT_POINT
from pageferry.mems import record as mems_record
from pageferry.page.view import view
from pageferry.pbs import record as pbs_record
from pageferry.policy import Facts
from support.history_rows import row as history_row
from support.mutations import WORDS, clean, fuzz, mutated, one_line
from support.trees import write

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

MOUNT = str(MOUNT_POINT)
GROUP = f"{MOUNT}/system.slice/slurmstepd.scope/job_7/step_0"
HOMES = {"nodes": {"7": [0, 1], "4294967295": [1023]}, "served": {"7": "pageferry:nodes=2-3"}, "owners": {"8": ""}}
HOMES |= {"parked": {"7": [2]}, "left": {}}
CPUS = {"version": 1, "boot": "b", "map": {"0": 2, "1": 3, "2": 0, "3": 1}, "pins": {"12": {"12": [1], "13": [0, 1]}}}
CPUS |= {"jobs": {"7": {GROUP: {"inode": 5, "slurm": [0, 1], "real": [2, 3], "was": [0, 1]}}}}
MEMS = [
    {"path": GROUP, "inode": 77, "scheduler": "0-3", "ours": "2-3"},
    {"path": "/a", "inode": 1, "scheduler": "", "ours": "0"},
]
PBS = pbs_record.Record(
    (0, 1), (2,), (3,), "pageferry:nodes=2", "moved", True, (4,), (5,), Facts("pbs", user="u", features=("a",))
)
HOLD = [["job", 7, 12.5, 1764000000.0], ["group", GROUP, 77], ["private", f"{MOUNT}/pageferry/job_7", 9]]
HOLD += [["moved", 1234, 99, f"{MOUNT}/user.slice"], ["stopped", 1235, 100]]


def text_of(value: object) -> bytes:
    return json.dumps(value).encode()


def are_nodes(found: Any) -> bool:
    return isinstance(found, tuple) and all(type(node) is int and 0 <= node < MOST_NODES for node in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    write(folder, "proc/sys/kernel/random/boot_id", "b\n")
    return folder


@given(mutated([text_of(HOMES)]))
@fuzz
def test_homes_are_taken_entry_by_entry(folder: Path, text: bytes) -> None:
    write(folder, "homes.json", text)
    homes = clean(lambda: Homes(folder))
    assert isinstance(homes, Homes)
    for table, kind in ((homes._nodes, tuple), (homes._parked, tuple), (homes._left, tuple), (homes._served, str)):
        for job, value in table.items():
            assert type(job) is int
            assert 0 < job < 1 << 32
            assert type(value) is kind
            assert kind is str or are_nodes(value)
    homes.put(7, (0, 5))
    homes.put_served(9, "x")
    again = Homes(folder)
    assert (again._nodes, again._served, again._parked) == (homes._nodes, homes._served, homes._parked)


@given(mutated([text_of(CPUS)]))
@fuzz
def test_a_cpu_map_is_whole_or_not_taken(folder: Path, text: bytes) -> None:
    write(folder, cpu_record.NAME, text)
    found, complaint = clean(lambda: cpu_record.load(folder, folder))
    if complaint is not None:
        one_line(complaint, [folder])
        assert (found.jobs, found.pins) == ({}, {})
    for job, groups in found.jobs.items():
        assert 0 <= job < 1 << 32
        for path, one in groups.items():
            os.fsencode(path)
            assert path.is_absolute()
            assert len(one.slurm) == len(one.real)
    cpu_record.save(folder, found, folder)
    assert cpu_record.load(folder, folder)[0] == found


@given(mutated([text_of(MEMS)]))
@fuzz
def test_narrowed_groups_are_whole_or_not_taken(folder: Path, text: bytes) -> None:
    write(folder, "7.json", text)
    found = clean(lambda: mems_record.load(7, folder), [folder])
    if isinstance(found, tuple):
        for group in found:
            os.fsencode(group.path)
            assert group.path.startswith("/")
        mems_record.save(7, found, folder)
        assert mems_record.load(7, folder) == found


@given(mutated([msgspec.json.encode(PBS)]))
@fuzz
def test_a_record_of_a_pbs_job_is_whole_or_not_taken(folder: Path, text: bytes) -> None:
    write(folder, "12.s.json", text)
    found = clean(lambda: pbs_record.load("12.s", folder))
    assert all(map(are_nodes, (found.homes, found.placed, found.settled, found.parked, found.left)))
    pbs_record.save("12.s", found, folder)
    assert pbs_record.load("12.s", folder) == found


@given(mutated([b"".join(text_of(entry) + b"\n" for entry in HOLD)]))
@example(b'["group", "/\\ud800", 1]\n["group", "/sys/fs/cgroup/a", 1]\n')
@example(b'["stopped", 1, 1e999]\n["job", NaN, Infinity, -1]\n["moved", true, 1, "/"]\n')
@fuzz
def test_a_hold_is_taken_line_by_line(folder: Path, text: bytes) -> None:
    write(folder, "holds/7.hold", text)
    (found,) = clean(lambda: holds.read(folder / "holds"))
    good = [json.loads(line) for line in text.splitlines() if line in {text_of(entry) for entry in HOLD}]
    assert all(entry in found.entries for entry in good)
    for kind, *words in found.entries:
        for word in words:
            if isinstance(word, str):
                os.fsencode(word)
                assert word.startswith("/")
            else:
                assert 0 <= word < 1 << 64
        assert kind in guardian._SHAPES
    Hold.from_entries(found.entries)
    guardian.undo(entry for entry in found.entries if entry[0] in {"group", "private"})


CELLS = (
    None,
    0,
    -1,
    1 << 62,
    0.0,
    -1.5,
    1e308,
    float("inf"),
    "",
    "x",
    "0-3",
    "{}",
    "[]",
    "null",
    b"",
    b"\xff",
    "9" * 5000,
)
ROW = {name: value for name, value in history_row().items() if name != "requests_saved"}
FIELDS = list(Migration.__dataclass_fields__)
STORED = {name: json.dumps(ROW[name]) if isinstance(ROW[name], dict) else ROW[name] for name in FIELDS}
JSON_CELLS = [name for name in FIELDS if isinstance(ROW[name], dict)]
json_texts = st.sampled_from(JSON_CELLS).flatmap(
    lambda name: st.tuples(
        st.just(name), mutated([STORED[name].encode()]).map(lambda text: text.decode("utf-8", "replace"))
    )
)
cells = (
    st.tuples(st.sampled_from(FIELDS), st.sampled_from([*CELLS, *(word.decode("latin-1") for word in WORDS)]))
    | json_texts
)


@given(st.lists(cells, min_size=1, max_size=3))
@fuzz
def test_a_row_of_the_history_is_shown_or_damaged(spoilt: list[tuple[str, Any]]) -> None:
    row = STORED | dict(spoilt)
    try:
        found = record(Migration, [row[name] for name in FIELDS])
    except ValueError as error:
        assert len(str(error)) < 200
        return
    told = [asdict(found) | {"requests_saved": found.requests_saved}]
    told = wire.decoded(wire.encoded({"migrations": told})[:-1])["migrations"]
    tables.history_table(told)
    tables.history_blocks(told)
    view(told[0])


@given(
    st.lists(st.tuples(st.sampled_from(["job", "uid", "kind", "text", "began"]), st.sampled_from(CELLS)), max_size=3)
)
@fuzz
def test_an_event_of_the_history_is_shown_or_damaged(spoilt: list[tuple[str, Any]]) -> None:
    row = {"job": 7, "uid": 0, "kind": "hold", "text": "", "began": 1.0, "id": 3} | dict(spoilt)
    try:
        found = record(Event, row.values())
    except ValueError as error:
        assert len(str(error)) < 200
    else:
        wire.encoded({"events": [asdict(found)]})


@given(data=st.data())
@fuzz
def test_a_file_of_the_history_with_other_bytes_is_read_or_set_aside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("history")
    store = Store(folder / "h", clock=lambda: 1764000000.0)
    store.record_migration(Migration(**{name: value for name, value in ROW.items() if name != "id"}))
    store.close()
    path = folder / "h"
    damaged = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) // 2, 100, 0]))])
    again = Store(path, clock=lambda: 1764000000.0)
    found = clean(again.migrations)
    assert isinstance(found, list)
    assert isinstance(clean(again.events), list)
    again.record_event(1, 0, "hold", "")
    again.close()

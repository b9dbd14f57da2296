"""What must hold of records of holds, and of undoing them: what they name is undone if it is the same, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.errors import KernelError
from pageferry.gate import guardian, holdable, holds
from pageferry.gate.gate import release_all
from pageferry.gate.holds import Group, Hold, Moved
from pageferry.kernel.private_cgroup import MOUNT_POINT
from support.odd_files import in_time, make_odd
from support.trees import plant, write

numbers = st.integers(0, 2**64 - 1)
ids = st.integers(1, 2**22)
names = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.just("\udcff")  # a byte, not UTF-8
paths = st.text(names, min_size=1).map(lambda text: Path("/" + text.lstrip("/")))
whole_holds = st.builds(
    Hold,
    job=st.integers(1, 2**32 - 1),
    since=st.floats(0, 1e12),
    since_wall=st.floats(0, 1e12),
    groups=st.lists(st.builds(Group, paths, numbers), max_size=3).map(tuple),
    private=st.none() | st.builds(Group, paths, numbers),
    moved=st.lists(st.builds(Moved, ids, numbers, paths), max_size=3).map(tuple),
)


def text_of(hold: Hold) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in hold.entries()).encode()


@given(whole_holds)
def test_a_record_says_all_of_a_hold(hold: Hold) -> None:
    entries, damaged = guardian.parse_record(text_of(hold))
    assert damaged == 0
    assert Hold.from_entries(entries) == hold


@given(whole_holds, st.data())
def test_each_line_of_a_damaged_record_is_read_alone(hold: Hold, data: st.DataObject) -> None:
    lines = text_of(hold).splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    noise = data.draw(st.binary(max_size=20).filter(lambda text: not text.strip().startswith(b"[")))
    noise = noise.translate(None, b"\n\r") or b"\x00"
    entries, damaged = guardian.parse_record(b"".join([*lines[:at], noise + b"\n", *lines[at + 1 :]]))
    assert damaged == 1
    assert entries == [json.loads(line) for line in [*lines[:at], *lines[at + 1 :]]]


@given(whole_holds, st.data())
def test_a_record_that_is_cut_short_is_damaged(hold: Hold, data: st.DataObject) -> None:
    text = text_of(hold)
    entries, damaged = guardian.parse_record(text[: data.draw(st.integers(0, len(text) - 1))])
    assert damaged or len(entries) < len(hold.entries())


@given(
    st.binary(max_size=400)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_bytes_make_a_reader_fail(text: bytes) -> None:
    entries, _ = guardian.parse_record(text)
    Hold.from_entries(entries)
    assert all(not isinstance(word, str) or word.startswith("/") for _, *words in entries for word in words)


def test_a_record_with_two_jobs_or_none_is_of_no_hold() -> None:
    hold = Hold(7, 1.0, 2.0)
    assert Hold.from_entries([*hold.entries(), *hold.entries()]) is None
    assert Hold.from_entries(hold.entries()[1:]) is None


def test_a_record_is_read_back_with_its_job(tmp_path: Path) -> None:
    hold = Hold(7, 1.0, 2.0, (Group(MOUNT_POINT / "job_7", 3),))
    holds.write(tmp_path, hold)
    assert holds.is_recorded(tmp_path, 7)
    assert [record.hold for record in holds.read(tmp_path)] == [hold]
    (tmp_path / "7.hold").rename(tmp_path / "8.hold")
    (record,) = holds.read(tmp_path)
    assert (record.job, record.hold, record.damaged) == (8, None, 1)


def test_a_record_that_is_being_undone_is_no_hold_any_more(tmp_path: Path) -> None:
    hold = Hold(7, 1.0, 2.0, (Group(MOUNT_POINT / "job_7", 3),))
    holds.write(tmp_path, hold)
    (tmp_path / "7.hold").rename(tmp_path / "7.undone")
    (record,) = holds.read(tmp_path)
    assert (record.hold, record.damaged) == (None, 0)
    assert list(record.entries) == hold.entries()
    assert not holds.is_recorded(tmp_path, 7)


def test_a_record_that_was_not_finished_is_removed_and_nothing_else(tmp_path: Path) -> None:
    holds.write(tmp_path, Hold(7, 1.0, 2.0))
    (tmp_path / "8.new").write_text("[")
    holds.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7.hold"]


def test_a_record_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds.write(tmp_path, Hold(7, 1.0, 2.0))
    monkeypatch.setattr(guardian, "RECORD_BYTES", 10)
    assert guardian.read_record(str(tmp_path / "7.hold")) == ([], 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("slurm_v2", tmp_path)


def asked(root: Path) -> set[Path]:
    """Return the groups that were asked to freeze."""
    return {path.parent for path in root.rglob("cgroup.freeze") if path.read_text().startswith("1")}


def test_a_jobs_task_groups_are_held_and_released_and_no_other(root: Path) -> None:
    before = asked(root)
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    assert hold.groups
    assert all(group.path.match("job_123/step_*/user/task_*") for group in hold.groups)
    assert asked(root) == before
    holdable.set_hold(hold)
    assert asked(root) - before == {group.path for group in hold.groups}
    assert holdable.grown(hold, root) == hold
    assert guardian.undo(hold.entries()) == []
    assert asked(root) == before


def test_a_group_that_stands_by_itself_is_not_held(root: Path) -> None:
    (first, *others) = holdable.grown(Hold(123, 0.0, 0.0), root).groups
    (first.path / "cgroup.freeze").write_text("1\n")
    assert holdable.grown(Hold(123, 0.0, 0.0), root).groups == tuple(others)


def test_a_group_that_has_anothers_name_is_neither_frozen_nor_thawed(root: Path) -> None:
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    stale = Hold(123, 0.0, 0.0, tuple(Group(group.path, group.inode + 1) for group in hold.groups))
    before = asked(root)
    holdable.set_hold(stale)
    assert asked(root) == before
    assert not holdable.remains(stale)
    holdable.set_hold(hold)
    held = asked(root)
    assert guardian.undo(stale.entries()) == []
    assert asked(root) == held


def test_all_must_stand_and_what_is_gone_does(root: Path) -> None:
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    for group in hold.groups:
        assert not holdable.stands(hold, root)
        write(root, str((group.path / "cgroup.events").relative_to(root)), "populated 1\nfrozen 1\n")
    assert holdable.stands(hold, root)
    assert holdable.stands(Hold(1, 0.0, 0.0, (Group(root / "none", 1),)), root)


def test_one_group_that_cannot_be_thawed_does_not_keep_the_others(root: Path) -> None:
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    holdable.set_hold(hold)
    first, *others = hold.groups
    (first.path / "cgroup.freeze").unlink()
    (first.path / "cgroup.freeze").mkdir()  # EISDIR, which is no way of being gone
    (complaint,) = guardian.undo(hold.entries())
    assert str(first.path) in complaint
    assert all((group.path / "cgroup.freeze").read_text().startswith("0") for group in others)


def test_what_cannot_be_undone_keeps_a_record(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "holds"
    holds.make_folder(folder)
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    holds.write(folder, hold)
    first = hold.groups[0].path / "cgroup.freeze"
    first.unlink()
    first.mkdir()
    assert guardian.release(str(folder), 123, hold.entries())
    assert [path.name for path in folder.iterdir()] == ["123.undone"]
    first.rmdir()
    first.write_text("1\n")
    assert guardian.release(str(folder), 123, hold.entries()) == []
    assert list(folder.iterdir()) == []


def test_a_group_that_cannot_be_frozen_is_named(root: Path) -> None:
    (group, *_) = holdable.grown(Hold(123, 0.0, 0.0), root).groups
    (group.path / "cgroup.freeze").unlink()
    (group.path / "cgroup.freeze").mkdir()
    with pytest.raises(KernelError, match=r"task_0/cgroup\.freeze: Is a directory"):
        holdable.freeze(group)


ODD_PATHS = ["/\ud800", "/a\0b", "relative", "", "/\udfff/\udc80"]


def test_one_bad_line_of_a_record_costs_that_line(root: Path, tmp_path: Path) -> None:
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    holdable.set_hold(hold)
    assert len(hold.groups) > 1
    lines = text_of(hold).splitlines(keepends=True)
    for number, odd in enumerate(ODD_PATHS):
        folder = tmp_path / str(number)
        holds.make_folder(folder)
        between = [*lines[:2], json.dumps(["group", odd, 1]).encode() + b"\n", *lines[2:]]
        (folder / "123.hold").write_bytes(b"".join(between))
        (record,) = holds.read(folder, root)
        assert (record.damaged, list(record.entries)) == (1, hold.entries())
        holdable.set_hold(hold)
        assert guardian.release(str(folder), 123, list(record.entries)) == []
        assert not asked(root) & {group.path for group in hold.groups}


def test_all_jobs_are_released_whatever_one_record_says(tmp_path: Path) -> None:
    for job, odd in enumerate((*ODD_PATHS, "/etc", str(MOUNT_POINT / "gone")), 1):
        lines = [["job", job, 1.0, 1.0], ["group", odd, 1]]
        (tmp_path / f"{job}.hold").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(release_all(tmp_path)) >= set(range(1, len(ODD_PATHS) + 2))
    assert [path.name for path in tmp_path.iterdir()] == [guardian.LOG]


def test_what_cannot_be_a_path_does_not_keep_others_from_being_thawed(root: Path) -> None:
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    for odd in ("/\ud800", "/a\0b"):
        holdable.set_hold(hold)
        entries: list[guardian.Entry] = [["group", odd, 1], ["private", odd, 1], ["moved", 1 << 29, 1, odd]]
        assert len(guardian.undo([*entries, *hold.entries(), *entries])) == 4
        assert not asked(root) & {group.path for group in hold.groups}


def test_a_directory_that_is_no_cgroup_is_not_taken_for_one(root: Path, tmp_path: Path) -> None:
    hold = holdable.grown(Hold(123, 0.0, 0.0), root)
    folder, other = tmp_path / "holds", tmp_path / "other"
    holds.make_folder(folder)
    write(other, "cgroup.freeze", "1\n")
    beside = hold.groups[0].path / ".." / ".." / ".." / ".." / ".." / ".." / ".." / ".." / "other"
    for path in (other, beside):
        entries = [*hold.entries(), ["group", str(path), other.stat().st_ino]]
        (folder / "123.hold").write_bytes("".join(json.dumps(entry) + "\n" for entry in entries).encode())
        (record,) = holds.read(folder, root)
        assert (record.hold, record.damaged, list(record.entries)) == (None, 1, hold.entries())


@pytest.mark.parametrize("odd", ["pipe", "device", "directory"])
def test_what_is_no_file_is_a_damaged_record_and_is_not_waited_for(tmp_path: Path, odd: str) -> None:
    make_odd(tmp_path / "7.hold", odd)
    (record,) = holds.read(tmp_path)
    assert (record.hold, record.entries, record.damaged) == (None, (), 1)


@pytest.mark.parametrize("odd", ["pipe", "device", "directory"])
def test_a_log_that_is_no_file_is_not_waited_for(tmp_path: Path, odd: str) -> None:
    make_odd(tmp_path / guardian.LOG, odd)
    with in_time():
        guardian.log(str(tmp_path), "why", [7], ["so"])

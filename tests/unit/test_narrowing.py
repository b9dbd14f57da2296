"""What must hold of a narrowed job: which nodes it keeps, what is on record before anything is written, what is undone.

The groups are files; what the kernel does when they are written is the guest's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pageferry import ferry
from pageferry.errors import Denied, KernelError
from pageferry.kernel import locks
from pageferry.kernel.files import read_bytes
from pageferry.kernel.lists import format_list, parse_list
from pageferry.mems import narrowing, record
from pageferry.mems.narrowing import Mems, Narrowed
from pageferry_planner.model import Target, WhenFull
from support.trees import plant, write

JOB = 77
V2 = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_77"
V1 = "sys/fs/cgroup/cpuset/slurm/uid_0/job_77"
MOUNTS = {
    "v2": "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    "v1": "31 1 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "32 1 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n",
}
ALL = "0-2"
NODE_1 = "2-3"
"""CPUs."""

MOVED = ([0, 1, "moved", 500], [1, 1, "in_place", 3])
KEPT = ([0, 0, "library-list", 9],)


@dataclass
class Host:
    """A host in files. `written`: what was written, in order; `refuses`: raises for what the kernel does not allow."""

    root: Path
    written: list[tuple[str, str]] = field(default_factory=list)
    refuses: Callable[[Path, str], None] = lambda _path, _text: None

    @property
    def folder(self) -> Path:
        return self.root / "run"

    def group(self, path: str, mems: str = ALL, cpus: str = NODE_1, migrates: str = "") -> Path:
        for name, text in (("cpus", cpus), ("mems", mems)):
            for file in (f"cpuset.{name}", f"cpuset.{name}.effective", f"cpuset.effective_{name}"):
                write(self.root, f"{path}/{file}", f"{text}\n")
        write(self.root, f"{path}/cgroup.procs", "")
        if migrates:
            write(self.root, f"{path}/cpuset.memory_migrate", f"{migrates}\n")
        return self.root / path

    def write(self, path: str | Path, text: str) -> None:
        path = Path(path)
        self.refuses(path, text)
        assert record.load(JOB, self.folder), "what is not on record could not be taken back"
        read_bytes(path)
        self.written.append((path.parent.name, text))
        path.write_text(f"{format_list(parse_list(text))}\n")

    def narrow(self, *flows: Any, targets: tuple[int, ...] = (1,), reserve: int | None = None) -> Narrowed:
        outcome = {"ledger": {"page_bytes": 4096, "backings": [{"what": "all", "flows": flows}], "rest": None}}
        return self.mems().narrow(self.mems().groups(), outcome, targets, reserve)

    def widen(self) -> bool:
        return self.mems().widen()

    def mems(self) -> Mems:
        return Mems(JOB, self.folder, self.root)

    def admit(self, *nodes: int, when_full: WhenFull = WhenFull.PARTIAL) -> bool:
        return self.mems().admit(Target(nodes, when_full=when_full, spill=frozenset({0, 1, 2})))


def host_of(version: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(plant("four_nodes", root))
    write(root, "proc/self/mountinfo", MOUNTS[version])
    monkeypatch.setattr(narrowing, "write_text", made.write)
    return made


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = host_of("v2", tmp_path, monkeypatch)
    made.group(V2)
    return made


@pytest.fixture
def step(host: Host) -> Path:
    return host.group(f"{V2}/step_0/user")


@pytest.fixture
def legacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = host_of("v1", tmp_path, monkeypatch)
    made.group(V1, migrates="0")
    return made


def mems(group: Path) -> str:
    return (group / "cpuset.mems").read_text().strip()


def test_a_step_is_narrowed_to_where_its_memory_went_and_gets_slurms_text_back(host: Host, step: Path) -> None:
    assert host.narrow(*MOVED) == Narrowed(frozenset({1}))
    assert (mems(step), mems(host.root / V2)) == ("1", ALL), "the job's own group is Slurm's to write"
    assert host.widen()
    assert mems(step) == ALL
    assert not record.is_recorded(JOB, host.folder)
    assert not host.widen(), "once"


@pytest.mark.parametrize("why", ["pinned", "no_room", "denied", "not_reached"])
def test_what_could_not_be_moved_keeps_its_node_in(host: Host, step: Path, why: str) -> None:
    host.narrow(*MOVED, [2, 2, why, 1])
    assert mems(step) == "1-2"


def test_what_has_vanished_keeps_no_node_in(host: Host, step: Path) -> None:
    host.narrow(*MOVED, [2, -1, "vanished", 7])
    assert mems(step) == "1"


def test_where_memory_went_and_where_the_cpus_are_is_in_whatever_is_there_now(host: Host, step: Path) -> None:
    host.narrow([1, 1, "in_place", 1], targets=(2,))
    assert mems(step) == "1-2"


def test_where_the_kernel_would_move_what_a_rule_keeps_its_node_stays_in(host: Host, step: Path) -> None:
    host.narrow(*MOVED, *KEPT)
    assert mems(step) == "0-1"


@pytest.mark.parametrize(("migrates", "left"), [("0", "1"), ("1", "0-1")])
def test_on_version_1_it_depends_on_memory_migrate(legacy: Host, migrates: str, left: str) -> None:
    step = legacy.group(f"{V1}/step_0", migrates=migrates)
    legacy.narrow(*MOVED, *KEPT)
    assert (mems(step), mems(step.parent)) == (left, ALL)


def test_on_version_1_children_are_narrowed_before_their_parents_and_widened_after(legacy: Host) -> None:
    groups = [legacy.group(f"{V1}/step_0", migrates="0"), legacy.group(f"{V1}/step_0/task_0", migrates="0")]
    legacy.narrow(*MOVED)
    legacy.widen()
    assert legacy.written == [("task_0", "1"), ("step_0", "1"), ("step_0", ALL), ("task_0", ALL)]
    assert [mems(group) for group in groups] == [ALL, ALL]


def test_a_group_of_ours_that_was_made_of_a_narrowed_step_is_widened_with_it(legacy: Host) -> None:
    step = legacy.group(f"{V1}/step_0", migrates="0")
    legacy.narrow(*MOVED)
    ours = legacy.group("sys/fs/cgroup/cpuset/pageferry/slurm.uid_0.job_77.step_0", mems(step), migrates="0")
    assert legacy.widen()
    assert (mems(step), mems(ours)) == (ALL, ALL)


@pytest.mark.parametrize("nodes", [(1, 2), (1,)])
def test_what_such_a_group_has_is_never_taken_for_slurms(legacy: Host, nodes: tuple[int, ...]) -> None:
    step = legacy.group(f"{V1}/step_0", migrates="0")
    legacy.narrow([1, 1, "in_place", 1], [2, 2, "in_place", 1], targets=(1, 2))
    ours = legacy.group("sys/fs/cgroup/cpuset/pageferry/slurm.uid_0.job_77.step_0", mems(step), migrates="0")
    assert legacy.mems().groups() == (ours,), "the step's tasks have all gone there"
    assert legacy.narrow([1, 1, "in_place", 1], targets=nodes) == Narrowed(frozenset(nodes))
    assert (mems(step), mems(ours)) == (ALL, format_list(nodes))
    assert legacy.widen()
    assert (mems(step), mems(ours)) == (ALL, ALL)


def test_a_set_is_written_over_another_only_by_way_of_slurms(host: Host, step: Path) -> None:
    host.narrow(*MOVED)
    host.written.clear()
    host.narrow([1, 2, "moved", 5], targets=(2,))
    assert host.written == [("user", ALL), ("user", "1-2")], "or the kernel would move all of node 1 to node 2"
    host.narrow([2, 1, "moved", 5])
    assert host.written[2:] == [("user", ALL), ("user", "1")], "to a part of it, too: the record never has what is not"
    host.widen()
    assert mems(step) == ALL, "and what Slurm wrote is not forgotten on the way"


class CrashError(BaseException):
    pass


@pytest.mark.parametrize("at", range(4))
def test_whatever_ends_the_narrowing_of_a_narrowed_job_slurms_text_is_not_lost(host: Host, step: Path, at: int) -> None:
    other = host.group(f"{V2}/step_1/user")
    host.narrow(*MOVED)
    left = iter(range(at))

    def crash(_path: Path, _text: str) -> None:
        if next(left, None) is None:
            raise CrashError

    host.refuses = crash
    with pytest.raises(CrashError):
        host.narrow([1, 2, "moved", 5], targets=(2,))
    host.refuses = lambda _path, _text: None
    host.widen()
    assert (mems(step), mems(other)) == (ALL, ALL)
    assert not record.is_recorded(JOB, host.folder)


def test_on_version_1_a_narrowed_job_is_narrowed_to_other_nodes_with_all_its_groups(legacy: Host) -> None:
    groups = [legacy.group(f"{V1}/step_0", migrates="0"), legacy.group(f"{V1}/step_0/task_0", migrates="0")]

    def nested(path: Path, text: str) -> None:
        """As validate_change() in kernel/cgroup/cpuset.c."""
        above, below = (parse_list(mems(group)) for group in groups)
        if path.parent == groups[1] and not parse_list(text) <= above:
            raise Denied(f"{path}: Permission denied")
        if path.parent == groups[0] and not below <= parse_list(text):
            raise KernelError(f"{path}: Device or resource busy")

    legacy.refuses = nested
    legacy.narrow(*MOVED)
    assert legacy.narrow([1, 2, "moved", 5], targets=(2,)) == Narrowed(frozenset({1, 2}))
    assert [mems(group) for group in groups] == ["1-2", "1-2"]
    legacy.widen()
    assert [mems(group) for group in groups] == [ALL, ALL]


def test_what_stands_already_is_not_written_again(host: Host, step: Path) -> None:
    host.narrow(*MOVED)
    host.written.clear()
    assert host.narrow(*MOVED) == Narrowed(frozenset({1}))
    assert host.written == []
    assert mems(step) == "1"


def test_before_memory_goes_elsewhere_the_job_is_widened_and_only_then(host: Host, step: Path) -> None:
    host.narrow(*MOVED)
    assert not host.admit(1)
    assert mems(step) == "1"
    assert host.admit(1, when_full=WhenFull.SPILL), "what has no room may go anywhere"
    assert mems(step) == ALL
    host.narrow(*MOVED)
    assert host.admit(2)
    assert mems(step) == ALL
    assert not host.admit(2)


def test_a_job_is_not_narrowed_to_nodes_that_are_full(host: Host, step: Path) -> None:
    assert "no room beyond the reserve on node 1" in host.narrow(*MOVED, reserve=1 << 40).why
    assert mems(step) == ALL
    host.narrow(*MOVED)
    assert host.narrow(*MOVED, reserve=1 << 40).nodes == frozenset()
    assert mems(step) == ALL, "nor does it stay so"


def test_room_on_a_node_that_slurm_does_not_let_it_use_is_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    step = host.group(f"{V2}/step_0/user", mems="0-1")
    room = SimpleNamespace(room={1: 0, 2: 1 << 30})
    monkeypatch.setattr(ferry, "host", lambda _topology, _reserve: room)
    assert "no room beyond the reserve on node 1" in host.narrow(*MOVED, targets=(1, 2)).why
    assert mems(step) == "0-1"


def test_a_job_that_is_on_all_of_its_nodes_has_nothing_to_narrow(host: Host, step: Path) -> None:
    assert "on nodes 0-2, all that it may have" in host.narrow(*MOVED, *KEPT, [2, 2, "pinned", 1]).why
    assert host.written == []
    assert mems(step) == ALL
    assert not record.is_recorded(JOB, host.folder)


def test_a_step_without_mems_of_its_own_is_left(host: Host) -> None:
    step = host.group(f"{V2}/step_0/user", mems="")
    assert "ConstrainCores" in host.narrow(*MOVED).why
    assert mems(step) == ""


def test_a_group_that_somebody_else_wrote_or_made_since_is_left(host: Host, step: Path) -> None:
    other = host.group(f"{V2}/step_1/user")
    host.narrow(*MOVED)
    (step / "cpuset.mems").write_text("2\n")
    group = record.load(JOB, host.folder)
    record.save(JOB, [group[0], record.Group(group[1].path, group[1].inode + 1, ALL, "1")], host.folder)
    assert not host.widen()
    assert (mems(step), mems(other)) == ("2", "1")
    assert not record.is_recorded(JOB, host.folder)


def test_a_step_that_ends_meanwhile_is_no_hindrance(host: Host, step: Path) -> None:
    gone = host.group(f"{V2}/step_1/user")

    def ends(path: Path, _text: str) -> None:
        if path.parent == gone:
            path.unlink(missing_ok=True)

    host.refuses = ends
    assert host.narrow(*MOVED) == Narrowed(frozenset({1}))
    assert mems(step) == "1"
    assert host.widen()
    assert mems(step) == ALL


def refusal(path: Path, _text: str) -> None:
    if path.parent.parent.name == "step_1":
        raise KernelError("Device or resource busy")


def test_what_the_kernel_refuses_is_told_and_keeps_nobody_else_from_it(host: Host, step: Path) -> None:
    stubborn = host.group(f"{V2}/step_1/user")
    host.refuses = refusal
    narrowed = host.narrow(*MOVED)
    assert narrowed == Narrowed(frozenset({1}), "Device or resource busy")
    assert (mems(step), mems(stubborn)) == ("1", ALL)


def test_what_cannot_be_widened_stays_on_record(host: Host, step: Path) -> None:
    stubborn = host.group(f"{V2}/step_1/user")
    host.narrow(*MOVED)
    host.refuses = refusal
    with pytest.raises(KernelError, match=r"cpuset\.mems of job 77 cannot be widened: Device or resource busy"):
        host.widen()
    assert (mems(step), mems(stubborn)) == (ALL, "1")
    host.refuses = lambda _path, _text: None
    assert host.widen()
    assert mems(stubborn) == ALL


def test_without_a_record_nothing_is_narrowed(host: Host, step: Path) -> None:
    (host.folder / "77.new").mkdir(parents=True)
    assert "77.new" in host.narrow(*MOVED).why
    assert mems(step) == ALL
    host.folder.joinpath("77.new").rmdir()
    host.folder.joinpath("77.lock").unlink()
    host.folder.rmdir()
    host.folder.write_text("")
    assert "77.lock" in host.narrow(*MOVED).why
    assert mems(step) == ALL


@pytest.mark.parametrize("text", ["{", "[]extra", '[{"path": 1}]', "\xff", '[{"path": "/x", "inode": 1}]'])
def test_a_damaged_record_is_told_and_nothing_is_narrowed_by_it(host: Host, step: Path, text: str) -> None:
    host.folder.mkdir()
    (host.folder / "77.json").write_text(text, encoding="latin-1")
    assert "77.json: damaged, not used" in host.narrow(*MOVED).why
    with pytest.raises(KernelError, match="damaged"):
        host.widen()
    assert mems(step) == ALL


def test_what_was_recorded_and_not_written_is_as_it_was(host: Host, step: Path) -> None:
    def crash(_path: Path, _text: str) -> None:
        raise CrashError

    host.refuses = crash
    with pytest.raises(CrashError):
        host.narrow(*MOVED)
    assert record.jobs(host.folder) == (JOB,)
    host.refuses = lambda _path, _text: None
    assert not host.widen()
    assert mems(step) == ALL
    assert record.jobs(host.folder) == ()


def test_jobs_that_have_ended_are_forgotten(host: Host, step: Path) -> None:
    host.narrow(*MOVED)
    record.keep([JOB, 5], host.folder)
    assert record.jobs(host.folder) == (JOB,)
    record.keep([5], host.folder)
    assert list(host.folder.iterdir()) == []
    record.keep([5], host.folder / "not there")


def test_of_a_job_that_has_ended_nothing_is_left_but_a_lock_that_somebody_has(host: Host) -> None:
    host.folder.mkdir()
    for name in ("5.json", "5.lock", "6.json", "6.lock", "7.lock", "8.new", "9.json", "9.new"):
        (host.folder / name).touch()
    with record.alone(9, host.folder):
        record.keep([5], host.folder)
    assert sorted(path.name for path in host.folder.iterdir()) == ["5.json", "5.lock", "9.lock"]


def test_who_waits_for_a_lock_that_is_removed_meanwhile_takes_the_one_that_has_the_name(host: Host) -> None:
    path, entered, done = host.folder / f"{JOB}.lock", threading.Event(), threading.Event()
    host.folder.mkdir()
    removed = locks.taken(path)
    assert removed is not None

    def other() -> None:
        with record.alone(JOB, host.folder):
            entered.set()
            done.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert not entered.wait(0.2), "there is no event for who waits"
    path.unlink()
    os.close(removed)
    assert entered.wait(20)
    try:
        assert locks.taken(path) is None, "or two would have it"
    finally:
        done.set()
        thread.join(20)


def test_two_do_not_write_a_job_at_once(host: Host, step: Path) -> None:
    host.narrow(*MOVED)
    done = threading.Event()

    def other() -> None:
        host.widen()
        done.set()

    with record.alone(JOB, host.folder):
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.2), "there is no event for who waits"
        assert mems(step) == "1"
    thread.join(20)
    assert done.is_set()
    assert mems(step) == ALL

"""What must hold of reading control groups."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pageferry.errors import KernelError, Vanished
from pageferry.kernel import cgroup
from pageferry.kernel.cgroup import Cpuset
from support.trees import plant, write

JOB = "sys/fs/cgroup/system.slice/n1_slurmstepd.scope/job_123"
LEGACY_JOB = "sys/fs/cgroup/cpuset/slurm/uid_1000/job_77"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("slurm_v2", tmp_path)


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    return plant("slurm_v1", tmp_path)


def test_a_unified_host_has_no_legacy_hierarchy(root: Path) -> None:
    hierarchies = cgroup.read_hierarchies(root)
    assert hierarchies.unified == root / "sys/fs/cgroup"
    assert hierarchies.legacy == {}


def test_a_hybrid_host_has_both_and_shared_controllers_one_mount(hybrid: Path) -> None:
    hierarchies = cgroup.read_hierarchies(hybrid)
    assert hierarchies.unified == hybrid / "sys/fs/cgroup/unified"
    assert hierarchies.legacy["freezer"] == hybrid / "sys/fs/cgroup/freezer"
    assert hierarchies.legacy["cpu"] == hierarchies.legacy["cpuacct"] == hybrid / "sys/fs/cgroup/cpu,cpuacct"
    assert set(hierarchies.legacy) == {"freezer", "cpuset", "cpu", "cpuacct", "memory", "name=systemd"}


def test_the_first_mount_of_a_hierarchy_counts_and_escapes_are_undone(tmp_path: Path) -> None:
    lines = rb"""1 2 0:9 / /cg\0402 rw - cgroup2 none rw
2 2 0:9 / /again rw - cgroup2 none rw
"""
    assert cgroup.read_hierarchies(write(tmp_path, "proc/self/mountinfo", lines)).unified == tmp_path / "cg 2"


def test_a_host_without_cgroups_has_none(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/mountinfo", "1 2 0:9 / / rw - ext4 none rw\n")
    assert cgroup.read_hierarchies(tmp_path) == cgroup.Hierarchies(None, {})


def test_the_processes_of_a_subtree_are_named_once_and_strangers_to_our_namespace_left_out(root: Path) -> None:
    assert cgroup.pids(root / JOB, root) == {1230, 1231, 1232, 1233, 1234, 1235, 1236}
    assert cgroup.pids(root / "sys/fs/cgroup/system.slice/n2_slurmstepd.scope", root) == {1240, 1241}
    assert cgroup.own_pids(root / JOB, root) == frozenset()


def test_groups_are_walked_parents_first(root: Path) -> None:
    names = [group.name for group in cgroup.walk(root / JOB / "step_0")]
    assert names == ["step_0", "slurm", "user", "task_0", "own"]


def test_a_group_that_is_gone_has_no_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cgroup.pids(root / "none", root) == frozenset()
    walked = list(cgroup.walk(root / JOB))
    monkeypatch.setattr(cgroup, "walk", lambda _: [*walked, root / "vanished"])
    assert 1231 in cgroup.pids(root / JOB, root)


def test_groups_nested_by_a_hostile_user_do_not_exhaust_us(monkeypatch: pytest.MonkeyPatch) -> None:
    deepest = sys.getrecursionlimit() + 100
    monkeypatch.setattr(cgroup, "children", lambda path: [path / "g"] if len(path.parts) < deepest else [])
    assert sum(1 for _ in cgroup.walk(Path("/"))) == deepest


def test_a_hostile_group_name_is_only_a_name(root: Path) -> None:
    write(root, f"{JOB}/step_0/user/a\n\x1b b (deleted)/cgroup.procs", "4711\n")
    assert 4711 in cgroup.pids(root / JOB, root)


def test_a_symbolic_link_is_not_followed(root: Path) -> None:
    (root / JOB / "step_0/link").symlink_to(root / "sys/fs/cgroup/system.slice/ssh.service")
    assert 900 not in cgroup.pids(root / JOB, root)


def test_a_bad_list_of_processes_is_named_in_the_complaint(root: Path) -> None:
    write(root, f"{JOB}/cgroup.procs", "12 x\n")
    with pytest.raises(KernelError, match=r"cgroup\.procs"):
        cgroup.pids(root / JOB, root)


def test_a_cpuset_is_read_from_either_version(root: Path, tmp_path: Path) -> None:
    both = frozenset({0, 1})
    assert cgroup.read_cpuset(root / JOB) == Cpuset(both, both, both, both)
    assert cgroup.read_cpuset(root / JOB / "step_0") == Cpuset(frozenset(), frozenset(), both, both)
    plant("slurm_v1", tmp_path)
    legacy = cgroup.read_cpuset(tmp_path / LEGACY_JOB)
    assert legacy == Cpuset(both, frozenset({0}), both, frozenset({0}))


def test_a_group_without_the_controller_has_no_cpuset_and_one_that_is_gone_has_vanished(root: Path) -> None:
    assert cgroup.read_cpuset(root / "sys/fs/cgroup/system.slice/ssh.service") is None
    with pytest.raises(Vanished):
        cgroup.read_cpuset(root / "none")


def test_a_bad_cpuset_is_named_in_the_complaint(root: Path) -> None:
    write(root, f"{JOB}/cpuset.cpus", "3-1\n")
    with pytest.raises(KernelError, match="job_123"):
        cgroup.read_cpuset(root / JOB)

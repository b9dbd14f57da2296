"""What must hold of freezing a group, and of telling whether it is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError, Vanished
from pageferry.kernel import freezer
from pageferry.kernel.cgroup import Hierarchies
from support.trees import plant, write

SCOPE = "sys/fs/cgroup/system.slice/n1_slurmstepd.scope"
LEGACY = "sys/fs/cgroup/freezer/slurm/uid_1000/job_77"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plant("slurm_v2", tmp_path)
    return plant("slurm_v1", tmp_path)


def test_freezing_and_thawing_write_what_the_kernel_reads(root: Path) -> None:
    group = root / SCOPE / "job_123/step_0/user"
    freezer.freeze(group)
    assert (group / "cgroup.freeze").read_text().startswith("1")
    freezer.thaw(group)
    assert (group / "cgroup.freeze").read_text().startswith("0")
    for action in (freezer.freeze, freezer.thaw):
        with pytest.raises(Vanished):
            action(group / "none")


def test_frozen_is_what_the_kernel_reports_and_not_what_was_asked_for(root: Path) -> None:
    assert freezer.is_frozen(root / SCOPE / "job_12/step_0/user")
    freezer.freeze(root / SCOPE / "job_123/step_0/user")
    assert not freezer.is_frozen(root / SCOPE / "job_123/step_0/user")
    with pytest.raises(Vanished):
        freezer.is_frozen(root / "none")


def test_waiting_for_what_holds_already_takes_no_time(root: Path) -> None:
    assert freezer.wait_frozen(root / SCOPE / "job_12/step_0/user", frozen=True, seconds=0)
    assert not freezer.wait_frozen(root / SCOPE / "job_12/step_0/user", frozen=False, seconds=0)
    with pytest.raises(Vanished):
        freezer.wait_frozen(root / "none", frozen=True, seconds=0)


def test_the_state_of_a_legacy_freezer_says_who_asked(root: Path) -> None:
    assert freezer.read_freezer_state(root / LEGACY / "step_batch") == freezer.FreezerState(
        "FROZEN", own=True, parent=False
    )
    assert freezer.read_freezer_state(root / LEGACY).state == "THAWED"
    with pytest.raises(Vanished):
        freezer.read_freezer_state(root / "sys/fs/cgroup/freezer")


def test_a_bad_state_is_named_in_the_complaint(root: Path) -> None:
    write(root, f"{LEGACY}/freezer.state", "\x1b[2J\n")
    with pytest.raises(KernelError, match=r"freezer\.state: not a state") as caught:
        freezer.read_freezer_state(root / LEGACY)
    assert str(caught.value).isprintable()


def test_a_process_stands_still_in_a_group_that_was_asked_to_freeze_of_either_version(root: Path) -> None:
    status = "Name:\tx\nState:\tS\nTgid:\t7\nPPid:\t1\nUid:\t0\t0\t0\t0\nThreads:\t1\n"
    status += "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n"
    write(root, "proc/7/status", status)
    write(root, "proc/7/stat", "7 (x) S" + " 1" * 25)
    top, legacy = root / "sys/fs/cgroup", root / LEGACY.partition("/slurm")[0]
    hierarchies = Hierarchies(top, {"freezer": legacy})
    user = "/system.slice/n1_slurmstepd.scope/job_123/step_0/user"

    def still(*groups: str) -> bool:
        write(root, "proc/7/cgroup", "".join(f"{group}\n" for group in groups))
        return freezer.stands_still(7, hierarchies, root)

    assert not still("4:cpuset:/slurm", "0::/", "")
    assert not still("2:freezer:/", "0::/../outside")
    assert not still("2:freezer:/slurm/uid_1000/job_77", f"0::{user}/task_0", "")
    assert still("2:freezer,net_cls:/slurm/uid_1000/job_77/step_batch", "0::/")
    freezer.freeze(top / user.strip("/"))
    assert still("2:freezer:/", f"0::{user}/task_0")
    assert not still("2:freezer:/", f"0::{user.replace('123', '12')}.gone (deleted)")
    write(root, "proc/7/status", status.replace("State:\tS", "State:\tT"))
    assert still("0::/")
    with pytest.raises(Vanished):
        freezer.stands_still(8, hierarchies, root)

"""What must hold of finding the cgroups of Slurm's jobs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pageferry.schedulers import slurm_cgroups
from pageferry.schedulers.slurm_cgroups import Suspension, slurm_job_suspension, slurm_job_user_groups, slurm_suspension
from support.trees import plant, write

SLICE = "sys/fs/cgroup/system.slice"
V1 = "sys/fs/cgroup"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("slurm_v2", tmp_path)


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    return plant("slurm_v1", tmp_path)


def test_each_slurmd_of_the_host_has_its_own_group_of_the_job(root: Path) -> None:
    assert set(slurm_cgroups.slurm_job_cgroups(123, root)) == {
        root / SLICE / "n1_slurmstepd.scope/job_123",
        root / SLICE / "n2_slurmstepd.scope/job_123",
    }


def test_a_job_is_not_taken_for_one_whose_number_begins_or_ends_the_same(root: Path) -> None:
    assert slurm_cgroups.slurm_job_cgroups(12, root) == (root / SLICE / "n1_slurmstepd.scope/job_12",)
    for stranger in (1, 2, 23, 12345):
        assert slurm_cgroups.slurm_job_cgroups(stranger, root) == ()


def test_the_users_processes_of_all_steps_are_found_and_no_slurmstepd(root: Path) -> None:
    assert slurm_cgroups.slurm_job_user_pids(123, root) == {1231, 1233, 1235, 1236, 1241}


def test_a_scope_in_another_slice_or_at_the_top_is_found(root: Path) -> None:
    write(root, f"{V1}/site.slice/a/slurmstepd.scope/job_9/step_0/user/task_0/cgroup.procs", "99\n")
    write(root, f"{V1}/slurmstepd.scope/job_9/step_0/user/task_0/cgroup.procs", "98\n")
    assert slurm_cgroups.slurm_job_user_pids(9, root) == {98, 99}


def test_a_job_group_inside_a_users_own_groups_is_not_looked_for(root: Path) -> None:
    forged = f"{SLICE}/n1_slurmstepd.scope/job_1234/step_0/user/task_0/x_slurmstepd.scope/job_123"
    write(root, f"{forged}/step_0/user/cgroup.procs", "666\n")
    assert 666 not in slurm_cgroups.slurm_job_user_pids(123, root)


def test_a_scope_that_an_unprivileged_user_made_is_not_believed(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    delegated = root / V1 / "user.slice/user-1000.slice"
    write(root, f"{V1}/user.slice/user-1000.slice/x_slurmstepd.scope/job_123/step_0/user/cgroup.procs", "666\n")
    os.chown(delegated, 1000, 1000)
    os.chown(delegated / "x_slurmstepd.scope", 1000, 1000)
    assert 666 not in slurm_cgroups.slurm_job_user_pids(123, root)


def test_legacy_groups_are_found_in_every_hierarchy_that_slurm_uses(hybrid: Path) -> None:
    assert slurm_cgroups.slurm_job_cgroups(77, hybrid) == tuple(
        hybrid / V1 / group
        for group in (
            "freezer/slurm/uid_1000/job_77",
            "cpuset/slurm/uid_1000/job_77",
            "cpuset/slurm_n2/uid_1000/job_77",
            "memory/slurm/uid_1000/job_77",
        )
    )


def test_the_users_processes_of_a_legacy_job_are_those_of_the_freezers_steps(hybrid: Path) -> None:
    assert slurm_cgroups.slurm_job_user_pids(77, hybrid) == {772, 773, 774}
    assert [group.name for group in slurm_cgroups.slurm_job_user_groups(77, hybrid)] == ["step_0", "step_batch"]


def test_the_user_is_known_from_a_legacy_path_only(root: Path, tmp_path: Path) -> None:
    assert slurm_cgroups.legacy_user_id(slurm_cgroups.slurm_job_cgroups(123, root)) is None
    plant("slurm_v1", tmp_path)
    assert slurm_cgroups.legacy_user_id(slurm_cgroups.slurm_job_cgroups(77, tmp_path)) == 1000


def test_hierarchies_that_share_a_mount_are_looked_at_once(tmp_path: Path) -> None:
    line = "1 2 0:9 / /cg rw - cgroup cgroup rw,freezer,cpuset,memory\n"
    write(tmp_path, "proc/self/mountinfo", line)
    write(tmp_path, "cg/slurm/uid_5/job_3/step_0/cgroup.procs", "33\n")
    assert slurm_cgroups.slurm_job_cgroups(3, tmp_path) == (tmp_path / "cg/slurm/uid_5/job_3",)
    assert slurm_cgroups.slurm_job_user_pids(3, tmp_path) == {33}


def test_a_mount_that_cannot_be_seen_holds_no_job(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/mountinfo", "1 2 0:9 / /hidden rw - cgroup2 none rw\n")
    assert slurm_cgroups.slurm_job_cgroups(3, tmp_path) == ()


def user_group(root: Path, step: str, freeze: int, frozen: int, populated: int = 1) -> None:
    user = f"{SLICE}/n2_slurmstepd.scope/job_5/{step}/user"
    write(root, f"{user}/cgroup.freeze", f"{freeze}\n")
    write(root, f"{user}/cgroup.events", f"populated {populated}\nfrozen {frozen}\n")


def legacy_step(root: Path, step: str, state: str, own: int, parent: int = 0, pids: str = "51\n") -> None:
    group = f"{V1}/freezer/slurm/uid_1000/job_5/{step}"
    write(root, f"{group}/freezer.state", f"{state}\n")
    write(root, f"{group}/freezer.self_freezing", f"{own}\n")
    write(root, f"{group}/freezer.parent_freezing", f"{parent}\n")
    write(root, f"{group}/cgroup.procs", pids)


NOT = Suspension(asked=False, frozen=False)
ON_THE_WAY = Suspension(asked=True, frozen=False)
SUSPENDED = Suspension(asked=True, frozen=True)


def test_a_job_that_is_not_here_is_not_suspended(root: Path, tmp_path: Path) -> None:
    assert slurm_job_suspension(99, root) == NOT
    assert slurm_job_suspension(99, plant("slurm_v1", tmp_path)) == NOT


@pytest.mark.parametrize(
    ("steps", "suspension"),
    [
        ([(0, 0)], NOT),
        ([(1, 0)], ON_THE_WAY),
        ([(1, 1)], SUSPENDED),
        ([(1, 1), (1, 0)], ON_THE_WAY),
        ([(1, 1), (0, 0)], ON_THE_WAY),
        ([(1, 1), (1, 1)], SUSPENDED),
        ([(0, 1), (0, 1)], NOT),  # thawed by Slurm, and held from above
    ],
)
def test_a_job_is_suspended_when_each_of_its_steps_is(
    root: Path, steps: list[tuple[int, int]], suspension: Suspension
) -> None:
    for number, (freeze, frozen) in enumerate(steps):
        user_group(root, f"step_{number}", freeze, frozen)
    assert slurm_job_suspension(5, root) == suspension


def test_a_hold_of_the_tasks_below_is_not_slurms_wish(root: Path) -> None:
    user_group(root, "step_0", freeze=0, frozen=0)
    task = f"{SLICE}/n2_slurmstepd.scope/job_5/step_0/user/task_0"
    write(root, f"{task}/cgroup.freeze", "1\n")
    write(root, f"{task}/cgroup.events", "populated 1\nfrozen 1\n")
    assert slurm_job_suspension(5, root) == NOT


def test_a_step_without_processes_or_without_its_groups_does_not_keep_a_job_from_being_suspended(root: Path) -> None:
    user_group(root, "step_0", freeze=1, frozen=1)
    user_group(root, "step_1", freeze=0, frozen=0, populated=0)
    (root / f"{SLICE}/n2_slurmstepd.scope/job_5/step_2").mkdir()
    (root / f"{SLICE}/n2_slurmstepd.scope/job_5/step_3/user").mkdir(parents=True)
    assert slurm_job_suspension(5, root) == SUSPENDED


def test_groups_that_are_known_are_looked_at_without_a_search_and_those_that_are_gone_do_not_count(root: Path) -> None:
    for number, freeze in enumerate((0, 1)):
        user_group(root, f"step_{number}", freeze=freeze, frozen=freeze)
    groups = slurm_job_user_groups(5, root)
    user_group(root, "step_2", freeze=1, frozen=0)
    assert slurm_suspension(groups, root) == ON_THE_WAY
    assert slurm_suspension(groups[1:], root) == SUSPENDED
    shutil.rmtree(groups[1])
    assert slurm_suspension(groups, root) == NOT


def test_a_job_of_empty_steps_that_nobody_suspended_is_not_suspended(root: Path) -> None:
    user_group(root, "step_0", freeze=0, frozen=0, populated=0)
    assert slurm_job_suspension(5, root) == NOT


@pytest.mark.parametrize(
    ("steps", "suspension"),
    [
        ([("THAWED", 0)], NOT),
        ([("FREEZING", 1)], ON_THE_WAY),
        ([("FROZEN", 1)], SUSPENDED),
        ([("FROZEN", 1), ("THAWED", 0)], ON_THE_WAY),
        ([("FROZEN", 1), ("FROZEN", 1)], SUSPENDED),
    ],
)
def test_a_legacy_job_is_suspended_when_each_of_its_steps_is(
    hybrid: Path, steps: list[tuple[str, int]], suspension: Suspension
) -> None:
    for number, (state, own) in enumerate(steps):
        legacy_step(hybrid, f"step_{number}", state, own)
    assert slurm_job_suspension(5, hybrid) == suspension


def test_a_legacy_freeze_from_above_is_not_slurms_wish(hybrid: Path) -> None:
    legacy_step(hybrid, "step_0", "FROZEN", own=0, parent=1)
    assert slurm_job_suspension(5, hybrid) == NOT


def test_a_legacy_step_without_processes_does_not_keep_a_job_from_being_suspended(hybrid: Path) -> None:
    legacy_step(hybrid, "step_0", "FROZEN", own=1)
    legacy_step(hybrid, "step_1", "THAWED", own=0, pids="")
    assert slurm_job_suspension(5, hybrid) == SUSPENDED


def test_a_group_that_goes_while_jobs_are_looked_for_is_not_in_the_way(
    hybrid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir
    gone: list[object] = []

    def vanishing(path: os.PathLike[str]) -> object:
        if Path(path).name.startswith("uid_") and len(gone) < 3:
            gone.append(path)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert slurm_cgroups.slurm_jobs(hybrid) == (77,)
    assert len(gone) == 3

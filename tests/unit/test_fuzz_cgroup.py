"""Files of control groups, changed at random: each is read, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.cpus.groups import job_groups
from pageferry.errors import PageferryError
from pageferry.gate import holdable
from pageferry.gate.holds import Hold
from pageferry.kernel import cgroup, freezer, lists
from pageferry.kernel.numa_stat import mapped_bytes_of, read_numa_stat
from pageferry.schedulers import pbs_cgroups, slurm_cgroups
from support.mutations import LONG, clean, fuzz, mutated
from support.trees import plant, write

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

JOBS = {"slurm_v2": (123, "proc/self/cgroup"), "slurm_v1": (77, "proc/self/cgroup")}
NUMA_STAT = (
    b"anon N0=1048576 N1=0\nfile N0=0 N1=4096\nfile_mapped N0=0 N1=4096\nshmem N0=0 N1=8192\nunevictable N0=0 N1=0\n"
)
LEGACY = (
    b"total=3 N0=2 N1=1\nhierarchical_total=9 N0=4 N1=5\nhierarchical_anon=7 N0=3\nhierarchical_unevictable=0 N0=0\n"
)
LISTS = [b"0-3,8,10-11\n", b"\n", b"0\n", b"0-1023\n"]


def read_all(root: Path, job: int) -> list[Any]:
    """Read a job's groups in each way that there is; return what was read, or why not."""
    hold = Hold(job, 0.0, 0.0)
    readers: list[Callable[[], Any]] = [
        lambda: cgroup.read_hierarchies(root),
        lambda: slurm_cgroups.slurm_jobs(root),
        lambda: slurm_cgroups.slurm_job_user_pids(job, root),
        lambda: slurm_cgroups.slurm_job_cpusets(job, root),
        lambda: slurm_cgroups.slurm_job_suspension(job, root),
        lambda: slurm_cgroups.slurm_job_owner(job, root),
        lambda: slurm_cgroups.slurm_job_holds(job, root),
        lambda: [(group.allowed(), [step.pids() for step in group.steps]) for group in job_groups(job, root)],
        lambda: holdable.stands(hold, root),
        lambda: pbs_cgroups.pbs_job_ids(root),
        lambda: pbs_cgroups.pbs_job_cpuset("12.server", root),
    ]
    return [clean(read, [root]) for read in readers]


@pytest.fixture(scope="module", params=sorted(JOBS))
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    return plant(request.param, tmp_path_factory.mktemp(request.param)), JOBS[request.param][0]


@given(data=st.data())
@fuzz
def test_a_jobs_groups_are_read_or_refused(tree: tuple[Path, int], data: st.DataObject) -> None:
    root, job = tree
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    path = data.draw(st.sampled_from(files).filter(lambda path: path.stat().st_size > 0))
    whole = path.read_bytes()
    path.write_bytes(data.draw(mutated([whole])))
    try:
        found = read_all(root, job)
    finally:
        path.write_bytes(whole)
    pids = found[2]
    assert isinstance(pids, PageferryError) or all(0 < pid <= cgroup.MOST_ID for pid in pids)


@given(mutated([b"12\n13\n4194304\n", b"0\n", b""]))
@fuzz
def test_processes_of_a_group_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    group = tmp_path_factory.getbasetemp() / "group"
    write(group, "cgroup.procs", text)
    found = clean(lambda: cgroup.own_pids(group), [group])
    assert isinstance(found, PageferryError) or all(0 < pid <= cgroup.MOST_ID for pid in found)


@given(mutated([NUMA_STAT, LEGACY]))
@fuzz
def test_counters_of_nodes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    group = tmp_path_factory.getbasetemp() / "group"
    write(group, "memory.numa_stat", text)
    found = clean(lambda: read_numa_stat(group), [group])
    if not isinstance(found, PageferryError):
        assert all(0 <= node < 1 << 16 and count >= 0 for nodes in found.values() for node, count in nodes.items())
    clean(lambda: mapped_bytes_of([group]), [group])


@given(mutated(LISTS))
@fuzz
def test_lists_of_cpus_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    group = tmp_path_factory.getbasetemp() / "group"
    for name in ("cpus", "mems", "cpus.effective", "mems.effective"):
        write(group, f"cpuset.{name}", text)
    found = clean(lambda: cgroup.read_cpuset(group), [group])
    written = clean(lambda: cgroup.read_written(group / "cpuset.mems"), [group])
    if isinstance(found, cgroup.Cpuset):
        assert found.cpus == written
        assert lists.parse_list(lists.format_list(found.cpus)) == found.cpus


@given(
    mutated([b"populated 1\nfrozen 1\n", b"populated 1\nfrozen 0\n"]),
    mutated([b"0\n", b"1\n", b"FROZEN\n", b"THAWED\n"]),
)
@fuzz
def test_freezers_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, events: bytes, state: bytes) -> None:
    group = tmp_path_factory.getbasetemp() / "group"
    write(group, "cgroup.events", events)
    for name in ("cgroup.freeze", "freezer.state", "freezer.self_freezing", "freezer.parent_freezing"):
        write(group, name, state)
    assert clean(lambda: freezer.is_frozen(group), [group]) in {True, False}
    told = clean(lambda: freezer.read_freezer_state(group), [group])
    assert isinstance(told, PageferryError) or told.state in {"FROZEN", "FREEZING", "THAWED"}
    clean(lambda: holdable.thawed(group), [group])


@given(st.text(max_size=40) | st.from_regex(r"\A[0-9,-]{0,30}\Z"))
@fuzz
def test_any_text_is_a_list_of_numbers_or_refused_in_a_line(text: str) -> None:
    for words in (text, text * 20, "x" * LONG + text):
        try:
            found = lists.parse_list(words)
        except ValueError as error:
            assert len(str(error)) < 1000
            assert str(error).isprintable()
        else:
            assert all(0 <= member < 1 << 30 for member in found)
            assert lists.parse_list(lists.format_list(found)) == found

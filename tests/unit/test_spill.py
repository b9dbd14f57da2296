"""What must hold of memory that spilled: who is found to have some, and who may bring home how much, in which order."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import spill
from pageferry.errors import KernelError
from pageferry.kernel.topology import Topology, read_topology
from pageferry.spill import Spilled, choose
from pageferry_planner.model import Host, WhenFull
from pageferry_planner.placement import place
from support.plans import anonymous, pages_of, snapshot_of, targets_of
from support.planted_jobs import JOB, MIB, job, plant_host
from support.trees import write

FAR_AND_NEAR = {
    0: {0: 10, 1: 12, 2: 20, 3: 28},
    1: {0: 12, 1: 10, 2: 24, 3: 20},
    2: {0: 20, 1: 24, 2: 10, 3: 14},
    3: {0: 28, 1: 20, 2: 14, 3: 10},
}
NODES = frozenset(FAR_AND_NEAR)
LEGACY = "sys/fs/cgroup"


@st.composite
def jobs(draw: st.DrawFn) -> list[Spilled[int]]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        homes = draw(st.frozensets(st.sampled_from(sorted(NODES)), max_size=3))
        far = draw(st.dictionaries(st.sampled_from(sorted(NODES)), st.integers(1, 50)))
        found.append(Spilled(number, homes, {node: count for node, count in far.items() if node not in homes}))
    return found


ROOM = st.fixed_dictionaries({node: st.integers(0, 60) for node in NODES})


@given(jobs(), ROOM, st.integers(0, 30))
def test_no_node_takes_more_than_its_room_and_no_job_brings_more_than_it_has(
    spilled: list[Spilled[int]], room: dict[int, int], least: int
) -> None:
    before = dict(room)
    shares = choose(spilled, room, FAR_AND_NEAR, least)
    assert room == before
    for node in NODES:
        assert sum(share.takes.get(node, 0) for share in shares) <= room[node]
    by_job = {found.job: found for found in spilled}
    assert len({share.job for share in shares}) == len(shares)
    for share in shares:
        assert share.bytes == sum(share.takes.values()) >= max(least, 1)
        assert share.bytes <= sum(by_job[share.job].far.values())
        assert share.takes.keys() <= by_job[share.job].homes


@given(jobs(), ROOM)
def test_the_biggest_gain_comes_first_and_who_is_left_out_would_gain_nothing(
    spilled: list[Spilled[int]], room: dict[int, int]
) -> None:
    shares = choose(spilled, room, FAR_AND_NEAR)
    assert [share.gain for share in shares] == sorted((share.gain for share in shares), reverse=True)
    left = {node: room[node] - sum(share.takes.get(node, 0) for share in shares) for node in NODES}
    for found in spilled:
        if found.job not in {share.job for share in shares}:
            assert choose([found], left, FAR_AND_NEAR) == []
            assert not found.far or not found.homes or not all(left[home] for home in found.homes)


def units(far: Mapping[int, int], room: Mapping[int, int], home: int) -> tuple[int, int]:
    """Bring one unit after another to a single home: how many fit, and what they gain."""
    each = [node for node in sorted(far) for _ in range(far[node])][: room[home]]
    return len(each), sum(FAR_AND_NEAR[home][node] - 10 for node in each)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(NODES)), st.dictionaries(st.sampled_from(sorted(NODES)), st.integers(1, 50))),
        max_size=5,
    ),
    ROOM,
)
def test_jobs_with_one_home_each_share_the_room_as_units_dealt_out_one_by_one_would(
    given_jobs: list[tuple[int, dict[int, int]]], room: dict[int, int]
) -> None:
    waiting = {
        job: (home, {n: count for n, count in far.items() if n != home}) for job, (home, far) in enumerate(given_jobs)
    }
    spilled = [Spilled(job, frozenset({home}), far) for job, (home, far) in waiting.items()]
    expected = []
    left = dict(room)
    while waiting:
        best = min(waiting, key=lambda job: (-units(waiting[job][1], left, waiting[job][0])[1], job))
        home, far = waiting.pop(best)
        count, gain = units(far, left, home)
        if count:
            expected.append((best, count, gain))
            left[home] -= count
    assert [(s.job, s.bytes, s.gain) for s in choose(spilled, room, FAR_AND_NEAR)] == expected


@given(
    st.frozensets(st.sampled_from(sorted(NODES)), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(sorted(NODES)), st.integers(1, 50), min_size=1),
    ROOM,
    st.frozensets(st.sampled_from(sorted(NODES))),
)
def test_the_request_moves_what_was_promised_and_no_page_that_is_on_a_home_node(
    homes: frozenset[int], pages: dict[int, int], room: dict[int, int], special: frozenset[int]
) -> None:
    rows = [anonymous(0, 1000 * 512 * node, count * 512, node) for node, count in pages.items()]
    snapshot = snapshot_of(rows, homes=[homes])
    free = {node: count * 512 for node, count in room.items()}
    nearest = {
        node: tuple(sorted(NODES - {node}, key=lambda other: (FAR_AND_NEAR[node][other], other))) for node in NODES
    }
    request = spill._request(homes, None, None, None, None, special=special)
    targets = targets_of(plan := place(snapshot, request.target, Host(free, nearest)))
    before = pages_of(snapshot.runs)
    assert not plan.lacking
    assert all(before[address].node not in homes | special for address in targets)
    assert set(targets.values()) <= homes
    far = {node: count * 512 for node, count in pages.items() if node not in homes | special}
    shares = choose([Spilled(1, homes, far)], free, FAR_AND_NEAR)
    arrive = Counter(targets.values())
    assert [share.takes for share in shares] == ([arrive] if arrive else [])


def test_a_larger_distance_makes_up_for_fewer_bytes() -> None:
    near, far = Spilled(1, frozenset({0}), {1: 100}), Spilled(2, frozenset({0}), {3: 20})
    assert [(s.job, s.gain) for s in choose([near, far], {0: 1000}, FAR_AND_NEAR)] == [(2, 360), (1, 200)]


def test_who_comes_later_gets_the_room_that_is_left_and_nobody_comes_for_less_than_the_least() -> None:
    first, second = Spilled(1, frozenset({0}), {2: 80}), Spilled(2, frozenset({0}), {2: 60})
    assert [(s.job, s.bytes) for s in choose([second, first], {0: 100}, FAR_AND_NEAR, 20)] == [(1, 80), (2, 20)]
    assert [(s.job, s.bytes) for s in choose([second, first], {0: 100}, FAR_AND_NEAR, 21)] == [(1, 80)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant_host(tmp_path)


@pytest.fixture
def topology(root: Path) -> Topology:
    return read_topology(root)


def cpu_of(topology: Topology, node: int) -> str:
    return str(min(topology.node(node).cpus))


def candidates(root: Path, *jobs: int) -> list[spill.Homecoming[int]]:
    return spill.candidates(jobs, least_bytes=1, bytes_per_second=None, root=root)


def test_memory_on_a_special_node_is_not_far(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 100, 1: 30, 2: 5})
    special = frozenset({1, 3})
    assert spill.look(7, topology, root, special=special) == Spilled(7, frozenset({0}), {2: 5 * MIB})
    assert spill.far_bytes(7, topology, root, special) == 5 * MIB
    assert spill.look(7, topology, root, special=frozenset({0})) == spill.look(7, topology, root), "its CPUs are there"
    counted = spill.counted(7, topology, root)
    assert counted.on_purpose(topology, special) == {1: 30 * MIB}
    assert counted.on_purpose(topology, frozenset({0})) == {}


def test_memory_on_a_special_node_is_told_as_none_that_is_away_and_does_not_come_home(root: Path) -> None:
    job(root, 7, cpu_of(read_topology(root), 0), "0-3", {0: 1, 2: 30})
    told: list[Mapping[int, int]] = []
    found = [
        spill.candidates(
            [7], least_bytes=1, bytes_per_second=None, special=special, seen=told.append, reserve_bytes=0, root=root
        )
        for special in (frozenset[int](), frozenset({2}))
    ]
    assert [len(homes) for homes in found] == [1, 0]
    assert found[0][0].request.target.special == frozenset()
    assert [far[2] for far in told] == [30 * MIB, 0]


def test_what_comes_home_leaves_special_nodes_alone(root: Path) -> None:
    job(root, 7, cpu_of(read_topology(root), 0), "0-3", {0: 1, 1: 30, 2: 30})
    special = frozenset({2})
    (found,) = spill.candidates([7], least_bytes=1, bytes_per_second=None, special=special, reserve_bytes=0, root=root)
    assert (found.bytes, found.request.target.left_alone) == (30 * MIB, special)
    assert not found.request.target.spill & special


def test_memory_on_other_nodes_than_those_of_the_jobs_cpus_is_far(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 100, 1: 30, 2: 5})
    assert spill.look(7, topology, root) == Spilled(7, frozenset({0}), {1: 30 * MIB, 2: 5 * MIB})
    assert spill.far_bytes(7, topology, root) == 35 * MIB


def test_the_cpus_of_all_steps_are_the_jobs_and_its_mems_those_that_every_step_may_use(
    root: Path, topology: Topology
) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 1, 1: 2, 2: 4})
    job(root, 7, cpu_of(topology, 1), "1-2", {0: 1, 1: 2, 2: 4}, step="step_batch")
    assert spill.look(7, topology, root) == Spilled(7, frozenset({1}), {2: 4 * MIB})


def test_a_job_that_may_have_no_memory_at_its_cpus_is_left_alone(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "2-3", {0: 0, 2: 500})
    assert spill.look(7, topology, root) == Spilled(7, frozenset(), {2: 500 * MIB})
    assert spill.far_bytes(7, topology, root) == 500 * MIB
    assert candidates(root, 7) == []


@pytest.mark.parametrize("missing", ["memory.numa_stat", "step_0"])
def test_a_job_that_has_ended_or_lacks_a_controller_is_no_candidate(
    root: Path, topology: Topology, missing: str
) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {1: 500})
    path = root / f"{JOB}7" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for number in (7, 8):
        assert spill.look(number, topology, root) is None
        assert spill.far_bytes(number, topology, root) is None
    assert candidates(root, 7, 8) == []


def test_a_counter_file_that_cannot_be_read_is_said(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {1: 500})
    write(root, f"{JOB}7/memory.numa_stat", "anon N1=many\n")
    with pytest.raises(KernelError, match=r"job_7/memory\.numa_stat"):
        candidates(root, 7)


def test_version_1_is_looked_at_in_its_own_hierarchies(root: Path, topology: Topology) -> None:
    mounts = (f"3{n} 1 0:3{n} / /{LEGACY}/{name} rw - cgroup cgroup rw,{name}\n" for n, name in enumerate(V1))
    write(root, "proc/self/mountinfo", "".join(mounts))
    for name in V1:
        write(root, f"{LEGACY}/{name}/slurm_n1/uid_0/job_7/step_0/cgroup.procs", "")
    step = f"{LEGACY}/cpuset/slurm_n1/uid_0/job_7/step_0/cpuset."
    for name, value in {"cpus": cpu_of(topology, 0), "mems": "0-3"}.items():
        write(root, step + name, value)
        write(root, f"{step}effective_{name}", value)
    stat = "anon=0 N0=0 N1=0\nhierarchical_anon=99 N0=90 N1=9\nhierarchical_unevictable=0 N0=0 N1=0\n"
    write(root, f"{LEGACY}/memory/slurm_n1/uid_0/job_7/memory.numa_stat", stat)
    assert spill.look(7, topology, root) == Spilled(7, frozenset({0}), {1: 9 * 4096})


V1 = ("freezer", "cpuset", "memory")


def test_candidates_come_with_a_live_rate_limited_request_to_their_homes_only(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 4, 2: 3})
    job(root, 9, f"{cpu_of(topology, 0)},{cpu_of(topology, 1)}", "0-3", {2: 4})
    job(root, 10, cpu_of(topology, 0), "0-3", {0: 50, 2: 1})
    found = spill.candidates(
        [10, 9, 7, 9], least_bytes=2 * MIB, bytes_per_second=5.0, seconds=9.0, reserve_bytes=0, root=root
    )
    assert [(home.job, home.bytes) for home in found] == [(9, 4 * MIB), (7, 3 * MIB)]
    assert [home.request.target.nodes for home in found] == [(0, 1), (0,)]
    assert [home.request.target.when_full for home in found] == [WhenFull.SPILL, WhenFull.PARTIAL]
    for home in found:
        limits = home.request.limits
        assert (limits.bytes_per_second, limits.seconds, home.request.reserve_bytes) == (5.0, 9.0, 0)
        assert home.request.target.spill == set(home.request.target.nodes)


def test_jobs_that_the_caller_does_not_name_are_not_touched(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {2: 500})
    assert candidates(root) == []


def test_a_look_that_finds_nothing_needs_no_numpy(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 500})
    program = (
        "import sys; from pathlib import Path; from pageferry import spill;"
        f"assert spill.candidates([7], least_bytes=1, bytes_per_second=None, root=Path({str(root)!r})) == [];"
        "print('numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_what_is_away_is_told_by_node_also_of_jobs_that_are_left_where_they_are(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 4, 2: 3})
    job(root, 8, cpu_of(topology, 0), "2", {1: 1, 2: 5})
    told: list[Mapping[int, int]] = []
    spill.candidates([7, 8, 9], least_bytes=4 * MIB, bytes_per_second=None, root=root, seen=told.append)
    assert told == [{0: 0, 1: 1 * MIB, 2: 8 * MIB}]

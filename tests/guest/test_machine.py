"""The guest is the machine that was asked for: its nodes, CPUs, distances, cgroups, disk and scheduler."""

import mmap
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from guest.vm.jobs import Slurm
from guest.vm.layouts import Layout, cpu_list, observed
from guest.witness import vmstat

pytestmark = pytest.mark.every_machine

# What the kernel keeps of a node for itself before MemTotal counts: page structs, its image, the DMA bounce
# buffer of node 0.
KERNEL_MIB = 176


def test_every_node_has_its_cpus_and_distances(layout: Layout) -> None:
    found = observed()
    assert [node.cpus for node in found.nodes] == [node.cpus for node in layout.nodes]
    assert found.distances == layout.distances


def test_cpus_are_numbered_node_by_node(layout: Layout) -> None:
    if layout.name == "observed":
        pytest.fail("a host numbers its CPUs as it likes: run in a guest")
    for node in range(len(layout.nodes)):
        text = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text()
        assert cpu_list(text) == layout.cpus_of(node)


def test_every_node_has_its_memory(layout: Layout) -> None:
    for declared, found in zip(layout.nodes, observed().nodes, strict=True):
        assert declared.mib - KERNEL_MIB <= found.mib <= declared.mib


def test_the_cgroup_hierarchy_is_the_one_asked_for(cgroup: str) -> None:
    root = Path("/sys/fs/cgroup")
    if cgroup == "v2":
        assert {"cpuset", "memory", "pids"} <= set((root / "cgroup.controllers").read_text().split())
    else:
        for kind in ("cpuset", "memory", "freezer", "cpuacct", "devices", "pids"):
            assert (root / kind / "cgroup.procs").exists()


def test_automatic_numa_balancing_is_off() -> None:
    assert Path("/proc/sys/kernel/numa_balancing").read_text().strip() == "0"


def migrated() -> int:
    """Return what the kernel counts, whoever had it moved."""
    (line,) = (line for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("pgmigrate_success"))
    return int(line.split()[1])


def test_what_compaction_moves_is_not_counted_as_migrated() -> None:
    before, raw = vmstat(), migrated()
    for _ in range(8):  # how much there is to compact depends on what ran before
        with mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            for page in range(0, len(memory), mmap.PAGESIZE):
                memory[page] = 1
            for page in range(0, len(memory), 4 * mmap.PAGESIZE):
                memory.madvise(mmap.MADV_DONTNEED, page, 3 * mmap.PAGESIZE)
            Path("/proc/sys/vm/compact_memory").write_text("1")
        if migrated() - raw >= 1024:
            break
    assert migrated() - raw >= 1024
    assert vmstat()["pgmigrate_success"] == before["pgmigrate_success"]


def test_results_can_be_written(results: Path) -> None:
    path = results / "written-in-the-guest"
    path.write_text("yes")
    assert path.read_text() == "yes"
    path.unlink()


def test_huge_pages_can_be_had_on_each_node(layout: Layout) -> None:
    for node in range(len(layout.nodes)):
        pool = Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
        pool.write_text("4")
        assert pool.read_text().strip() == "4"
        pool.write_text("0")


def test_the_scratch_disk_swaps_and_holds_a_file_system(tmp_path: Path) -> None:
    if "PAGEFERRY_SCRATCH" not in os.environ:
        pytest.fail("no scratch disk: run in a guest")
    disk = os.environ["PAGEFERRY_SCRATCH"]
    subprocess.run(["mkswap", disk], check=True)
    subprocess.run(["swapon", disk], check=True)
    assert disk in Path("/proc/swaps").read_text()
    subprocess.run(["swapoff", disk], check=True)
    subprocess.run(["mkfs.ext4", "-qF", disk], check=True)
    subprocess.run(["mount", disk, str(tmp_path)], check=True)
    (tmp_path / "file").write_text("kept")
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_batch_job_runs_is_suspended_and_resumes(slurm: Slurm) -> None:
    job = slurm.submit("echo started; while :; do sleep 0.2; done", "--ntasks=1")
    slurm.wait_output(job, "started")
    assert slurm.state(job) == "RUNNING"
    assert len(slurm.pids(job)) >= 1
    slurm.suspend(job)
    assert slurm.state(job) == "SUSPENDED"
    assert slurm.frozen(job)
    slurm.resume(job)
    assert slurm.state(job) == "RUNNING"
    slurm.cancel(job)
    assert slurm.state(job) == "CANCELLED"


def test_a_job_has_the_cpus_of_one_node_to_itself(slurm: Slurm, layout: Layout) -> None:
    cores = layout.cores_per_socket
    job = slurm.submit("grep Cpus_allowed_list /proc/self/status; sleep 60", f"--cpus-per-task={cores}")
    slurm.wait_output(job, "Cpus_allowed_list")
    assert cpu_list(slurm.output(job).split(":")[1]) in {layout.cpus_of(node) for node in layout.cpu_nodes}
    slurm.cancel(job)


def test_its_cpus_sort_as_they_should() -> None:
    """An emulator that gets a vector instruction wrong would make every other result here worthless."""
    random = np.random.default_rng(1)
    for length in range(1, 2000, 3):
        values = random.integers(0, 40, length)
        order = np.argsort(values)
        assert sorted(order.tolist()) == list(range(length))
        assert values[order].tolist() == sorted(values.tolist())

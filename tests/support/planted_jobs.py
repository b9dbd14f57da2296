"""A host of four nodes in files, and jobs in its cgroups: their CPUs, and what memory they have where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from support.trees import plant, write

MIB = 1 << 20
JOB = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_"


def plant_host(root: Path) -> Path:
    """Plant four nodes (0-3 with memory) and cgroup version 2, as yet without a job."""
    plant("four_nodes", root)
    return write(root, "proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")


def job(root: Path, number: int, cpus: str, mems: str, mib: Mapping[int, int], *, step: str = "step_0") -> None:
    """Plant a job: its CPUs and mems, and how much memory it has on which node."""
    base = f"{JOB}{number}"
    nodes = " ".join(f"N{node}={count * MIB}" for node, count in mib.items())
    write(root, f"{base}/memory.numa_stat", f"anon {nodes}\nfile N0=99999999\nfile_mapped N0=0\n")
    for name in ("cpus", "cpus.effective"):
        write(root, f"{base}/{step}/user/cpuset.{name}", cpus)
    for name in ("mems", "mems.effective"):
        write(root, f"{base}/{step}/user/cpuset.{name}", mems)

"""The job that is measured: processes in a cgroup of their own, memory where a scenario wants it, standing still."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.programs import program
from pageferry.kernel import libnuma
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import read_topology

CGROUPS = Path("/sys/fs/cgroup")
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """What a job is made of: processes, threads of each, memory that all share, memory that each has alone."""

    processes: int
    threads: int
    shared_mib: int
    private_mib: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job that stands still. `group`: its cgroup; `pids`: its processes, ascending; `nodes`: all with memory."""

    shape: Shape
    group: Path
    pids: tuple[int, ...]
    nodes: frozenset[int]

    def allow(self, nodes: Iterable[int]) -> None:
        """Write cpuset.mems of the job's cgroup."""
        (self.group / "cpuset.mems").write_text(format_list(nodes))

    def entries(self) -> int:
        """Return the present page-table entries of all processes, summed."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids)

    def scatter(self, node: int, step: int) -> int:
        """Put every `step`-th page of the shared memory on `node`; return how many these are."""
        first = self._shared_address() // PAGE_BYTES
        pages = np.arange(first, first + (self.shape.shared_mib << 20) // PAGE_BYTES, step)
        addresses = pages.astype(np.uint64) * np.uint64(PAGE_BYTES)
        where = np.full(len(addresses), node, np.int32)
        missed, _ = libnuma.move_pages(self.pids[0], addresses, where, libnuma.MPOL_MF_MOVE_ALL)
        if missed:
            raise RuntimeError(f"{missed} pages could not be put on node {node}")
        return len(addresses)

    def _shared_address(self) -> int:
        for line in Path(f"/proc/{self.pids[0]}/maps").read_text().splitlines():
            if line.endswith("/dev/zero (deleted)"):
                return int(line.partition("-")[0], 16)
        raise RuntimeError("no shared memory")


@contextmanager
def standing(shape: Shape, node: int) -> Iterator[Job]:
    """Start a job with all its memory on `node`, freeze it, allow it all nodes, and end it when the context is left."""
    group = CGROUPS / "bench"
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    group.mkdir()
    (group / "cpuset.mems").write_text(str(node))
    numbers = [shape.processes, shape.threads, shape.shared_mib, shape.private_mib]
    join = f'echo $$ >{group}/cgroup.procs && exec "$@"'
    command = ["sh", "-c", join, "sh", str(program("ranks")), *map(str, numbers)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
            try:
                if not first.stdout or first.stdout.readline() != "ready\n":
                    raise RuntimeError("the job did not start")
                (group / "cgroup.freeze").write_text("1")
                _wait(group, "frozen 1")
                pids = sorted(int(pid) for pid in (group / "cgroup.procs").read_text().split())
                job = Job(shape, group, tuple(pids), read_topology().nodes_with_memory())
                job.allow(job.nodes)
                yield job
            finally:
                (group / "cgroup.kill").write_text("1")
                first.wait()
                _wait(group, "populated 0")
    finally:
        group.rmdir()


def _wait(group: Path, event: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while event not in (group / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{group}: not {event!r} after {seconds:g} s")
        time.sleep(0.01)

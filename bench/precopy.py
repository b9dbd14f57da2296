"""How long a running job stands still when it is given other CPUs and its memory follows, in the guest.

Moved as a whole while it stands still, against moved while it runs and held for its CPUs and the rest alone: the same
job, there and back, in turns. The job itself notes the longest time between two of its steps.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.programs import program
from guest.ranks import cpus_of
from pageferry import ferry, strays
from pageferry.cpus import assign
from pageferry.gate import gate
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import read_topology
from pageferry_planner.model import Target

GROUP = Path("/sys/fs/cgroup/bench-precopy")
PROCESSES, SHARED_MIB, OWN_MIB = 8, 128, 16
ROUNDS = 5
HOME, AWAY = 1, 2


@dataclass(frozen=True, slots=True)
class Running:
    """The job; `gaps` is the file in which each process notes its longest stop."""

    pids: tuple[int, ...]
    gaps: Path

    def nodes(self) -> dict[int, int]:
        """Return the pages of its own on each node, by numa_maps: shared ones as often as they are mapped."""
        counted: dict[int, int] = {}
        for pid in self.pids:
            for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
                if " anon=" in line or "/dev/zero" in line:
                    for node, pages in re.findall(r" N(\d+)=(\d+)", line):
                        counted[int(node)] = counted.get(int(node), 0) + int(pages)
        return counted


def main(output: Path) -> int:
    """Measure both ways in turns, and write the seconds down."""
    told: dict[str, list[float]] = {"stopped": [], "precopied": []}
    ways: tuple[tuple[str, Callable[[Running, int], None]], ...] = (("stopped", stopped), ("precopied", precopied))
    with running(HOME) as job:
        for number in range(2 * ROUNDS):
            name, move = ways[number % 2 ^ number // 2 % 2]
            target = (AWAY, HOME)[number % 2]
            clear(job)
            move(job, target)
            time.sleep(0.5)
            told[name].append(longest(job))
            stray = {node: pages for node, pages in job.nodes().items() if node != target}
            assert sum(stray.values()) < 64, f"{name}: left behind: {stray}"
            print(f"{name}: stood still for {told[name][-1]:.2f} s", flush=True)
    output.write_text(json.dumps(told) + "\n")
    print(f"ratio of medians {statistics.median(told['precopied']) / statistics.median(told['stopped']):.3f}")
    return 0


def stopped(job: Running, node: int) -> None:
    """Hold the job, flip its CPUs, and move all of its memory."""
    with gate.held((GROUP,)):
        flip(job, node)
        ferry.move(job.pids, request(node))


def precopied(job: Running, node: int) -> None:
    """Move its memory, then hold it, flip its CPUs, and move the rest."""
    asked = request(node)
    rest = ferry.after(asked, ferry.move(job.pids, asked).plan)
    with gate.held((GROUP,)):
        flip(job, node)
        if not strays.few((GROUP,), (node,)):
            ferry.move(job.pids, rest)
            return
    ferry.move(job.pids, rest)


def flip(job: Running, node: int) -> None:
    """Give it a node's CPUs."""
    assign.assign(frozenset(cpus_of(node)), frozenset(job.pids), assign.Cpusets(narrow=(GROUP,)))


def request(node: int) -> ferry.Request:
    """Ask for its memory to go to a node."""
    return ferry.Request(Target((node,), spill=read_topology().nodes_with_memory()))


def clear(job: Running) -> None:
    """Forget the stops so far."""
    np.memmap(job.gaps, np.uint64)[:] = 0


def longest(job: Running) -> float:
    """Return the longest stop of any process, in seconds."""
    return float(np.memmap(job.gaps, np.uint64, "r").max()) / 1e9


@contextmanager
def running(node: int) -> Iterator[Running]:
    """Start the job on a node's CPUs, and end it when the context is left."""
    gaps = Path("/dev/shm/bench-gaps")
    gaps.write_bytes(bytes(4096))
    (GROUP.parent / "cgroup.subtree_control").write_text("+cpuset +memory")
    GROUP.mkdir()
    (GROUP / "cpuset.mems").write_text(format_list(read_topology().nodes_with_memory()))
    (GROUP / "cpuset.cpus").write_text(format_list(cpus_of(node)))
    join = f'echo $$ >{GROUP}/cgroup.procs && exec "$@"'
    shape = [str(number) for number in (PROCESSES, SHARED_MIB, OWN_MIB)]
    command = ["sh", "-c", join, "sh", str(program("busy")), *shape, str(gaps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "ready\n", "the job did not start"
            yield Running(tuple(sorted(int(pid) for pid in (GROUP / "cgroup.procs").read_text().split())), gaps)
        finally:
            (GROUP / "cgroup.kill").write_text("1")
            first.wait()
    while "populated 1" in (GROUP / "cgroup.events").read_text():
        time.sleep(0.01)
    GROUP.rmdir()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

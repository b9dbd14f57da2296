"""Who moves a job's memory from one node to another, and how many pages each of them asks for."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.job import Job
from bench.programs import program
from pageferry import ferry
from pageferry.mover import Limits
from pageferry_planner.model import Target


@dataclass(frozen=True, slots=True)
class Run:
    """One run: how long it took, and how many pages it asked for.

    `requests`, in base pages: what was given to move_pages(2), or, of what walks page tables in the kernel, the present
    entries that it walked. Only of pageferry: `planning`, the seconds of the whole that went by before the first page
    moved, and `misplaced`, the unique pages that were to move.
    """

    seconds: float
    requests: int
    planning: float = 0.0
    misplaced: int = 0


Contender = Callable[[Job, int, int], Run]
"""Moves what a job has on one node (second) to another (third)."""


def kernel(job: Job, _source: int, target: int) -> Run:
    """Write cpuset.mems (cgroup v2) of a job that may use all nodes, as Slurm lets it.

    The kernel walks the page tables of each thread, once for every node that is no longer allowed.
    """
    return _narrowed(job, target, walks=len(job.nodes) - 1)


def kernel_two_nodes(job: Job, source: int, target: int) -> Run:
    """Do the same where only the two nodes were allowed before: one walk per thread."""
    job.allow({source, target})
    return _narrowed(job, target, walks=1)


def _narrowed(job: Job, target: int, walks: int) -> Run:
    requests = job.entries() * job.shape.threads * walks
    began = time.monotonic()
    job.allow({target})
    seconds = time.monotonic() - began
    job.allow(job.nodes)  # a wider set moves nothing
    return Run(seconds, requests)


def migratepages(job: Job, source: int, target: int) -> Run:
    """Run the numactl package's program once for each process, from one shell."""
    requests = job.entries()
    script = f'for pid; do migratepages "$pid" {source} {target} || exit; done'
    began = time.monotonic()
    subprocess.run(["sh", "-c", script, "sh", *map(str, job.pids)], check=True)
    return Run(time.monotonic() - began, requests)


def migrate_call(job: Job, source: int, target: int) -> Run:
    """Do as migratepages does, in one process: without the cost of starting programs."""
    return Run(_peer(["migrate_pages", str(target), str(source)], job)[0], job.entries())


def per_process(job: Job, _source: int, target: int) -> Run:
    """Ask every process for every resident page of every VMA, with move_pages(2), in C."""
    return Run(*_peer(["move_pages", str(target)], job))


def _peer(words: list[str], job: Job) -> tuple[float, int]:
    command = [str(program("peers")), *words, *map(str, job.pids)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(answer[0]), int(answer[1])


def ours(workers: int) -> Contender:
    """Return pageferry with so many workers: snapshot, plan, move and tally, in a process that is warm."""

    def run(job: Job, _source: int, target: int) -> Run:
        request = ferry.Request(Target((target,)), limits=Limits(workers=workers))
        began = time.monotonic()
        outcome = ferry.move(job.pids, request)
        seconds = time.monotonic() - began
        if not outcome.complete:
            raise RuntimeError(f"pages were left behind: {dict(outcome.tally.pages)}")
        requests = outcome.tally.requested + outcome.tally.retried
        return Run(seconds, requests, outcome.seconds_planning, outcome.plan.moves.pages())

    return run


OURS = ("pageferry, 1 worker", "pageferry, 2 workers")

CONTENDERS: Mapping[str, Contender] = {
    "cpuset.mems write": kernel,
    "cpuset.mems write, two nodes": kernel_two_nodes,
    "migratepages": migratepages,
    "migrate_pages(2) loop": migrate_call,
    "move_pages per process": per_process,
    OURS[0]: ours(1),
    OURS[1]: ours(2),
}

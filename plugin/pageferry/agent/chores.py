"""What the agent's errands do, each in a child of its own: ask Slurm, move memory, bring it home, write back.

Nothing here knows of holds or of other jobs; a chore's answer is plain data, for the agent to act on.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry import ferry, report, spill
from pageferry.agent.errand import Say
from pageferry.config import Settings
from pageferry.errors import UsageError, Vanished
from pageferry.kernel.topology import read_topology
from pageferry.mover import Limits
from pageferry.replay import kept
from pageferry.schedulers.control import nodes_here, write_outcome
from pageferry.schedulers.slurm_cgroups import slurm_job_suspension, slurm_job_user_pids
from pageferry.schedulers.slurm_commands import SlurmCommands
from pageferry_planner.model import Strategy, Target, WhenFull

Chore = Callable[[Say], Mapping[str, Any]]
"""A function for `errand.begin`."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a job's memory goes; `sources` are the nodes whose memory goes to the i-th target, None: by memory."""

    nodes: tuple[int, ...]
    strategy: Strategy = Strategy.RELATIVE
    sources: tuple[int, ...] | None = None


def ask(jobs: Sequence[int]) -> Chore:
    """Return for each of these jobs its state, its AdminComment, its user, and Slurm's name for this host."""

    def work(_say: Say) -> Mapping[str, Any]:
        control = SlurmCommands()
        answers: dict[str, Any] = {}
        for job in jobs:
            try:
                record = control.job(job)
            except UsageError:  # it has ended
                continue
            names = nodes_here(job, record.hosts, socket.gethostname())
            answers[str(job)] = {
                "state": record.state,
                "comment": record.admin_comment,
                "hosts": names or [socket.gethostname().partition(".")[0]],
                "uid": record.user_id,
            }
        return {"jobs": answers}

    return work


def move(job: int, destination: Destination, settings: Settings, snapshots: Path | None = None) -> Chore:
    """Move a job's memory; the answer is the outcome. `snapshots`: where what the plan is made from is kept."""

    def work(_say: Say) -> Mapping[str, Any]:
        topology = read_topology()
        sources = destination.sources
        request = ferry.Request(
            target=Target(
                nodes=destination.nodes,
                strategy=destination.strategy,
                sources=frozenset(sources) if sources is not None else None,
                when_full=WhenFull(settings.agent.when_full),
                spill=topology.nodes_with_memory(),
            ),
            limits=Limits(workers=settings.agent.workers),
        )
        with kept.recording(snapshots, job) as seen:
            return report.outcome_json(ferry.move(slurm_job_user_pids(job), request, seen=seen))

    return work


def bring_home(jobs: Sequence[int], settings: Settings, snapshots: Path | None = None) -> Chore:
    """Bring the spilled memory of jobs home, live and one after another; say of each what became of it.

    Each is looked at again when its turn comes: it may have been given other nodes, or suspended.
    """

    def candidates(some: Sequence[int]) -> list[spill.Homecoming[int]]:
        return spill.candidates(some, least_bytes=settings.spill.least_bytes, bytes_per_second=settings.spill.rate)

    def work(say: Say) -> Mapping[str, Any]:
        moved = 0
        for job in [found.job for found in candidates(jobs)]:
            if slurm_job_suspension(job).asked or not (fresh := candidates([job])):
                continue
            try:
                with kept.recording(snapshots, job) as seen:
                    outcome = ferry.move(slurm_job_user_pids(job), fresh[0].request, seen=seen)
            except Vanished:
                continue
            moved += 1
            nodes = fresh[0].request.target.nodes
            say({"job": job, "nodes": nodes, "outcome": report.outcome_json(outcome)})
        return {"jobs": moved}

    return work


def write_back(job: int, hosts: Sequence[str], text: str) -> Chore:
    """Put an outcome where the operator looks: the part of the job's AdminComment that is this host's.

    A host with several slurmd has a part for each.
    """

    def work(_say: Say) -> Mapping[str, Any]:
        written = [write_outcome(SlurmCommands(), job, host, text) for host in hosts]
        return {"written": all(written)}

    return work

"""How a host stands at this moment: its nodes, its jobs, the moves under way and what happened last.

Cheap enough to be asked for again and again: small files of cgroups, whose counters may be seconds old, and the agent's
own words, if there is one. No page table is read, and no numpy loaded; `pageferry status` is exact. How it looks is
left to the command line.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pageferry import spill, wire
from pageferry.errors import Denied, PageferryError, Vanished
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import Topology, read_topology
from pageferry.schedulers import pbs
from pageferry.schedulers.pbs_cgroups import pbs_job_ids, pbs_job_pids
from pageferry.schedulers.slurm_cgroups import slurm_job_owner, slurm_job_suspension, slurm_jobs

EVENTS = 8
"""What happened last: so many migrations and other events."""

_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class NodeNow:
    """A node, with its memory in all and what is free of it; `special`: what is there is there on purpose."""

    number: int
    has_cpus: bool
    total_bytes: int
    free_bytes: int
    special: bool = False


@dataclass(frozen=True, slots=True)
class JobNow:
    """A job; what nobody can tell is None.

    `state`: the agent's word ("runs", "held", "parked", "waits"), else "suspended" or "runs" by Slurm's freezers.
    `home_nodes`: where its memory was last brought to; `bytes`: what its processes map, by node; `remote_bytes`: on
    nodes that serve none of its CPUs, without `special_bytes`, those on special nodes; `move`: as the agent tells a
    migration.
    """

    id: str
    scheduler: str
    state: str | None
    stage: str | None
    cpus: str | None
    cpu_nodes: tuple[int, ...]
    home_nodes: tuple[int, ...]
    bytes: Mapping[int, int]
    remote_bytes: int | None
    move: Mapping[str, Any] | None
    special_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class HappenedNow:
    """One line of what happened, the job's or (None) the agent's; `at`: seconds since 1970."""

    at: float
    job: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Overview:
    """A host at a moment; `agent`: why there is nothing of the agent's in it, None if there is."""

    at: float
    host: str
    agent: str | None
    nodes: tuple[NodeNow, ...]
    jobs: tuple[JobNow, ...]
    events: tuple[HappenedNow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for a program."""
        return asdict(self)


def look(
    job: str | None = None,
    *,
    path: Path = wire.PATH,
    root: Path = Path("/"),
    user: int | None = None,
    special_of: Callable[[Topology], frozenset[int]] = lambda _topology: frozenset(),
) -> Overview:
    """Return how the host stands, or that job alone; `user` (default: who we are) sees their own jobs only, root all.

    So does whoever the agent tells of all jobs. `special_of`: the special nodes of a host. Raises KernelError for files
    that cannot be understood, Denied for another user's job.
    """
    user = os.geteuid() if user is None else user
    topology = read_topology(root)
    special = special_of(topology)
    events, why = _events(job, path)
    told = _status(path) if why is None else None
    slurm = [str(number) for number in slurm_jobs(root) if job is None or str(number) == job]
    others = [name for name in pbs_job_ids(root) if job is None or name == job]
    if user != 0 and told is None:
        there = bool(slurm or others)
        slurm = [name for name in slurm if slurm_job_owner(int(name), root) == user]
        others = [name for name in others if pbs.owner(pbs_job_pids(name, root), root) == user]
        if job is not None and there and not (slurm or others):
            raise Denied(f"job {job} is another user's")
        told = _status_of(slurm, path) if why is None else None
    states = told or {}
    jobs = [_slurm_job(name, states.get(name), topology, special, root) for name in slurm]
    jobs += [_pbs_job(name, topology, special, root) for name in others]
    nodes = (
        NodeNow(node.number, bool(node.cpus), node.total_bytes, node.free_bytes, node.number in special)
        for node in topology.nodes
    )
    return Overview(time.time(), socket.gethostname(), why, tuple(nodes), tuple(jobs), events)


def _status(path: Path) -> Mapping[str, Any] | None:
    """Return what the agent says of all jobs, None if it does not."""
    with suppress(PageferryError):
        jobs: Mapping[str, Any] = wire.ask(path, {"verb": "status"}, _SECONDS)["jobs"]
        return jobs
    return None


def _status_of(jobs: Iterable[str], path: Path) -> Mapping[str, Any]:
    """Return what the agent says of jobs, asked for one by one as a user has to, and not for long."""
    found: dict[str, Any] = {}
    until = time.monotonic() + _SECONDS
    for job in jobs:
        if (left := until - time.monotonic()) <= 0:
            break
        with suppress(PageferryError):  # it has ended, or the agent hangs
            found |= wire.ask(path, {"verb": "status", "job": int(job)}, left)["jobs"]
    return found


def _slurm_job(
    name: str, told: Mapping[str, Any] | None, topology: Topology, special: frozenset[int], root: Path
) -> JobNow:
    state = told["phase"] if told else None
    if state is None:
        with suppress(Vanished, Denied):
            state = "suspended" if slurm_job_suspension(int(name), root).asked else "runs"
    elif state == "held" and told and told.get("parked_nodes"):
        state = "parked"
    counted = _counted(int(name), topology, root, spill.slurm_groups)
    return _job(name, "slurm", state, told=told or {}, counted=counted, topology=topology, special=special)


def _pbs_job(name: str, topology: Topology, special: frozenset[int], root: Path) -> JobNow:
    state = "suspended" if pbs.is_stopped(pbs_job_pids(name, root), root) else "runs"
    counted = _counted(name, topology, root, spill.pbs_groups)
    return _job(name, "pbs", state, told={}, counted=counted, topology=topology, special=special)


def _counted(job: Any, topology: Topology, root: Path, groups_of: spill.GroupsOf) -> spill.Counted:
    with suppress(Vanished, Denied):
        return spill.counted(job, topology, root, groups_of)
    return spill.Counted(frozenset(), frozenset(), {})


def _job(
    name: str,
    scheduler: str,
    state: str | None,
    *,
    told: Mapping[str, Any],
    counted: spill.Counted,
    topology: Topology,
    special: frozenset[int],
) -> JobNow:
    confined = bool(counted.cpus)
    known = confined and bool(counted.bytes)
    return JobNow(
        id=name,
        scheduler=scheduler,
        state=state,
        stage=told.get("stage"),
        cpus=format_list(counted.cpus) if confined else None,
        cpu_nodes=tuple(sorted(topology.serving(counted.cpus))),
        home_nodes=tuple(told.get("home_nodes") or ()),
        bytes=dict(sorted(counted.bytes.items())),
        remote_bytes=sum(counted.far(topology, special).values()) if known else None,
        move=told.get("move"),
        special_bytes=sum(counted.on_purpose(topology, special).values()) if known else None,
    )


def _events(job: str | None, path: Path) -> tuple[tuple[HappenedNow, ...], str | None]:
    """Return the newest migrations and events, newest first, of the user's own jobs; and why the agent says nothing."""
    try:
        answer = wire.ask(path, {"verb": "history", "limit": EVENTS} | ({"job": job} if job else {}), _SECONDS)
    except PageferryError as error:
        return (), str(error)
    found = [HappenedNow(row["began"] + row["seconds"], str(row["job"]), _moved(row)) for row in answer["migrations"]]
    for row in answer["events"]:
        text = f"{row['kind']}: {row['text']}" if row["text"] else row["kind"]
        found.append(HappenedNow(row["began"], str(row["job"]) if row["job"] else None, text))
    return tuple(sorted(found, key=lambda one: -one.at)[:EVENTS]), None


def _moved(row: Mapping[str, Any]) -> str:
    moved = f", {row['bytes'] >> 20} MiB to {row['nodes_to']}" if row["bytes"] else ""
    stopped = f", stopped {row['seconds_stopped']:.2f} s" if row["seconds_stopped"] else ""
    return f"{row['event']}: {row['outcome']}{moved} in {row['seconds']:.2f} s{stopped}" + (
        f": {row['error']}" if row["error"] else ""
    )

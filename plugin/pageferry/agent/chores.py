"""What the agent's errands do, each in a child of its own: ask Slurm, move memory, bring it home, write back.

Nothing here knows of holds or of other jobs; a chore's answer is plain data, for the agent to act on.
"""

from __future__ import annotations

import mmap
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pageferry import applied, spill
from pageferry.agent.errand import Say
from pageferry.applied import Destination
from pageferry.config import Settings
from pageferry.errors import KernelError, SchedulerError, Stopped, UsageError, Vanished
from pageferry.kernel.topology import read_topology
from pageferry.mems.narrowing import Mems, Narrowed
from pageferry.mems.record import FOLDER
from pageferry.policy import Facts, Mode, Policy
from pageferry.replay import kept
from pageferry.schedulers.control import nodes_here, write_outcome
from pageferry.schedulers.slurm_cgroups import slurm_job_suspension, slurm_job_user_pids
from pageferry.schedulers.slurm_commands import SlurmCommands
from pageferry.schedulers.slurm_config import cluster_name

PROGRESS_SECONDS = 1.0

Chore = Callable[[Say], Mapping[str, Any]]
"""A function for `errand.begin`."""


def ask(jobs: Sequence[int]) -> Chore:
    """Return for each of these jobs its state, its comments, what rules ask of it, and Slurm's name for this host.

    The answer has the job's user, too.
    """

    def work(_say: Say) -> Mapping[str, Any]:
        control, cluster = SlurmCommands(), cache(cluster_name)
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
                "owners_comment": record.comment,
                "hosts": names or [socket.gethostname().partition(".")[0]],
                "uid": record.user_id,
                "facts": asdict(record.facts(cluster())),
                "name": record.name,
            }
        return {"jobs": answers}

    return work


def move(
    job: int,
    destination: Destination,
    policy: Policy,
    snapshots: Path | None = None,
    *,
    runs: bool = False,
    settles: bool = False,
    mems: Path = FOLDER,
) -> Chore:
    """Move a job's memory as its policy says, or only plan to, and say now and then how far it is.

    The answer is the outcome, with `mems` if its cpuset.mems was to be narrowed (`Narrowed`, as plain data), or could
    not be widened. `snapshots`: where what the plan is made from is kept; `runs`: the job does, meanwhile; `settles`:
    its memory is to stay there; `mems`: where is recorded what is narrowed.
    """

    def work(say: Say) -> Mapping[str, Any]:
        narrows = settles and policy.narrow_mems and policy.mode is Mode.MOVE
        ours, narrowed = Mems(job, mems), None
        with applied.interruptible() as moving, kept.recording(snapshots, job) as seen:
            asked = applied.request(policy, destination, read_topology(), runs=runs)
            try:
                ours.admit(asked.target) if narrows else ours.widen()
                groups = ours.groups() if narrows else ()
            except KernelError as error:
                narrowed = Narrowed(why=str(error))
            outcome = applied.carried(policy, slurm_job_user_pids(job), asked, _progress(say, moving), seen)
        # Out here SIGINT, which is blocked in errands, neither breaks this off nor costs the outcome.
        if narrows and narrowed is None and not outcome["refused"]:
            narrowed = ours.narrow(groups, outcome, asked.target.nodes, asked.reserve_bytes)
        elif narrows:
            try:
                ours.widen()
            except KernelError as error:
                narrowed = Narrowed(why=str(error))
        return outcome | ({"mems": narrowed.as_plain()} if narrowed is not None else {})

    return work


def widen(job: int, mems: Path) -> Chore:
    """Give a job back the cpuset.mems that Slurm wrote, if it is narrowed; say whether it was."""

    def work(_say: Say) -> Mapping[str, Any]:
        return {"widened": Mems(job, mems).widen()}

    return work


def _progress(say: Say, moving: Callable[[], None]) -> Callable[[int, int], None]:
    """Return what takes a move's progress in pages; the agent, which wakes up for it, hears it once a second.

    `moving` is told that there is any.
    """
    said_at = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal said_at
        moving()
        if time.monotonic() >= said_at + PROGRESS_SECONDS:
            said_at = time.monotonic()
            say({"done_bytes": done * mmap.PAGESIZE, "of_bytes": of * mmap.PAGESIZE})

    return tell


def bring_home(
    jobs: Mapping[int, Facts | None],
    settings: Settings,
    snapshots: Path | None = None,
    left: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
) -> Chore:
    """Bring the spilled memory of jobs home, live and one after another; say of each what became of it.

    `left` is `applied.homecomings`'s.
    `jobs`: what is known of each; Slurm is asked about others with enough away, if the rules want to know, and what it
    says is passed on. Said then is how much is away on each node. Each is looked at again when its turn comes: it may
    have been given other nodes, or suspended. What begins and ends is said: SIGINT in between stops that one alone.
    """

    def work(say: Say) -> Mapping[str, Any]:
        known = _known(jobs, settings, say, left) if settings.asks_of_jobs else jobs
        policies = {job: settings.policy(facts or Facts("slurm")) for job, facts in known.items()}
        moved = 0
        first = applied.homecomings(policies, left=left, seen=lambda far: say({"far": far}))
        for job in [found.job for found in first]:
            policy = policies[job]
            if slurm_job_suspension(job).asked or not (fresh := applied.homecomings({job: policy}, left=left)):
                continue
            signal.sigtimedwait({signal.SIGINT}, 0)  # it came late, and was meant for the one before
            try:
                with applied.interruptible() as moving, kept.recording(snapshots, job) as seen:
                    say({"begins": job})
                    pids, asked = slurm_job_user_pids(job), fresh[0].request
                    outcome = applied.carried(policy, pids, asked, lambda _done, _of: moving(), seen)
            except (Vanished, Stopped):
                continue
            finally:
                say({"ends": job})
            moved += 1
            say({"job": job, "nodes": fresh[0].request.target.nodes, "outcome": outcome, "rule": policy.rule})
        return {"jobs": moved}

    return work


def _known(
    jobs: Mapping[int, Facts | None],
    settings: Settings,
    say: Say,
    left: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
) -> dict[int, Facts | None]:
    """Return what is known of jobs once Slurm was asked about those of which nothing is; that may be nothing still.

    It is asked only about jobs with memory away that a rule may want at home.
    """
    control, cluster, topology = SlurmCommands(), cache(cluster_name), read_topology()
    least = min([settings.spill.least_bytes, *(rule.spill.least_bytes or 0 for rule in settings.rule)])
    known, special = dict(jobs), settings.host.special.on(topology)
    for job in [job for job, facts in jobs.items() if facts is None]:
        if (spill.far_bytes(job, topology, special=special - {*left.get(job, ())}) or 0) < max(least, 1):
            continue
        with suppress(UsageError, SchedulerError):
            facts = known[job] = control.job(job).facts(cluster())
            say({"known": job, "facts": asdict(facts)})
    return known


def write_back(job: int, hosts: Sequence[str], text: str, served: str) -> Chore:
    """Put the outcome of the request `served` where the operator looks: the job's AdminComment, this host's part.

    A host with several slurmd has a part for each.
    """

    def work(_say: Say) -> Mapping[str, Any]:
        written = [write_outcome(SlurmCommands(), job, host, text, served=served) for host in hosts]
        return {"written": all(written)}

    return work

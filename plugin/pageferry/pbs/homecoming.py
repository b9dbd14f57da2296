"""Spilled memory of PBS's jobs on its way home, once another has ended: a job at a time, in slices.

Who has some, and what is gained, is `spill`'s; when it is looked for is left to the callers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from pageferry import applied, spill
from pageferry.config import Settings
from pageferry.errors import Vanished
from pageferry.pbs import record
from pageferry.pbs.case import Say, Served
from pageferry.pbs.record import FOLDER
from pageferry.policy import Facts, Policy
from pageferry.replay import kept
from pageferry.schedulers.pbs import is_stopped, owner
from pageferry.schedulers.pbs_cgroups import pbs_job_ids, pbs_job_pids

WAIT_SECONDS = 1.0
"""How long after a job has ended spilled memory is looked for: its own must be free first."""

SLICE_SECONDS = 15.0
"""How long a job is moved at a time while it runs on, the look at it included: a suspension waits for no more."""


def bring_home(settings: Settings, say: Say, folder: Path = FOLDER, snapshots: Path | None = None) -> int:
    """Bring the spilled memory of PBS's jobs home, live, one by one; say what became of each, and return how many.

    Said first is how much is away on each node.
    """

    def policy_of(job: str) -> Policy:
        return settings.policy(record.load(job, folder).facts or Facts("pbs"))

    def candidates(jobs: Iterable[str], seen: spill.Seen = lambda _far: None) -> list[spill.Homecoming[str]]:
        jobs = [job for job in jobs if not is_stopped(pbs_job_pids(job)) and not _sent_elsewhere(job, folder)]
        policies = {job: policy_of(job) for job in jobs}
        left = {job: record.load(job, folder).left for job in jobs}
        return applied.homecomings(policies, left=left, groups_of=spill.pbs_groups, seconds=SLICE_SECONDS, seen=seen)

    moved = 0
    for job in [found.job for found in candidates(pbs_job_ids(), lambda far: say({"far": far}))]:
        # In slices, each with a look of its own: it may have been suspended, or given other nodes, and others wait.
        while _slice_home(job, candidates, say, folder=folder, policy=policy_of(job), snapshots=snapshots):
            moved += 1
    return moved


def _sent_elsewhere(job: str, folder: Path) -> bool:
    """Say whether a request had a job's memory brought to other nodes than PBS gave it: there it is at home."""
    known = record.load(job, folder)
    return bool(known.homes and known.placed) and set(known.homes) != set(known.placed)


def _slice_home(
    job: str,
    candidates: Callable[[list[str]], list[spill.Homecoming[str]]],
    say: Say,
    *,
    folder: Path,
    policy: Policy,
    snapshots: Path | None,
) -> bool:
    """Bring a part of a job's spilled memory home, and say whether there may be more; not if somebody else moves it."""
    began = time.time()
    with suppress(Vanished), record.alone(job, folder, lambda: True) as ours:
        for found in candidates([job]) if ours else ():
            pids = pbs_job_pids(job)
            with kept.recording(snapshots, job) as seen:
                outcome = applied.carried(policy, pids, found.request, seen=seen)
            if outcome["complete"]:
                record.save(job, msgspec.structs.replace(record.load(job, folder), left=()), folder)
            nodes, uid = found.request.target.nodes, owner(pids)
            served = Served(job, "spill", nodes, outcome=outcome, began=began, uid=-1 if uid is None else uid)
            say(replace(served, rule=policy.rule).as_dict())
            return bool(outcome["moved_bytes"]) and not outcome["complete"]
    return False

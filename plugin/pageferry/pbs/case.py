"""An event of PBS's for a job, and what was done for it, as values."""

from __future__ import annotations

import math
import pwd
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pageferry.config import Settings
from pageferry.pbs.event import Kind, PbsJob
from pageferry.pbs.record import FOLDER
from pageferry.policy import Policy
from pageferry.schedulers.pbs import job_pids, known_pids

Say = Callable[[Mapping[str, Any]], None]
"""Who waits for the job is told {"held": true}, and lets it go on; or {"live": why}, and can only wait for the end.

With "already": true it is held by another of ours, for an earlier resume.
{"parks": true} is for whoever may want a suspended job's move to be stopped, by SIGINT from then on.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """What has happened to a job on this host, which goes by the names `hosts`; `folder` has the jobs' records.

    `until`: when MoM no longer waits; a job that it has let go since is not held any more. `snapshots`: where what the
    plan is made from is kept, if anywhere.
    """

    kind: Kind
    job: PbsJob
    hosts: frozenset[str]
    settings: Settings
    folder: Path = FOLDER
    until: float = math.inf
    snapshots: Path | None = None

    @property
    def policy(self) -> Policy:
        """What holds for the job."""
        return self.settings.policy(self.job.facts())

    def pids(self) -> frozenset[int]:
        """Return the job's processes."""
        return pids(self.job)


@dataclass(frozen=True, slots=True)
class Served:
    """What was done for a job. `outcome` as `report.outcome_json` has it; None: there was nothing to do.

    `moments` of its stop, by name, in seconds since 1970, as far as they are known here.
    """

    job: str
    event: str
    nodes: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    outcome: Mapping[str, Any] | None = None
    error: str | None = None
    request: str = ""
    uid: int = -1
    seconds_stopped: float = 0.0
    released_at: float = 0.0
    moments: Mapping[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    rule: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def pids(job: PbsJob) -> frozenset[int]:
    """Return the processes that a job has here."""
    return job_pids(job.id, job.session, user_id(job.user) if job.user else None)


def known_at_once(job: PbsJob) -> frozenset[int]:
    """Return those of its processes that are found without asking any process: what is asked may not answer."""
    return known_pids(job.id, job.session, user_id(job.user) if job.user else None)


def user_id(name: str) -> int:
    """Return a user's ID, -1 if there is none of that name here."""
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return -1

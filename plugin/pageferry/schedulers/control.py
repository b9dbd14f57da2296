"""Asks Slurm's controller about a job and tells it what to do: one protocol, two ways.

`slurm_commands` uses Slurm's commands, `slurm_api` pyslurm. Jobs may be named by their own ID or as "123_4"; what is
told of one array task is told of that one alone, also where its ID is the array's. The jobs of this host, and their
processes, are found without the controller: see `slurm`. What a comment means is left to `comment`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pageferry.comment import is_superseded, merge_outcome
from pageferry.errors import SchedulerError, UsageError
from pageferry.policy import Facts
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups

READ_SECONDS = 5.0
WRITE_SECONDS = 30.0

_JOB_ID = re.compile(r"[1-9][0-9]{0,9}(?:_(?:0|[1-9][0-9]{0,9}))?")
_ATTEMPTS = 6
_LOOK_AGAIN_SECONDS = 1.0
_SCOPE = re.compile(r"(.+)_slurmstepd\.scope")
_LEGACY = re.compile(r"slurm_(.+)")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the controller knows it.

    `id` is the job's own ID, the one in its cgroups' names; `address` names it alone to Slurm ("123_4" for a task).
    `state` is Slurm's long word, such as RUNNING. `admin_comment` is as it stands, but for blanks at its end and what
    is beyond `comment.FIELD_BYTES`, and so is `comment`, the user's own; all other names are printable. `hosts` are
    Slurm's NodeNames, in Slurm's order; none while the job is pending. `features`: those that the job asked for.
    `num_nodes`, `num_cpus`: on all its hosts; None where Slurm's answer cannot be read.
    """

    id: int
    address: str
    state: str
    user_id: int | None
    hosts: tuple[str, ...]
    admin_comment: str
    partition: str
    name: str
    comment: str = ""
    qos: str = ""
    account: str = ""
    user_name: str = ""
    features: tuple[str, ...] = ()
    num_nodes: int | None = None
    num_cpus: int | None = None

    def facts(self, cluster: str | None) -> Facts:
        """Return what the site's rules may ask of the job; `cluster`: Slurm's name for it, None if nobody says."""
        return Facts(
            "slurm",
            cluster=cluster,
            partition=self.partition,
            qos=self.qos,
            account=self.account,
            user=self.user_name,
            job_name=self.name,
            features=self.features,
            nodes=self.num_nodes,
            cpus=self.num_cpus,
        )


def features_of(constraint: str) -> tuple[str, ...]:
    """Return the features that a job's constraint names, each once, whatever it says of how many and which of them.

    >>> features_of("[rack1*2&rack2*4]|gpu")
    ('rack1', 'rack2', 'gpu')
    """
    words = re.split(r"[\[\]()&|,]", constraint)
    return tuple(dict.fromkeys(name for word in words if (name := word.partition("*")[0].strip().lstrip("!"))))


class Control(Protocol):
    """A way to the controller.

    All raise UsageError for what is no job or has ended, SchedulerError when the controller does not answer in time
    (READ_SECONDS, WRITE_SECONDS), refuses, or says what cannot be read. Each has one line of text.
    """

    def describe(self) -> str:
        """Return which way this is, for people."""
        ...

    def job(self, job_id: int | str) -> JobRecord:
        """Return what the controller knows of a job."""
        ...

    def suspend(self, job_id: int | str) -> None:
        """Have a job suspended; it returns before the job is frozen. One that is suspended already is success."""
        ...

    def resume(self, job_id: int | str) -> None:
        """Have a job resumed. One that is not suspended is success."""
        ...

    def set_admin_comment(self, job_id: int | str, text: str) -> None:
        """Write a job's AdminComment, over the one that is there."""
        ...


def checked_job_id(job_id: int | str) -> str:
    """Return a job ID as text; raises UsageError for what is none."""
    text = str(job_id)
    if _JOB_ID.fullmatch(text) is None:
        raise UsageError(f"not a Slurm job ID: {text[:80]!a}")
    return text


def write_outcome(
    control: Control, job_id: int, host: str, text: str, *, served: str, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Write a host's outcome into a job's AdminComment, and look whether it is there; say whether it is.

    `served` is the request that it is of. Where another one stands in the comment by now, that is left alone: it waits
    to be served, and this outcome is in the history.

    The agents of a job's other hosts may write at the same moment, and the last one wins: the one who finds its own
    outcome gone writes again. So that it finds it, it looks only after all who had read the comment before have
    written; by chance not all at once again. Raises as Control does.
    """
    for _ in range(_ATTEMPTS):
        record = control.job(job_id)
        if is_superseded(record.admin_comment, host, served):
            return True
        wanted = merge_outcome(record.admin_comment, host, text, record.hosts)
        if wanted == record.admin_comment:
            return f"{host}: " in wanted
        control.set_admin_comment(job_id, wanted)
        if len(record.hosts) > 1:
            sleep(_LOOK_AGAIN_SECONDS * random.uniform(1, 2))  # noqa: S311
        if control.job(job_id).admin_comment == wanted:
            return True
    return False


def nodes_here(job_id: int, hosts: Collection[str], host_name: str, root: Path = Path("/")) -> tuple[str, ...]:
    """Return which of a job's `hosts` this host is, in Slurm's own names; several where several slurmd run here.

    Slurm's node name may be another than `host_name`. It is in the path of the job's cgroups where Slurm was built
    for several slurmd on a host; a job with one host that has cgroups here is on this one.
    """
    groups = slurm_job_cgroups(job_id, root)
    parts = {part for group in groups for part in group.parts}
    matches = [pattern.fullmatch(part) for pattern in (_SCOPE, _LEGACY) for part in parts]
    found = {match[1] for match in matches if match is not None} & set(hosts)
    if not found and groups and len(hosts) == 1:
        found = set(hosts)
    if not found:
        found = {host for host in hosts if host_name in {host, host.partition(".")[0]}}
        found |= {host for host in hosts if host == host_name.partition(".")[0]}
    return tuple(host for host in hosts if host in found)


def refused(what: str, said: str) -> UsageError | SchedulerError:
    """Return the error that Slurm's own words stand for; `what` was asked."""
    if "Invalid job id" in said:
        return UsageError(f"{what}: no such job")
    if "already finished" in said or "already completing or completed" in said:
        return UsageError(f"{what}: the job has ended")
    if "permission denied" in said or "Invalid user id" in said:
        return SchedulerError(f"{what}: Slurm wants the rights of an operator or administrator")
    return SchedulerError(f"{what}: {said or 'Slurm does not say why'}")


def is_not_suspended(said: str) -> bool:
    """Say whether Slurm refused to resume a job because it runs."""
    return "is not suspended" in said


def silent(what: str, seconds: float, *, writing: bool) -> SchedulerError:
    """Return the error for a controller that did not answer in time."""
    late = "; it may still be done" if writing else ""
    return SchedulerError(f"{what}: slurmctld did not answer within {seconds:.0f} s{late}")

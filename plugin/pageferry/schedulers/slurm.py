"""Finds Slurm's jobs on this host: from the cgroups first, then with what scontrol adds.

Everything that scontrol prints of a job's name is hostile: a name may hold blanks, line ends and whole forged
records. What cannot be told from a forgery is left out. Source: Slurm's src/api/job_info.c, slurm_sprint_job_info.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import SchedulerError, UsageError, Vanished
from pageferry.kernel.files import printable, shown
from pageferry.kernel.procfs import read_status
from pageferry.schedulers.base import Job
from pageferry.schedulers.slurm_cgroups import (
    legacy_user_id,
    slurm_job_cgroups,
    slurm_job_cpusets,
    slurm_job_holds,
    slurm_job_user_pids,
    slurm_jobs,
)

_TIME_LIMIT_SECONDS = 5.0
_JOB_ID = re.compile(r"([1-9][0-9]{0,9})(?:([_+])(0|[1-9][0-9]{0,9}))?")
_HEAD = re.compile(
    r"JobId=(?P<raw>[0-9]{1,10})"
    r"(?: ArrayJobId=(?P<array>[0-9]{1,10}) ArrayTaskId=(?P<task>\S+))?"
    r"(?: HetJobId=(?P<het>[0-9]{1,10}) HetJobOffset=(?P<offset>[0-9]{1,10}))?"
    r" JobName="
)
# Bounded, and nothing to go back for: a user may write tens of thousands of them into a comment.
_USER = re.compile(r"\bUserId=(?:[^\s(]{1,256}\((?P<user>[0-9]{1,10})\))?")
_STATE = re.compile(r"\bJobState=(?P<state>[A-Z_]*)")


@dataclass(frozen=True, slots=True)
class Slurm:
    """Slurm on the host whose file system is at `root`; `scontrol` is the command or the path to it."""

    root: Path = Path("/")
    scontrol: str = "scontrol"

    def parse_job_id(self, text: str) -> str:
        """Return a job ID, "123", "123_4" (task of an array) or "123+1" (component of a heterogeneous job).

        Raises UsageError for any other text.
        """
        if _JOB_ID.fullmatch(text) is None:
            raise UsageError(f"not a Slurm job ID: {text[:80]!a}")
        return text

    def find(self, job_id: str) -> Job:
        """Return a job that has cgroups on this host; array tasks and components under their own ID.

        State and name are scontrol's, or None when it does not say within 5 s; the user is Slurm's or, failing
        that, the one that all processes run as. Raises UsageError for a job that is not here, SchedulerError
        when "123_4" or "123+1" cannot be resolved.
        """
        wanted = self.parse_job_id(job_id)
        raw = int(wanted) if wanted.isdigit() else _resolve(self._ask(wanted), wanted)
        cgroups = slurm_job_cgroups(raw, self.root)
        if not cgroups:
            raise UsageError(f"no such job on this host: {wanted}")
        pids = slurm_job_user_pids(raw, self.root)
        details = self._details(raw)
        # Slurm's root made the path; scontrol's word can be withheld by a hostile name; processes end.
        sources = (legacy_user_id(cgroups), details.user_id, _owner(pids, self.root))
        user_id = next((source for source in sources if source is not None), None)
        outer, inner = slurm_job_cpusets(raw, self.root)
        return Job(
            id=str(raw),
            scheduler="slurm",
            cgroups=cgroups,
            pids=pids,
            state=details.state,
            user_id=user_id,
            name=details.name,
            holds=slurm_job_holds(raw, self.root),
            cpusets_outer=outer,
            cpusets_inner=inner,
        )

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that have cgroups on this host, by ID; one that ends meanwhile is left out."""
        found = []
        for raw in slurm_jobs(self.root):
            with suppress(UsageError):
                found.append(self.find(str(raw)))
        return tuple(found)

    def _details(self, raw: int) -> _Details:
        try:
            answer = self._ask(str(raw))
            if task := _array_task(answer, raw):  # "123" may be a task and stand for its array as well
                answer = self._ask(task)
        except (SchedulerError, UsageError):
            return _NOTHING
        return _parse_details(answer, raw)

    def _ask(self, job_id: str) -> str:
        try:
            answer = subprocess.run(
                [self.scontrol, "show", "job", "-o", job_id],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIME_LIMIT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SchedulerError(f"scontrol did not answer within {_TIME_LIMIT_SECONDS:.0f} s") from error
        except OSError as error:
            raise SchedulerError(f"{self.scontrol} cannot be run: {error.strerror}") from error
        if answer.returncode != 0:
            if b"Invalid job id specified" in answer.stderr:
                raise UsageError(f"no such job on this host: {job_id}")
            raise SchedulerError(f"scontrol show job {job_id}: {printable(answer.stderr.strip()[:200])}")
        return answer.stdout.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class _Details:
    state: str | None
    user_id: int | None
    name: str | None


_NOTHING = _Details(None, None, None)


def _resolve(answer: str, wanted: str) -> int:
    """Return the job's own ID. What stands before the first job name is Slurm's alone."""
    head = _HEAD.match(answer)
    if head is not None and wanted in {f"{head['array']}_{head['task']}", f"{head['het']}+{head['offset']}"}:
        return int(head["raw"])
    raise SchedulerError(f"scontrol does not say which job {wanted} is: {shown(answer)}")


def _array_task(answer: str, raw: int) -> str | None:
    """Return the name of the task that is job `raw`, if the answer lists an array; it may be forged."""
    heads = [head for record in _records(answer) if (head := _HEAD.match(record))]
    tasks = [f"{head['array']}_{head['task']}" for head in heads if head["array"] and int(head["raw"]) == raw]
    return tasks[0] if len(heads) > 1 and tasks and _JOB_ID.fullmatch(tasks[0]) else None


def _parse_details(answer: str, raw: int) -> _Details:
    """Return what an answer says of job `raw`: nothing unless it has one record, one user and one state.

    Slurm always prints its own, so a forged one is always one too many.
    """
    head = _HEAD.match(answer)
    users, states = list(_USER.finditer(answer)), list(_STATE.finditer(answer))
    if head is None or int(head["raw"]) != raw or not len(_records(answer)) == len(users) == len(states) == 1:
        return _NOTHING
    name = printable(answer[head.end() : users[0].start()].removesuffix(" ").encode("utf-8", "backslashreplace"))
    user = int(users[0]["user"] or -1)
    return _Details(states[0]["state"] or None, user if 0 <= user < 1 << 32 else None, name)


def _records(answer: str) -> list[str]:
    return [record for record in re.split(r"^(?=JobId=)", answer, flags=re.MULTILINE) if record]


def _owner(pids: frozenset[int], root: Path) -> int | None:
    """Return the real user ID that all processes have, None if they differ or have ended."""
    users: set[int] = set()
    for pid in pids:
        with contextlib.suppress(Vanished):
            users.add(read_status(pid, root).uids[0])
    return users.pop() if len(users) == 1 else None

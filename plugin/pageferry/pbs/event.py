"""What PBS's hook says: one JSON object, checked as a whole before anything of it is used.

The hook runs inside MoM and knows the job; what is to be done is decided by those who are handed this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pageferry.errors import UsageError
from pageferry.kernel.files import printable
from pageferry.policy import Facts
from pageferry.schedulers.pbs import is_job_id

TEXT_CHARACTERS = 1024
"""The hook cuts a request here."""

_Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS)]


class Kind(Enum):
    """Which of MoM's hook events it was."""

    BEGIN = "execjob_begin"
    POSTSUSPEND = "execjob_postsuspend"
    PRERESUME = "execjob_preresume"
    RESIZE = "execjob_resize"
    EPILOGUE = "execjob_epilogue"
    END = "execjob_end"
    PERIODIC = "exechost_periodic"


class PbsJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job as MoM has it here.

    `session`: of its first task on this host, 0 where MoM has none. `asked`: the request that came with the job when it
    was submitted; `comment`: what an operator wrote. Both are read as `comment.parse` does, the first also without
    its prefix. `queue` and what follows is for the site's rules; `nodes` and `cpus` are 0 where MoM does not know them.
    """

    id: Annotated[str, Meta(max_length=256)]
    exec_vnode: Annotated[str, Meta(max_length=32768)] = ""
    session: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    user: Annotated[str, Meta(max_length=256)] = ""
    asked: _Text = ""
    comment: _Text = ""
    queue: Annotated[str, Meta(max_length=256)] = ""
    account: Annotated[str, Meta(max_length=256)] = ""
    project: Annotated[str, Meta(max_length=256)] = ""
    name: Annotated[str, Meta(max_length=256)] = ""
    nodes: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    cpus: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0

    def facts(self) -> Facts:
        """Return what the site's rules may ask of the job."""
        return Facts(
            "pbs",
            cluster=self.id.partition(".")[2] or None,
            partition=_said(self.queue),
            account=_said(self.account or self.project),
            user=_said(self.user),
            job_name=_said(self.name),
            nodes=self.nodes or None,
            cpus=self.cpus or None,
        )


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event, of one job but for `exechost_periodic`, which has several.

    `hosts`: the names that MoM's host goes by; `keep`: all jobs that there are on it; `until`: when (by the monotonic
    clock) MoM no longer waits for an answer.
    """

    event: Kind
    jobs: Annotated[list[PbsJob], Meta(max_length=4096)] = []
    hosts: Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=8)] = []
    keep: Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=4096)] = []
    until: Annotated[float, Meta(ge=0)] = math.inf


def _said(text: str) -> str | None:
    return printable(text.encode("utf-8", "surrogatepass")) or None


def parse(message: Mapping[str, Any]) -> Event:
    """Return what a message with the verb `pbs` says. Raises UsageError, which names what is wrong with it."""
    try:
        event = msgspec.convert({key: value for key, value in message.items() if key != "verb"}, Event)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"not an event: {printable(str(error)[:200].encode())}") from error
    for job in event.jobs:
        if not is_job_id(job.id):
            raise UsageError(f"not a PBS job ID: {job.id[:80]!a}")
    if event.event is not Kind.PERIODIC and len(event.jobs) != 1:
        raise UsageError(f"{event.event.value}: of one job, not of {len(event.jobs)}")
    return event

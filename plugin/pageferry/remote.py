"""Moves a job from a login node, with an operator's rights: a request in its comment, then suspend and resume.

What is then done on the job's hosts is their agents'; the outcome comes back in the comment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from pageferry.comment import Request, format_request, parse
from pageferry.errors import PageferryError, SchedulerError, UsageError
from pageferry.schedulers.control import Control

ASK_SECONDS = 1.0
SUSPEND_SECONDS = 60.0

SETTLE_SECONDS = 3.0
"""Slurm says SUSPENDED about two seconds before the job's processes are frozen (SIGTSTP comes first)."""


def move(
    control: Control,
    job: str,
    request: Request,
    seconds: float,
    *,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Have a running job moved, and return what its hosts say of it, or "" if they had not all said it in `seconds`.

    `tell` gets a line for the operator as soon as there is something to wait for. Raises UsageError for a job that does
    not run, SchedulerError if Slurm refuses; the job is not left suspended.
    """
    record = control.job(job)
    if record.state == "SUSPENDED":
        command = f"scontrol update JobId={job} AdminComment='{format_request(request)}'"
        raise UsageError(f"job {job} is suspended: {command}, and resume it")
    if record.state != "RUNNING":
        raise UsageError(f"job {job} does not run: it is {record.state}")
    control.set_admin_comment(job, format_request(request))
    tell(f"job {job} is not on this host: {', '.join(record.hosts)} asked, through {control.describe()}")
    try:
        control.suspend(job)
    except BaseException:
        # It may have been suspended all the same, by us; and no later suspension shall serve what has failed now.
        with suppress(PageferryError):
            control.resume(job)
        with suppress(PageferryError):
            control.set_admin_comment(job, record.admin_comment)
        raise
    try:
        _wait_until_frozen(control, job, sleep)
    finally:
        _resume(control, job)
    return _outcome(control, job, seconds, sleep)


def _wait_until_frozen(control: Control, job: str, sleep: Callable[[float], None]) -> None:
    waited = 0.0
    while control.job(job).state == "RUNNING" and waited < SUSPEND_SECONDS:
        sleep(ASK_SECONDS)
        waited += ASK_SECONDS
    sleep(SETTLE_SECONDS)


def _resume(control: Control, job: str) -> None:
    try:
        control.resume(job)
    except SchedulerError as error:
        raise SchedulerError(f"{error}; job {job} may still be suspended: scontrol resume {job}") from error


def _outcome(control: Control, job: str, seconds: float, sleep: Callable[[float], None]) -> str:
    waited = 0.0
    while True:
        comment = control.job(job).admin_comment
        if not _is_asked(comment):  # nobody has yet to answer
            return comment
        if waited >= seconds:
            return ""
        sleep(ASK_SECONDS)
        waited += ASK_SECONDS


def _is_asked(comment: str) -> bool:
    try:
        return parse(comment) is not None
    except UsageError:  # somebody has typed another one meanwhile, which the agents will refuse
        return True

"""Moves a job from a login node, with an operator's rights: a request in its comment, then suspend and resume.

What is then done on the job's hosts is their agents'; the outcome comes back in the comment.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pageferry.comment import Request, format_request, parse
from pageferry.errors import PageferryError, SchedulerError, UsageError
from pageferry.schedulers.control import Control, JobRecord

ASK_SECONDS = 1.0
AGAIN_SECONDS = 10.0
RESUME_SECONDS = 300.0
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
    with _signals_raised():
        return _moved(control, job, record, seconds, tell, sleep)


def _moved(  # noqa: PLR0917 - a step of its one caller
    control: Control,
    job: str,
    record: JobRecord,
    seconds: float,
    tell: Callable[[str], None],
    sleep: Callable[[float], None],
) -> str:
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
        _resume(control, job, tell, sleep)
    return _outcome(control, job, seconds, sleep)


def _wait_until_frozen(control: Control, job: str, sleep: Callable[[float], None]) -> None:
    waited = 0.0
    while control.job(job).state == "RUNNING" and waited < SUSPEND_SECONDS:
        sleep(ASK_SECONDS)
        waited += ASK_SECONDS
    sleep(SETTLE_SECONDS)


def _resume(control: Control, job: str, tell: Callable[[str], None], sleep: Callable[[float], None]) -> None:
    """Resume a job that we have had suspended; a controller that is away, or changes over, is waited for."""
    waited = 0.0
    while True:
        try:
            control.resume(job)
        except SchedulerError as error:
            if waited >= RESUME_SECONDS:
                raise SchedulerError(f"{error}; job {job} may still be suspended: scontrol resume {job}") from error
            tell(f"{error}; job {job} may still be suspended, trying again")
            sleep(AGAIN_SECONDS)
            waited += AGAIN_SECONDS
        else:
            return


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Have a lost terminal or a request to end be an exception, so that the job is resumed first."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

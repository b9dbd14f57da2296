"""What is asked for a PBS job: by its comment, or by what came with its submission.

The texts are `comment`'s; when a request is served is left to the callers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pageferry.comment import PREFIX, Wish, parse
from pageferry.errors import PageferryError, UsageError
from pageferry.kernel.topology import Topology
from pageferry.pbs.event import TEXT_CHARACTERS, PbsJob
from pageferry.pbs.record import Record
from pageferry.policy import Policy
from pageferry_planner.model import Target


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for a job, or why that makes no sense; `fresh`: in its comment, and not served yet."""

    text: str = ""
    wish: Wish | None = None
    error: str | None = None
    fresh: bool = False


def understood(job: PbsJob, hosts: frozenset[str], known: Record, policy: Policy) -> Asked:
    """Return what is asked for a job: once by its comment, else at each event by what came with its submission.

    That is its owner's, and is looked at only if the job's policy lets its owner ask.
    """
    comment = job.comment.strip()
    standing = job.asked.strip().removeprefix(PREFIX) if policy.owners_may_ask else ""
    fresh = comment.startswith(PREFIX) and comment != known.served
    text = comment if fresh else PREFIX + standing if standing else ""
    if not text:
        return Asked()
    try:
        if len(job.comment if fresh else job.asked) >= TEXT_CHARACTERS:
            raise UsageError(f"a request of {TEXT_CHARACTERS} characters or more, of which the hook tells no more")
        request = parse(text)
        wish = request.for_any(hosts) if request is not None else None
        if wish is not None and wish.cpus is not None:
            raise UsageError("cpus=: under PBS a job keeps the CPUs that PBS gave it")
        if wish is not None and wish.now:
            raise UsageError("now: PBS tells a host of no comment before the resume; use pageferry move on the host")
    except UsageError as error:
        return Asked(text, None, str(error), fresh)
    return Asked(text, wish, None, fresh)


def unfit(wish: Wish | None, topology: Topology) -> str | None:
    """Return why this host cannot do what is wished."""
    from pageferry import ferry

    try:
        if wish is not None:
            ferry.check(Target(wish.nodes), topology)
    except PageferryError as error:
        return str(error)
    return None

"""The command that PBS's hook starts on a host without an agent; what it does for an event is `pbs.serve`'s."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pageferry.cli.options import CONFIG
from pageferry.cli.says import complain

if TYPE_CHECKING:
    from pageferry.pbs.event import Event


@click.command("pbs-event", hidden=True)
@CONFIG
def pbs_event(config: Path | None) -> int:
    """Serve an event of PBS's, a line of JSON on standard input, without an agent: for its hook.

    The first line of the answer is for MoM, which waits for it; what is under way then goes on.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with suppress(OSError):  # MoM is spared when memory runs out; what its hook starts need not be
        Path("/proc/self/oom_score_adj").write_text("0")
    from pageferry import config as settings
    from pageferry import wire
    from pageferry.pbs import event as events
    from pageferry.pbs.event import Kind

    chosen = settings.load(config or settings.PATH)
    message = events.parse(wire.decoded(sys.stdin.buffer.readline(wire.LINE_BYTES)))
    if message.event is Kind.PERIODIC:
        return _periodic(message, chosen)
    if message.event in {Kind.EPILOGUE, Kind.END}:
        return _ended(message, chosen)
    return _job(message, chosen)


def _job(event: Event, settings: Any) -> int:
    from pageferry.pbs import at_once, hold, record, serve
    from pageferry.pbs.case import Case
    from pageferry.pbs.event import Kind

    (job,), hosts, refused = event.jobs, frozenset(event.hosts), ""
    with suppress(Exception):  # what was left by another is no reason not to serve this one
        hold.release_left()
    if event.event is Kind.BEGIN:
        at_once.begin(job, hosts)
        _say({"begun": True})
        return 0
    if event.event is Kind.PRERESUME:
        with record.alone(job.id, until=lambda: True) as ours:
            found = at_once.ready(Case(event.event, job, hosts, settings, until=event.until))
        refused = found.refused
        if ours and found.settled:
            _say({"done": True, "told": refused or record.load(job.id).told})
            return 0
    else:
        _say({"begun": True})
        if event.event is Kind.POSTSUSPEND:
            at_once.unsettle(job)

    def say(message: Mapping[str, Any]) -> None:
        if message.get("held"):
            _say({"held": True, "told": refused or "moving"})

    served = serve.serve(Case(event.event, job, hosts, settings, until=event.until), say)
    _say({"done": True, "told": refused or record.load(job.id).told})
    if served.error:
        complain(f"job {job.id}: {served.error}")
    return 0


def _periodic(event: Event, settings: Any) -> int:
    from pageferry.pbs import at_once, hold, record, serve
    from pageferry.pbs.case import Case

    hosts = frozenset(event.hosts)
    with suppress(Exception):
        hold.release_left()
    outcomes = {job.id: told for job in event.jobs if (told := record.load(job.id).told)}
    _say({"outcomes": outcomes})
    record.forget_others([*event.keep, *(job.id for job in event.jobs)])
    for job in event.jobs:
        if at_once.take_note(job, hosts):
            serve.serve(Case(event.event, job, hosts, settings), lambda _message: None)
    return 0


def _ended(event: Event, settings: Any) -> int:
    from pageferry.pbs import record

    _say({"begun": True})
    record.forget(event.jobs[0].id)
    if settings.spills:
        from pageferry.pbs import homecoming

        time.sleep(homecoming.WAIT_SECONDS)
        homecoming.bring_home(settings, lambda _message: None)
    return 0


def _say(answer: Mapping[str, Any]) -> None:
    """Answer the hook, which may have gone."""
    with suppress(OSError):
        os.write(1, json.dumps(answer).encode() + b"\n")

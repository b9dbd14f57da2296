"""The command that writes what a plan is made from, and the plan that is made from such a file.

The file is `replay`'s. Nothing of this host is looked at for a file: it may be another host's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pageferry.cli.options import FROM_SNAPSHOT, named, read_request, request_options
from pageferry.cli.says import warn_of_gaps, warn_of_use
from pageferry.errors import UsageError

if TYPE_CHECKING:
    from pageferry.ferry import Inputs
    from pageferry.replay.write import Recorded
    from pageferry_planner.model import Plan, Snapshot

_TARGET = {
    "nodes": "nodes",
    "strategy": "strategy",
    "sources": "sources",
    "when_full": "when_full",
    "spill_to": "spill",
    "order": "order",
    "huge_pages": "huge_pages",
    "weights": "weights",
    "config": "special",
    "hugetlb_surplus": "hugetlb_surplus",
}
"""Option → field of the target."""

_RULES = {"stay": "--stay", "no_reference_count": "--no-reference-count", "no_xattrs": "--no-xattrs"}


@click.command()
@named
@FROM_SNAPSHOT
@request_options
@click.option("--anonymise", is_flag=True, help="Replace the names of files, processes and the job by numbers.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write it [default: stdout].")
def snapshot(
    *,
    job: str | None,
    pid: tuple[int, ...],
    cgroup: str | None,
    from_snapshot: Path | None,
    anonymise: bool,
    out: Path | None,
    **options: Any,
) -> int:
    """Write down all that a plan is made from, for `plan --from-snapshot` on any machine.

    Text, without contents of memory. What is asked for (--to and its like) is noted, and may be asked anew of the
    file. With --from-snapshot, a file is written again, as --anonymise and the options have it.
    """
    from pageferry import ferry, targets
    from pageferry.replay import anonymise as names
    from pageferry.replay import write

    if from_snapshot is not None:
        recorded = _read(from_snapshot, job, pid, cgroup, options)
    else:
        target, request = targets.find(job, pid, cgroup), read_request(**options)
        warn_of_gaps()
        inputs = ferry.look(target.pids, request)
        warn_of_use(request, inputs.snapshot)
        recorded = write.Recorded(target.name, inputs)
    if anonymise:
        recorded = names.anonymised(recorded)
    if out is not None:
        write.save(out, write.lines(recorded))
    else:
        sys.stdout.buffer.writelines(write.lines(recorded))
        sys.stdout.buffer.flush()
    return 0


def plan_of(
    path: Path, job: str | None, pid: tuple[int, ...], cgroup: str | None, options: dict[str, Any]
) -> tuple[Snapshot, Plan]:
    """Return a file's snapshot and its plan, for what the file or the options ask."""
    from pageferry import ferry

    inputs = _read(path, job, pid, cgroup, options).inputs
    if not inputs.request.target.nodes:
        raise UsageError("--to: name the target nodes; the snapshot was made without")
    return inputs.snapshot, ferry.plan_from(inputs)


def _read(path: Path, job: str | None, pid: tuple[int, ...], cgroup: str | None, options: dict[str, Any]) -> Recorded:
    from dataclasses import replace

    from pageferry.replay.read import read

    if job or pid or cgroup:
        raise UsageError("name one target: a job id, --pid, --cgroup or --from-snapshot")
    recorded = read(path)
    given = {name for name in options if _given(name)}
    if "hot" in given:
        raise UsageError("--hot: the job of a file cannot be watched; the file says what it used, if that was seen")
    if recorded.anonymised and (asked := [option for name, option in _RULES.items() if name in given]):
        raise UsageError(f"{asked[0]}: the file's names were replaced, so its rules cannot be asked anew")
    return replace(recorded, inputs=_asked_anew(recorded.inputs, given, options))


def _asked_anew(inputs: Inputs, given: set[str], options: dict[str, Any]) -> Inputs:
    """Return the inputs with what was given on the command line in place of what was asked for then."""
    from dataclasses import replace

    from pageferry_planner.policy import decide

    request = inputs.request
    if "strategy" not in given:
        options = options | {"strategy": request.target.strategy}
    options |= {"config": options["config"] if "config" in given else None}  # no other host's, unless it was named
    asked = read_request(**options, topology=inputs.topology)
    fields = {field: getattr(asked.target, field) for option, field in _TARGET.items() if option in given}
    target = replace(request.target, **fields)
    if "spill_to" not in given and not given.isdisjoint({"config", "nodes"}):  # as it is by default
        spill = target.spill - asked.target.special | target.special.intersection(target.nodes)
        target = replace(target, spill=spill)
    request = replace(request, target=target)
    if "reserve" in given:
        request = replace(request, reserve_bytes=asked.reserve_bytes)
    if not given.isdisjoint(_RULES):
        old = request.rules
        rules = replace(
            old,
            stay=asked.rules.stay if "stay" in given else old.stay,
            reference_count=old.reference_count and asked.rules.reference_count,
            xattrs=old.xattrs and asked.rules.xattrs,
        )
        request = replace(request, rules=rules)
        of = zip(inputs.snapshot.backings, inputs.facts, strict=True)
        verdicts = tuple(decide(backing, facts, rules) for backing, facts in of)
        inputs = replace(inputs, snapshot=replace(inputs.snapshot, verdicts=verdicts))
    return replace(inputs, request=request)


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE

"""What the commands about one job say of its memory policies: which there are, and which do not go with its memory.

A move carries pages; what a process allocates later comes where its policy says, which may be where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from pageferry.errors import PageferryError, one_line
from pageferry.kernel.lists import format_list

if TYPE_CHECKING:
    from pageferry.kernel.mempolicy import Found
    from pageferry_planner.model import Snapshot

ROWS = 10
"""Lines for people at most; what is left out is said in the last one."""

NARROWING = "narrow_mems = true in the job's rule makes them follow when the agent moves it (docs/policy.md)"


def of_job(pids: Iterable[int], snapshot: Snapshot) -> dict[str, Any]:
    """Return the memory policies of a job for a program; `stays_behind`: its memory is elsewhere now.

    That is so where private memory is outside the policy's nodes, and where memory is to be spread over nodes that have
    none of the job's.
    """
    memory = frozenset(snapshot.runs.take(snapshot.movable()).node.tolist())

    def behind(found: Found) -> bool:
        nodes, spread = found.policy.nodes, "interleave" in found.policy.mode
        return not found.occupied <= nodes or (spread and not nodes <= memory)

    return _told(pids, behind)


def after_move(pids: Iterable[int], nodes: Iterable[int]) -> dict[str, Any]:
    """Return the same for a job that was moved to nodes; those of its policies that name others stay behind."""
    target = frozenset(nodes)
    return _told(pids, lambda found: not found.policy.nodes <= target)


def _told(pids: Iterable[int], behind: Callable[[Found], bool]) -> dict[str, Any]:
    from pageferry.kernel import mempolicy

    try:
        policies = mempolicy.read_policies(pids, mempolicy.SECONDS)
    except PageferryError as error:  # what the command is about does not fail for it
        return {"policies": [], "policies_unknown": str(error)}
    rows = [
        {
            "pid": found.pids[0],
            "name": found.name,
            "mode": found.policy.mode,
            "nodes": sorted(found.policy.nodes),
            "processes": len(found.pids),
            "stays_behind": behind(found),
        }
        for found in policies.found
    ]
    return {"policies": rows, "policies_unknown": policies.unknown or None}


def show(answer: Mapping[str, Any], *, narrows: bool) -> None:
    """Print what was found for people, nothing where nobody looked; `narrows`: a rule may narrow such a job's mems."""
    for line in _lines(answer, narrows=narrows):
        click.echo(one_line(line))


def _lines(answer: Mapping[str, Any], *, narrows: bool) -> Iterator[str]:
    rows = answer.get("policies", [])
    for row in rows[:ROWS]:
        several = f"{row['processes']} processes, first pid" if row["processes"] > 1 else "process"
        who = f"{several} {row['pid']}"
        stays = ": stays behind, its memory is elsewhere" if row["stays_behind"] else ""
        yield f"memory policy of {who} ({row['name']}): {row['mode']}:{format_list(row['nodes'])}{stays}"
    if len(rows) > ROWS:
        yield f"and {len(rows) - ROWS} more memory policies"
    if rows:
        hint = f"; {NARROWING}" if narrows else ""
        yield f"a move leaves memory policies as they are: new memory comes where they say{hint}"
    if why := answer.get("policies_unknown"):
        yield f"memory policies {'not known' if not rows else 'not all known'}: {why}"

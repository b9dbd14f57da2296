"""Moves a job before witnesses, and asserts what must hold of every move, whatever the memory.

Each page of the job, told apart by its frame, is in one bucket, and in the ledger with the node that it was on and the
one that it is on; only those on other nodes than they belong on were asked for; the kernel counts as many migrations as
the tally; no content has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from guest import rights, witness
from guest.ranks import Job
from guest.witness import Census
from pageferry import ferry
from pageferry.mover import Limits
from pageferry_planner.model import Bucket, Target
from pageferry_planner.policy import Rules

Object = tuple[str | Path, int, int]


class StandsStill(Protocol):
    """Processes that can tell whether what their memory holds has changed."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Their process IDs."""

    def seal(self) -> None:
        """Remember what their memory holds."""

    def broken(self) -> list[tuple[int, list[int]]]:
        """Return where it holds something else."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A move, and what the witnesses saw before and after it."""

    outcome: ferry.Outcome
    before: Census
    after: Census
    migrated: int
    failed: int

    def __getitem__(self, bucket: Bucket) -> int:
        return self.outcome.tally[bucket]


def request(*nodes: int, limits: Limits | None = None, rules: Rules | None = None) -> ferry.Request:
    """Return the plainest request: all to these nodes."""
    return ferry.Request(Target(nodes), rules or Rules(), limits or Limits())


def prove(
    job: StandsStill,
    wanted: ferry.Request,
    objects: Iterable[Object] = (),
    progress: Callable[[int, int], None] | None = None,
    unmapped: int | None = 0,
) -> Proof:
    """Seal the job, move it, and assert what holds of every move of a job that stays alive and still.

    `unmapped`: how many pages are parts of its huge pages that it has unmapped; the kernel moves those along.
    None: the caller counts them.
    """
    objects = list(objects)
    job.seal()
    before = witness.census(job.pids, objects)
    assert sum(witness.numa_maps(pid).total() for pid in job.pids) == before.sightings
    counters = witness.vmstat()
    outcome = rights.move(job.pids, wanted, progress)
    counters = witness.vmstat() - counters
    after = witness.census(job.pids, objects)
    tally = outcome.tally

    assert (tally.total(), after.total) == (before.total, before.total)
    assert tally[Bucket.VANISHED] == 0
    assert outcome.plan.total() == tally.total()
    assert unmapped is None or counters["pgmigrate_success"] == tally[Bucket.MOVED] + unmapped
    assert counters["oom_kill"] == 0
    assert tally.requested <= before.total - tally[Bucket.IN_PLACE] - tally[Bucket.EXCLUDED]
    assert sum(witness.numa_maps(pid).total() for pid in job.pids) == after.sightings == before.sightings
    assert job.broken() == []
    was, stands = Counter[int](), Counter[int]()
    for (_, node, to, _), pages in outcome.ledger.items():
        was[node] += pages
        stands[to] += pages
    assert was == Counter(before.node.tolist())
    assert stands == Counter(after.node.tolist())
    return Proof(outcome, before, after, counters["pgmigrate_success"], counters["pgmigrate_fail"])


def prove_whole(
    job: Job, *nodes: int, objects: Iterable[Object] = (), rules: Rules | None = None, unmapped: int = 0
) -> Proof:
    """Move all of the job, and assert that each misplaced page was asked for once, and arrived."""
    proof = prove(job, request(*nodes, rules=rules), objects, unmapped=unmapped)
    tally = proof.outcome.tally
    excluded = Counter[bool]()  # by whether they are on one of the nodes
    for (_, node, _, what), pages in proof.outcome.ledger.items():
        excluded[node in nodes] += pages if what in tally.excluded else 0
    assert excluded.total() == tally[Bucket.EXCLUDED]
    assert tally.requested + excluded[False] == proof.before.not_on(*nodes)
    assert tally[Bucket.MOVED] == tally.requested
    assert tally[Bucket.IN_PLACE] + excluded[True] == proof.before.on(*nodes)
    assert proof.after.not_on(*nodes) == excluded[False]
    assert proof.outcome.complete
    return proof

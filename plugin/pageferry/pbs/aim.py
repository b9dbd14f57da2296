"""Where a PBS job's memory is to be after an event: where it is asked to, where PBS has it run, or where it is parked.

Nothing is moved here, and nothing written down.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from pageferry import parking
from pageferry.applied import Destination
from pageferry.errors import UsageError
from pageferry.kernel.topology import Topology, read_topology
from pageferry.pbs.asked import Asked, understood, unfit
from pageferry.pbs.case import Case
from pageferry.pbs.event import Kind
from pageferry.pbs.record import Record
from pageferry.policy import Mode, Policy
from pageferry.schedulers.pbs import is_stopped, job_nodes


@dataclass(frozen=True, slots=True)
class Aim:
    """`nodes`: where a job's memory is to be, none: nobody says. `park`: the same, if it is parked there.

    `known` is what was known before, `policy` what holds now, `placed` what PBS gave the job; `error`: why it cannot
    have what is asked for.
    """

    known: Record
    policy: Policy
    asked: Asked
    placed: tuple[int, ...]
    nodes: tuple[int, ...]
    park: tuple[int, ...]
    error: str | None

    @property
    def moves(self) -> bool:
        """Say whether the job's policy has memory moved, and not only looked at."""
        return self.policy.mode is Mode.MOVE

    @property
    def event(self) -> str | None:
        """Return what the history calls it if a job is parked, or comes back; None for all else."""
        return parking.PARK if self.park else parking.UNPARK if self.known.parked else None

    @property
    def sources(self) -> tuple[int, ...]:
        """Return the nodes that the memory is on, as far as it is known."""
        return self.known.homes if self.park else self.known.parked or self.known.homes

    def is_settled(self, kind: Kind) -> bool:
        """Say whether a job that is about to run has nothing to wait for: its memory is there, or goes nowhere."""
        is_there = self.known.settled == self.nodes or self.error is not None
        return kind is Kind.PRERESUME and not self.known.parked and is_there

    def destination(self) -> Destination:
        """Return where the memory goes, from where."""
        strategy = self.asked.wish.strategy if self.asked.wish else None
        if self.park:
            return parking.away(self.policy, self.known.homes, self.nodes)
        if self.known.parked:
            known = self.known
            left = known.parked_or_left
            return parking.back(self.policy, known.parked, known.homes, self.nodes, strategy, left=left)
        # Where a move was cut short, what it brought to a target stays there: the rest goes to the nearest.
        return Destination(self.nodes, strategy, () if self.known.begun else self.known.homes or None)


def aim_of(case: Case, known: Record) -> Aim:
    """Return where a job's memory is to be, with what is known of it."""
    job = case.job
    # What was parked comes back, whatever the job's rule says by now.
    policy = replace(case.policy, mode=Mode.MOVE) if known.parked else case.policy
    topology = read_topology()
    placed = job_nodes(job.id, job.exec_vnode, case.hosts, topology)
    park = _parking(case, placed, topology)
    asked = Asked() if park else understood(job, case.hosts, known, policy)  # it is served when the job goes on
    if known.parked and (wrong := unfit(asked.wish, topology)):  # it comes back all the same
        asked = replace(asked, wish=None, error=wrong)
    nodes, error = park or (asked.wish.nodes if asked.wish else placed), asked.error
    if policy.mode is Mode.OFF:
        nodes = ()
        if asked.fresh:
            error = f'{policy.named()} leaves the job alone (mode = "off")'
    return Aim(known, policy, asked, placed, nodes, park, error)


def _parking(case: Case, placed: tuple[int, ...], topology: Topology) -> tuple[int, ...]:
    """Return where a job's memory is parked now, as its rule says; none unless MoM has it stopped, for good as yet."""
    policy = case.policy
    if case.kind is Kind.PRERESUME or policy.mode is not Mode.MOVE or not policy.park or not is_stopped(case.pids()):
        return ()
    with suppress(UsageError):  # the doctor says so
        return parking.nodes(policy, placed, topology)
    return ()

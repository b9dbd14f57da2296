"""Parking: where a suspended job's memory goes by its rule, and how it comes back.

So whoever runs meanwhile has the job's own nodes. Values in, values out: when a job is parked, and what is known of it
from then on, is left to the agent and to PBS's events.
"""

from __future__ import annotations

from pageferry.applied import Destination
from pageferry.errors import UsageError
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import Topology
from pageferry.policy import Policy
from pageferry_planner.model import HugePages, Strategy, WhenFull

PARK, UNPARK = "park", "unpark"
"""What the history calls the two moves."""


def nodes(policy: Policy, own: tuple[int, ...], topology: Topology) -> tuple[int, ...]:
    """Return the nodes that a job's memory is parked on; none: it is not, as no rule says so, or they are its `own`.

    Nor is that of a job without nodes of its own, which nobody could bring back. Raises UsageError if none of the
    rule's nodes has memory on this host.
    """
    if not policy.park or not own:
        return ()
    there = topology.nodes_with_memory() & set(policy.park)
    if not there:
        raise UsageError(
            f'{policy.named()}: park = "{format_list(policy.park)}": no node with memory on this host '
            f"(nodes with memory: {format_list(topology.nodes_with_memory())})"
        )
    return tuple(sorted(there - set(own)))


def away(policy: Policy, home: tuple[int, ...], park: tuple[int, ...]) -> Destination:
    """Return where a job's memory is moved to when it is parked: what has no room there stays.

    As many nodes as it has at `home` take one each, so that it comes back as it was; else they are filled in turn, and
    a huge page that is to be kept goes to the nearest that has one free.
    """
    strategy = Strategy.RELATIVE if len(park) == len(home) else Strategy.PACK
    when_full = WhenFull.REFUSE if policy.when_full is WhenFull.REFUSE else WhenFull.PARTIAL
    if strategy is Strategy.PACK and policy.huge_pages is HugePages.KEEP and when_full is WhenFull.PARTIAL:
        return Destination(park, strategy, home, WhenFull.SPILL, frozenset(park))
    return Destination(park, strategy, home, when_full)


def back(
    policy: Policy,
    park: tuple[int, ...],
    home: tuple[int, ...],
    to: tuple[int, ...],
    strategy: Strategy | None,
    *,
    left: tuple[int, ...] = (),
) -> Destination:
    """Return how a job's memory comes back `to` its nodes, as far as there is room: nobody wants it to stay parked.

    Node by node, if it was parked so and has as many now; else to where its processes run, unless a `strategy` is asked
    for. What has no room on one of the nodes goes to another of them; to further ones only if the policy spills.
    `left`: nodes that it was parked on before, and has not all come back from: it comes from there, too, but they are
    no sources, as the relative map is that of `park` and `home`.
    """
    wanted = strategy or policy.strategy
    if wanted is Strategy.RELATIVE and not len(park) == len(home) == len(to):
        wanted = Strategy.LOCAL
    spill = None if policy.when_full is WhenFull.SPILL else frozenset(to)
    return Destination(to, wanted, park, WhenFull.SPILL, spill, parked=frozenset({*park, *left}))

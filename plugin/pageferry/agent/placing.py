"""Where a job belongs: the CPUs that it has, the nodes that these make its own, and the CPUs that a request gives it.

The map of CPUs is `cpus.assignments`'; when a job is looked at, and what moves after it, is left to the callers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from pageferry import ferry, parking
from pageferry.agent.homes import Homes
from pageferry.agent.site import Site
from pageferry.comment import Wish
from pageferry.cpus.assignments import Assignments
from pageferry.errors import UsageError
from pageferry.kernel.topology import read_topology
from pageferry.mems import record
from pageferry.policy import Policy
from pageferry_planner.model import Target

SETTLE_SECONDS = (0.005, 0.05)
"""How often a task is looked at that is about to leave slurmstepd: in the first second, and then."""


class Placing:
    """The CPUs and home nodes of the jobs of a host; the site says whether jobs may have other CPUs than Slurm's."""

    def __init__(self, assignments: Assignments, homes: Homes, site: Site) -> None:
        self._assignments = assignments
        self._homes = homes
        self._site = site
        self._settling_since: float | None = None
        self.mems = homes.folder / "mems"
        """Where is recorded whose cpuset.mems is narrowed."""

    def see(self, job: int) -> None:
        """Bring a job's cpusets in line with the map, after they or its steps have changed. Raises KernelError."""
        self._assignments.seen(job)
        self._settle()
        nodes = self.nodes(job)
        if nodes and self._homes.get(job) is None:
            self._homes.put(job, nodes)

    def nodes(self, job: int) -> tuple[int, ...]:
        """Return the nodes of a job's CPUs; none for one that is not confined to any."""
        try:
            return tuple(sorted(read_topology().serving(self._assignments.cpus(job))))
        except UsageError:
            return ()

    def home(self, job: int) -> tuple[int, ...] | None:
        """Return the nodes that a job's memory was last brought to, or began on."""
        return self._homes.get(job)

    def settle_at(self, job: int, nodes: tuple[int, ...]) -> None:
        """Take note that a job's memory is on these nodes now; it is not parked."""
        self._homes.put(job, nodes)

    def parking(self, job: int, policy: Policy) -> tuple[int, ...]:
        """Return where a job's memory is parked while the job is suspended. Raises UsageError as `parking.nodes`."""
        return parking.nodes(policy, self.nodes(job), read_topology()) if policy.park else ()

    def parked(self, job: int) -> tuple[int, ...]:
        """Return the nodes that a job's memory is parked on, also by an agent before us; none: it is not."""
        return self._homes.parked(job)

    def park(self, job: int, nodes: tuple[int, ...]) -> None:
        """Take note that a job's memory is to be found on these nodes, too, or (none) that it is parked no longer."""
        self._homes.park(job, nodes)

    def left(self, job: int) -> tuple[int, ...]:
        """Return the nodes that a job was parked on and has not all come back from, also by an agent before us."""
        return self._homes.left(job)

    def leave(self, job: int, nodes: tuple[int, ...]) -> None:
        """Take note that some of a job's memory is still where it was parked, or (none) that all of it is back."""
        self._homes.leave(job, nodes)

    def served(self, job: int) -> str:
        """Return the request of a job that was served last, also by an agent before us; "" if none was."""
        return self._homes.served(job)

    def keep_served(self, job: int, text: str) -> None:
        """Take note that a job's request is served."""
        self._homes.put_served(job, text)

    def served_owner(self, job: int) -> str:
        """Return the request of a job's owner that was served last, as `served` does."""
        return self._homes.owners(job)

    def keep_served_owner(self, job: int, text: str) -> None:
        """Take note that a request of a job's owner is served."""
        self._homes.put_owners(job, text)

    def give(self, job: int, wish: Wish) -> tuple[int, ...]:
        """Give a job the CPUs that were asked for, or some on the nodes that were; return the jobs that got others.

        Raises UsageError, KernelError; then all CPUs are as before.
        """
        topology = read_topology()
        ferry.check(Target(wish.nodes), topology)
        if not self._site.settings.cpus.enabled:
            if wish.cpus is not None:
                raise UsageError("cpus=: this site's settings keep jobs on Slurm's CPUs ([cpus] enabled = false)")
            return ()
        without = not any(topology.node(node).cpus for node in wish.nodes)
        if wish.cpus is None and (without or not self.nodes(job)):
            return ()
        wanted = wish.cpus if wish.cpus is not None else self._assignments.choose(job, wish.nodes)
        return tuple(other for other in self._assignments.move(job, wanted) if other != job)

    def gone(self, job: int, left: Iterable[int]) -> None:
        """Forget a job; `left` are those that are still there."""
        self._assignments.gone(job)
        kept = tuple(left)
        self._homes.keep(kept)
        record.keep(kept, self.mems)

    def due(self) -> float | None:
        """Look at tasks that are being launched; return when to come again (monotonic), None if there are none."""
        if self._settling_since is not None:
            self._settle()
        if self._settling_since is None:
            return None
        now = time.monotonic()
        return now + SETTLE_SECONDS[now > self._settling_since + 1]

    def _settle(self) -> None:
        if not self._assignments.settle():
            self._settling_since = None
        elif self._settling_since is None:
            self._settling_since = time.monotonic()

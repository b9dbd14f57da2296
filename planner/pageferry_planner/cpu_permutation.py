"""Slurm's CPUs → real CPUs: one permutation for a host, so that Slurm's books stay true while jobs are moved.

Slurm believes that a job has the CPUs that it gave. A moved job really has their image. Since a permutation never
sends two CPUs to the same one, jobs that Slurm keeps apart stay apart, whatever was moved, newcomers included.
Which cpusets and pins follow from it, and when they are set, is left to the plugin.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MAX_CPUS = 65536
"""More than any kernel has (NR_CPUS is at most 8192): a record that names more is damaged."""


@dataclass(frozen=True, slots=True)
class CpuPermutation:
    """A permutation of CPU numbers: the identity, except for what `differs` says (from Slurm's CPU to the real one).

    Raises ValueError unless `differs` is a permutation of its keys, entries that change nothing among them or not.
    """

    differs: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(0 <= cpu < MAX_CPUS for cpu in self.differs):
            raise ValueError("not a CPU number")
        if set(self.differs) != set(self.differs.values()):
            raise ValueError("not a permutation of CPUs")
        object.__setattr__(self, "differs", {cpu: to for cpu, to in sorted(self.differs.items()) if cpu != to})

    def __getitem__(self, cpu: int) -> int:
        return self.differs.get(cpu, cpu)

    def image(self, cpus: Iterable[int]) -> frozenset[int]:
        """Return the real CPUs of what are `cpus` to Slurm."""
        return frozenset(self[cpu] for cpu in cpus)

    def preimage(self, cpus: Iterable[int]) -> frozenset[int]:
        """Return what the real `cpus` are to Slurm."""
        back = {to: cpu for cpu, to in self.differs.items()}
        return frozenset(back.get(cpu, cpu) for cpu in cpus)

    def swapped(self, cpus_from: Sequence[int], cpus_to: Sequence[int]) -> CpuPermutation:
        """Return the permutation in which what was on the i-th real CPU of `cpus_from` is on the i-th of `cpus_to`.

        What was on `cpus_to` goes where room became, in order; nothing else moves. Swapping back undoes it.
        Raises ValueError if the two differ in length or name a CPU twice.
        """
        if len({*cpus_from}) != len(cpus_from) or len({*cpus_to}) != len(cpus_to) or len(cpus_from) != len(cpus_to):
            raise ValueError("not as many CPUs as there are to be replaced")
        going, coming = frozenset(cpus_from), frozenset(cpus_to)
        step = dict(zip(cpus_from, cpus_to, strict=True))
        evicted = (cpu for cpu in cpus_to if cpu not in going)
        vacated = (cpu for cpu in cpus_from if cpu not in coming)
        step.update(zip(evicted, vacated, strict=True))
        slurms = {*self.differs, *self.preimage(step)}
        return CpuPermutation({cpu: step.get(self[cpu], self[cpu]) for cpu in slurms})

    def as_plain(self) -> dict[str, int]:
        """Return what JSON can hold."""
        return {str(cpu): to for cpu, to in self.differs.items()}

    @classmethod
    def from_plain(cls, plain: object) -> CpuPermutation:
        """Return what `as_plain` was made of; raises ValueError for anything that is no permutation."""
        if not isinstance(plain, dict) or len(plain) > MAX_CPUS:
            raise ValueError("not a table of CPUs")
        differs: dict[int, int] = {}
        for cpu, to in plain.items():
            # True is an int to Python, and int() takes " 1_0 " for a number.
            plausible = isinstance(cpu, str) and cpu.isascii() and cpu.isdigit() and len(cpu) <= len(str(MAX_CPUS))
            if not plausible or type(to) is not int or int(cpu) in differs:
                raise ValueError("not a table of CPUs")
            differs[int(cpu)] = to
        return cls(differs)


def choose(
    permutation: CpuPermutation,
    job: Collection[int],
    nodes: Iterable[int],
    cpus_by_node: Mapping[int, Collection[int]],
    owned: Iterable[int],
) -> frozenset[int]:
    """Return the real CPUs on `nodes` that a job should get: as many as it has.

    `job` and `owned` (the CPUs of all other jobs) are Slurm's, `cpus_by_node` holds real ones, those that may be given.
    What the job has on its i-th node it gets on the i-th of `nodes`, both ascending, and round again where there are
    fewer. Its own CPUs and those that nobody owns come first, on any of the nodes; then those of others.
    Raises ValueError, with the reason, if a node is not there or the nodes have too few CPUs.
    """
    targets = sorted(set(nodes))
    if unknown := [node for node in targets if node not in cpus_by_node]:
        raise ValueError(f"no node {unknown[0]}")
    now = permutation.image(job)
    there = sum(len(frozenset(cpus_by_node[node])) for node in targets)
    if there < len(now):
        raise ValueError(f"the job has {len(now)} CPUs, and the nodes only {there}")
    others = permutation.image(owned) - now
    free = {node: _in_order(frozenset(cpus_by_node[node]) - others, now) for node in targets}
    taken = {node: _in_order(others & frozenset(cpus_by_node[node]), now) for node in targets}
    wanted = _wanted(now, targets, cpus_by_node)
    chosen: list[int] = []
    for stock in (free, taken):
        for anywhere in (False, True):
            for node in targets:
                for source in targets if anywhere else [node]:
                    got = stock[source][: wanted[node]]
                    del stock[source][: len(got)]
                    wanted[node] -= len(got)
                    chosen += got
    return frozenset(chosen)


def _wanted(now: frozenset[int], targets: Sequence[int], cpus_by_node: Mapping[int, Collection[int]]) -> dict[int, int]:
    """Return how many CPUs are wanted on each target; a CPU that no node has counts for the first node."""
    node_of = {cpu: node for node, cpus in cpus_by_node.items() for cpu in cpus}
    first = min(node_of.values(), default=0)
    places = [node_of.get(cpu, first) for cpu in now]
    wanted = dict.fromkeys(targets, 0)
    for place, node in enumerate(sorted(set(places))):
        wanted[targets[place % len(targets)]] += places.count(node)
    return wanted


def _in_order(cpus: Iterable[int], own: frozenset[int]) -> list[int]:
    return sorted(cpus, key=lambda cpu: (cpu not in own, cpu))

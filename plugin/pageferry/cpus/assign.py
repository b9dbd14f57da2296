"""Gives a job other CPUs: its cpusets, and thread by thread the pins within them.

The i-th CPU before becomes the i-th CPU after. Under Slurm the job's own level is only widened, because each new step
writes it again, and the level that holds is the one below: step_*/user on cgroup v2, step_* on v1. The kernel resets
the affinity of threads when a cpuset changes, so it is read before and set again after.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.cpus.groups import Writer
from pageferry.cpus.pins import mapped, read_pins, set_pins
from pageferry.errors import KernelError, UsageError, Vanished
from pageferry.kernel.cgroup import read_cpuset
from pageferry.kernel.files import read_bytes
from pageferry.kernel.lists import format_list, parse_list


@dataclass(frozen=True, slots=True)
class Cpusets:
    """The groups of a job whose cpusets count: those to widen, outermost first, and those to narrow."""

    widen: tuple[Path, ...] = ()
    narrow: tuple[Path, ...] = ()


def assign(cpus: Collection[int], pids: Iterable[int], cpusets: Cpusets) -> Mapping[int, frozenset[int]]:
    """Bring processes to other CPUs; return the CPUs of each of their threads afterwards.

    On failure all cpusets and pins are as before. Raises UsageError for CPUs that are not online, KernelError or Denied
    for what the kernel refuses.
    """
    new = frozenset(cpus)
    online = parse_list(read_bytes("/sys/devices/system/cpu/online"))
    if not new or not new <= online:
        raise UsageError(f"no such CPU on this host: {format_list(new - online) or '(none named)'}")
    pins = read_pins(pids)
    old = frozenset().union(*map(_constrained, cpusets.narrow), *(cpu for one in pins.values() for cpu in one.values()))
    writer = Writer()
    try:
        for group in cpusets.widen:
            if own := _constrained(group):
                writer.write(group, own | new)
        for group in cpusets.narrow:
            if _constrained(group):
                writer.write(group, new)
        wanted = mapped(pins, mapping(old, new))
        if set_pins(wanted):
            raise KernelError(f"the CPUs {format_list(new)} cannot be set: Invalid argument")
    except KernelError:
        writer.undo()
        with suppress(KernelError):
            set_pins(pins)
        raise
    return {thread: cpus for threads in wanted.values() for thread, cpus in threads.items()}


def mapping(old: Iterable[int], new: Iterable[int]) -> dict[int, int]:
    """Return which CPU each old one becomes: the i-th the i-th, and round again where there are fewer."""
    after = sorted(set(new))
    return {cpu: after[place % len(after)] for place, cpu in enumerate(sorted(set(old)))}


def _constrained(group: Path) -> frozenset[int]:
    with suppress(Vanished):
        cpuset = read_cpuset(group)
        return cpuset.cpus if cpuset else frozenset()
    return frozenset()

"""Gives a job other CPUs: its cpusets, and thread by thread the pins within them.

The i-th CPU before becomes the i-th CPU after. Under Slurm the job's own level is only widened, because each new step
writes it again, and the level that holds is the one below: step_*/user on cgroup v2, step_* on v1. The kernel resets
the affinity of threads when a cpuset changes, so it is read before and set again after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import Denied, KernelError, UsageError, Vanished
from pageferry.kernel.cgroup import read_cpuset
from pageferry.kernel.files import read_bytes, write_text
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
    pins = {thread: pin for pid in pids for thread, pin in _pins(pid)}
    old = frozenset().union(*map(_constrained, cpusets.narrow), *pins.values())
    before: list[tuple[Path, frozenset[int]]] = []
    try:
        for group in cpusets.widen:
            _write(group, lambda own: own | new, before)
        for group in cpusets.narrow:
            _write(group, lambda _own: new, before)
        place = mapping(old, new)
        mapped = {thread: frozenset(place[cpu] for cpu in pin) for thread, pin in pins.items()}
        _pin(mapped)
    except (KernelError, OSError) as error:
        for group, own in reversed(before):
            with suppress(KernelError, Vanished):
                write_text(group / "cpuset.cpus", format_list(own) or "\n")
        with suppress(OSError):
            _pin(pins)
        if isinstance(error, OSError):
            raise KernelError(f"the CPUs {format_list(new)} cannot be set: {error.strerror}") from error
        raise
    return mapped


def mapping(old: Iterable[int], new: Iterable[int]) -> dict[int, int]:
    """Return which CPU each old one becomes: the i-th the i-th, and round again where there are fewer."""
    after = sorted(set(new))
    return {cpu: after[place % len(after)] for place, cpu in enumerate(sorted(set(old)))}


def _write(
    group: Path, change: Callable[[frozenset[int]], frozenset[int]], before: list[tuple[Path, frozenset[int]]]
) -> None:
    try:
        cpuset = read_cpuset(group)
        if cpuset is None or not cpuset.cpus:  # not constrained: the pins alone decide
            return
        wanted = change(cpuset.cpus)
        if wanted != cpuset.cpus:
            before.append((group, cpuset.cpus))
            write_text(group / "cpuset.cpus", format_list(wanted))
    except Vanished:
        return


def _constrained(group: Path) -> frozenset[int]:
    with suppress(Vanished):
        cpuset = read_cpuset(group)
        return cpuset.cpus if cpuset else frozenset()
    return frozenset()


def _pins(pid: int) -> list[tuple[int, frozenset[int]]]:
    pins = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208
            with suppress(ProcessLookupError):
                pins.append((thread, frozenset(os.sched_getaffinity(thread))))
    return pins


def _pin(pins: Mapping[int, frozenset[int]]) -> None:
    for thread, cpus in pins.items():
        try:
            os.sched_setaffinity(thread, cpus)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise Denied(f"thread {thread} may not be given other CPUs: {error.strerror}") from error

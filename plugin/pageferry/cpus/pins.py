"""The pins of threads: read before a cpuset changes, set again, mapped, afterwards; and whether a launcher is done.

The kernel gives all threads of a cpuset that is written all of its CPUs, whatever they were pinned to (until 6.2; since
then it goes by what the thread last asked for). Which CPU becomes which is the callers' matter.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pageferry.errors import Denied, KernelError, PageferryError, Vanished
from pageferry.kernel.files import read_bytes, translated
from pageferry.kernel.procfs import living_thread, read_status

Pins = dict[int, dict[int, frozenset[int]]]
"""From process to thread to the CPUs that the thread may use."""

_ROUNDS = 3
"""Threads that begin while others are pinned are looked for so often."""

_FORKED_WITHOUT_EXEC = 0x40
"""PF_FORKNOEXEC, include/linux/sched.h: cleared by execve, set by fork."""


def read_pins(pids: Iterable[int]) -> Pins:
    """Return the pins of all threads of processes; those that have ended are left out."""
    return {pid: pins for pid in pids if (pins := _threads(pid))}


def mapped(pins: Pins, place: Mapping[int, int]) -> Pins:
    """Return the pins with each CPU replaced; who may use a CPU that `place` does not know may use all of the new."""
    everywhere = frozenset(place.values())
    known = place.keys()
    return {
        pid: {
            thread: frozenset(place[cpu] for cpu in cpus) if cpus <= known else everywhere
            for thread, cpus in threads.items()
        }
        for pid, threads in pins.items()
    }


def set_pins(pins: Pins) -> frozenset[int]:
    """Pin threads; return those to which the kernel allows none of their CPUs (EINVAL).

    A thread that may use just these CPUs already is left alone: to have asked for none is remembered as well.
    Raises Denied.
    """
    refused = set()
    for thread, cpus in (item for threads in pins.values() for item in threads.items()):
        try:
            if os.sched_getaffinity(thread) != cpus:
                os.sched_setaffinity(thread, cpus)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise Denied(f"thread {thread} may not be given other CPUs: {error.strerror}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise KernelError(f"thread {thread} cannot be given other CPUs: {error.strerror}") from error
            refused.add(thread)
    return frozenset(refused)


def set_pins_of_all(pids: Callable[[], Iterable[int]], wanted: Pins) -> frozenset[int]:
    """Pin threads as `set_pins` does, and those that began meanwhile as the rest of their process, or its parent.

    If those differ among themselves, who began the thread is not known, and it keeps what the kernel gave it.
    """
    refused = set_pins(wanted)
    known = {pid: dict(threads) for pid, threads in wanted.items()}
    for _round in range(_ROUNDS):
        born = _born(read_pins(pids()), known)
        if not born:
            break
        refused |= set_pins(born)
        for pid, threads in born.items():
            known.setdefault(pid, {}).update(threads)
    return refused


def launched(pids: Collection[int], daemons: Iterable[int], root: Path = Path("/")) -> bool:
    """Say whether a step's processes are past the launcher: its programs run, and nothing will pin them any more.

    The launcher is a fork of a slurmstepd (`daemons`) that has not called execve yet. A user's own slurmstepd has.
    """
    programs = {identity for daemon in daemons if (identity := _program(daemon, root)) is not None}
    found = False
    for pid in pids:
        program = _program(pid, root)
        if program in programs and _forked_without_exec(pid, root):
            return False
        found = found or program is not None
    return found


def _threads(pid: int) -> dict[int, frozenset[int]]:
    pins: dict[int, frozenset[int]] = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208  (a job can have many thousands)
            with suppress(ProcessLookupError):
                pins[thread] = frozenset(os.sched_getaffinity(thread))
    return pins


def _born(now: Pins, known: Pins) -> Pins:
    born: Pins = {}
    for pid, threads in now.items():
        fresh = threads.keys() - known.get(pid, {}).keys()
        if not fresh:
            continue
        relatives = known.get(pid) or known.get(_parent(pid)) or {}
        masks = set(relatives.values())
        born[pid] = {thread: next(iter(masks)) if len(masks) == 1 else threads[thread] for thread in fresh}
    return born


def _parent(pid: int) -> int:
    with suppress(Vanished):
        return read_status(pid).parent
    return 0


def _program(pid: int, root: Path) -> str | None:
    """Return the path of the file that a process executes, or None if it has ended.

    The link is read, never followed: the file may be on a user's or on a hung file system.
    """
    path = f"{root}/proc/{living_thread(pid, root)}/exe"
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError as error:
        problem: PageferryError = translated(error, path)
        if isinstance(problem, Vanished):
            return None
        raise problem from error


def _forked_without_exec(pid: int, root: Path) -> bool:
    with suppress(Vanished):
        text = read_bytes(f"{root}/proc/{pid}/stat")
        flags = int(text[text.rfind(b")") + 1 :].split()[6])  # behind the name, which can hold anything: proc(5)
        return bool(flags & _FORKED_WITHOUT_EXEC)
    return False

"""Reads the memory policies of processes that name nodes: where the kernel puts what they allocate later.

A move of pages leaves them as they are. The line of a mapping in /proc/TID/numa_maps has the mapping's own policy, or
else the thread's. For each line the kernel walks the mapping's page tables, under its mmap_lock, which may be held for
ever: so all reading is bounded, and of a process that is held or suspended nothing is read. The threads' policies,
for which one line is enough, come first. What a policy means for a job is left to the callers.
Sources: the man page numa(7); kernel mm/mempolicy.c mpol_to_str(), fs/proc/task_mmu.c show_numa_map().
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.errors import Denied, KernelError, PageferryError, Vanished
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.kernel.files import numbered, shown, translated
from pageferry.kernel.freezer import stands_still
from pageferry.kernel.lists import parse_list
from pageferry.kernel.procfs import living_thread, read_status

SECONDS = 1.0
"""For all processes of a job together."""

_READERS = 8
_CHUNK_BYTES = 65536
_HEAD_BYTES = 128
"""A policy and what is before it are shorter; a longer read would have the kernel walk more than a mapping or two."""

_POLICY_BYTES = 63
"""The kernel cuts a policy that is longer (show_numa_map() has 64 bytes for it)."""

_LATE = "no answer in time"
_POLICY = re.compile(
    rb"[0-9a-f]{1,16} ((?:weighted interleave|prefer \(many\)|[a-z]+)(?:=[a-z|,]+)?(?::([0-9,-]+))?)(?= |$)"
)
_NODE_PAGES = re.compile(rb" N([0-9]{1,4})=[0-9]{1,20}(?= |$)")


@dataclass(frozen=True, slots=True)
class Policy:
    """A memory policy; `mode` in the kernel's words, with its flags: "bind", "prefer (many)", "bind=static"."""

    mode: str
    nodes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Found:
    """A policy, the processes that have it (ascending), and the name of the first of them, printable.

    `occupied`: nodes with private memory of theirs for which the policy holds, as far as was looked.
    """

    policy: Policy
    pids: tuple[int, ...]
    name: str
    occupied: frozenset[int]


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies that name nodes, those of most processes first; `unknown`: what was not read and why, or ""."""

    found: tuple[Found, ...]
    unknown: str


@dataclass(slots=True)
class _Read:
    """What was read of one process: policies with the nodes they occupy; `left`: threads or mappings without time."""

    policies: dict[Policy, frozenset[int]] = field(default_factory=dict)
    left: int = 0

    def note(self, line: bytes) -> None:
        if (told := parse(line)) is not None:
            self.policies[told[0]] = self.policies.get(told[0], frozenset()) | told[1]


_Reads = dict[int, _Read | PageferryError]


def parse(line: bytes) -> tuple[Policy, frozenset[int]] | None:
    """Return the policy of a line of numa_maps, if it names nodes, and the nodes of the private memory in the mapping.

    What a file has in memory may have been there before: it tells nothing of the policy. Raises KernelError.
    """
    match = _POLICY.match(line)
    if match is None:
        raise KernelError(f"numa_maps: not a mapping: {shown(line)}")
    if match[2] is None:
        return None
    text = match[2] if len(match[1]) < _POLICY_BYTES else match[2].rpartition(b",")[0]
    try:
        policy = Policy(match[1].partition(b":")[0].decode(), parse_list(text))
    except ValueError as error:
        raise KernelError(f"numa_maps: not a mapping: {error}") from error
    private = b" file=" not in line or b" huge " in line
    return policy, frozenset(map(int, _NODE_PAGES.findall(line))) if private else frozenset()


def read_policies(pids: Iterable[int], seconds: float, root: Path = Path("/")) -> Policies:
    """Return the memory policies of processes, as far as they can be read in so many seconds. Raises KernelError.

    What has ended is left out. The first mapping of a process tells the policy of each thread: it is the program's
    text, to which nobody gives a policy of its own.
    """
    until = time.monotonic() + seconds
    order, hierarchies = sorted(pids), read_hierarchies(root)

    def unless_still(read: Callable[[int, float, Path], _Read]) -> Callable[[int], _Read]:
        def checked(pid: int) -> _Read:
            if stands_still(pid, hierarchies, root):
                raise KernelError("held or suspended")
            return read(pid, until, root)

        return checked

    of_threads, of_mappings = _each(order, unless_still(_of_threads), unless_still(_of_mappings), until)
    return Policies(_joined(of_threads, of_mappings, root=root), _unknown(order, of_threads, of_mappings))


def _of_threads(pid: int, until: float, root: Path) -> _Read:
    found = _Read()
    for thread in numbered(root / f"proc/{pid}/task"):
        if time.monotonic() >= until:
            found.left += 1
            continue
        with suppress(Vanished), _opened(root / f"proc/{pid}/task/{thread}/numa_maps") as descriptor:
            if line := os.read(descriptor, _HEAD_BYTES).partition(b"\n")[0]:
                found.note(line)
    return found


def _of_mappings(pid: int, until: float, root: Path) -> _Read:
    found, rest = _Read(), b""
    with _opened(root / f"proc/{living_thread(pid, root)}/numa_maps") as descriptor:
        while chunk := os.read(descriptor, _CHUNK_BYTES):  # about a page, whatever is asked for
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                found.note(line)
            if time.monotonic() >= until:
                found.left = 1
                break
    return found


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file of /proc; what goes wrong then, too, is raised in our own words."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translated(error, path) from error


def _each(
    pids: Iterable[int], first: Callable[[int], _Read], then: Callable[[int], _Read], until: float
) -> tuple[_Reads, _Reads]:
    """Return what was read of each process, first and then, or what went wrong; without what did not come in time.

    A read that hangs keeps one of our threads, which is given up on. Raises KernelError where there can be no thread.
    """
    early: _Reads = {}
    late: _Reads = {}
    waiting = deque((pid, first, early) for pid in pids)

    def work() -> None:
        while time.monotonic() < until:
            try:
                pid, read, found = waiting.popleft()
            except IndexError:
                return
            try:
                found[pid] = read(pid)
            except PageferryError as error:
                found[pid] = error
            else:
                waiting.extend([(pid, then, late)] if found is early else [])

    readers: list[threading.Thread] = []
    for _ in range(_READERS):
        reader = threading.Thread(target=work, daemon=True)
        try:
            reader.start()
        except RuntimeError as error:
            if not readers:
                raise KernelError(f"no thread to read with: {error}") from error
            break  # fewer take longer
        readers.append(reader)
    for reader in readers:
        reader.join(max(0.0, until - time.monotonic()))
    return dict(early), dict(late)


def _joined(*reads: _Reads, root: Path) -> tuple[Found, ...]:
    """Return what was read, by policy."""
    pids: dict[Policy, set[int]] = {}
    occupied: dict[Policy, set[int]] = {}
    for pid, read in (entry for found in reads for entry in found.items()):
        for policy, nodes in read.policies.items() if isinstance(read, _Read) else ():
            pids.setdefault(policy, set()).add(pid)
            occupied.setdefault(policy, set()).update(nodes)
    found = [
        Found(policy, tuple(sorted(members)), _name(min(members), root), frozenset(occupied[policy]))
        for policy, members in pids.items()
    ]
    return tuple(sorted(found, key=lambda one: (-len(one.pids), one.pids, one.policy.mode, sorted(one.policy.nodes))))


def _name(pid: int, root: Path) -> str:
    with suppress(PageferryError):
        return read_status(pid, root).name
    return ""


def _unknown(order: Iterable[int], of_threads: _Reads, of_mappings: _Reads) -> str:
    """Return what was not read and why, "" if all was."""
    counted: Counter[tuple[str, str]] = Counter()
    for pid in order:
        threads, mappings = of_threads.get(pid), of_mappings.get(pid)
        if isinstance(threads, _Read):
            counted["{} threads", _LATE] += threads.left
            cut = isinstance(mappings, _Read) and mappings.left
            counted["mappings of {} processes", _LATE if cut else _why(mappings)] += 1
        else:
            counted["{} processes", _why(threads)] += 1
    return "; ".join(f"{what.format(count)}: {why}" for (what, why), count in counted.items() if why and count)


def _why(read: _Read | PageferryError | None) -> str:
    """Return why nothing was read of a process; "" if something was, or the process has ended."""
    if read is None:
        return _LATE
    if isinstance(read, Denied):
        return "not permitted"
    return "" if isinstance(read, _Read | Vanished) else str(read)

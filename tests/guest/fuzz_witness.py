"""Witnesses of what a fuzzed job maps, page by page: which shared memory, which folios in part, and on which nodes."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from guest import witness
from pageferry_planner.columns import Ints

PAGE = mmap.PAGESIZE
HUGE = 512
HEAD, TAIL, HUGETLB = 15, 16, 17
SHARED_MEMORY = ("/dev/zero (deleted)", "/SYSV", "/memfd:", "/dev/shm/")
NOT_THE_JOBS = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping of shared memory: what it is of, by which path it is reached, and which pages of it."""

    key: tuple[str, str, str]
    path: str
    lo: int
    hi: int


def shared_memory(pids: Iterable[int]) -> list[tuple[str, int, int]]:
    """Return what processes map of shared memory as (path, lo, hi), no page twice, as far as the objects reach."""
    found: dict[tuple[str, str, str], list[Mapped]] = {}
    for pid in pids:
        thread = witness.thread(pid)
        for line in Path(f"/proc/{thread}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(SHARED_MEMORY):
                start, end = (int(address, 16) for address in fields[0].split("-"))
                lo = int(fields[2], 16) // PAGE
                path = f"/proc/{thread}/map_files/{fields[0]}"
                key = (fields[5][:5], fields[3], fields[4])
                found.setdefault(key, []).append(Mapped(key, path, lo, lo + (end - start) // PAGE))
    objects = []
    for mappings in found.values():
        at = 0
        for part in sorted(mappings, key=lambda part: part.lo):
            lo, hi = max(part.lo, at), min(part.hi, -(-Path(part.path).stat().st_size // PAGE))
            if lo < hi:
                objects.append((part.path, lo, hi))
            at = max(at, part.hi)
    return objects


def mapped(pid: int) -> list[tuple[int, int]]:
    """Return what a process maps, as (page, pages)."""
    return [
        (vma.start // PAGE, (vma.end - vma.start) // PAGE) for vma in witness.vmas(pid) if vma.path not in NOT_THE_JOBS
    ]


def entries(pid: int, ranges: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the page-table entries, by page, of those that are present and not the zero page."""
    found: dict[int, int] = {}
    for page, pages in ranges:
        read = witness.page_table(pid, page * PAGE, (page + pages) * PAGE)
        for number in np.flatnonzero(read >> np.uint64(63)).tolist():
            found[page + number] = int(read[number])
    pages_, raw = list(found), np.array(list(found.values()), np.uint64)
    zero = witness._zero(raw).tolist() if len(raw) else []
    return {page: found[page] for page, is_zero in zip(pages_, zero, strict=True) if not is_zero}


def frame(entry: int) -> int:
    """Return the page frame of an entry."""
    return entry & (1 << 55) - 1


@dataclass(frozen=True, slots=True)
class Part:
    """A large folio of which not every page is the job's: through which page it is seen, and how many others it has."""

    pid: int
    page: int
    node: int
    others: int


def parts(pids: Sequence[int], objects: Sequence[tuple[str, int, int]]) -> list[Part]:
    """Return the folios of which processes map a part, the rest being nobody's, or another's."""
    seen: dict[int, tuple[int, int]] = {}
    for pid in pids:
        for page, entry in entries(pid, mapped(pid)).items():
            seen.setdefault(frame(entry), (pid, page))
    theirs = set(seen).union(*(witness.resident_frames(*one).tolist() for one in objects))
    frames = np.array(sorted(theirs), np.int64)
    found = []
    for block in np.unique(frames[large(flags_of(frames))] // HUGE).tolist():
        every = np.arange(block * HUGE, (block + 1) * HUGE)
        flags = flags_of(every)
        begins = np.flatnonzero(~bit(flags, TAIL))
        for folio in np.split(every, begins):
            mine = [one for one in folio.tolist() if one in seen]
            others = len(folio) - len(theirs.intersection(folio.tolist()))
            if mine and others:
                (node,) = witness.node_of(np.array(mine[:1])).tolist()
                found.append(Part(*seen[mine[0]], node, others))
    return found


def flags_of(frames: Ints) -> npt.NDArray[np.uint64]:
    """Return the flags of frames."""
    if len(frames) and (np.diff(frames) <= 0).any():
        ascending, inverse = np.unique(frames, return_inverse=True)
        return flags_of(ascending)[inverse]
    found = np.zeros(len(frames), np.uint64)
    with Path("/proc/kpageflags").open("rb", buffering=0) as file:
        for rows in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(frames) > 64) + 1) if len(frames) else []:
            first, last = int(frames[rows[0]]), int(frames[rows[-1]])
            data = np.frombuffer(os.pread(file.fileno(), (last + 1 - first) * 8, first * 8), np.uint64)
            found[rows] = data[frames[rows] - first]
    return found


def bit(words: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.bool_]:
    """Return which words have a bit."""
    answer: npt.NDArray[np.bool_] = words >> np.uint64(number) & np.uint64(1) != 0
    return answer


def large(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which frames are of large folios, but not of hugetlb pages."""
    answer: npt.NDArray[np.bool_] = (bit(flags, HEAD) | bit(flags, TAIL)) & ~bit(flags, HUGETLB)
    return answer


def others_moved(of: Sequence[Part]) -> int:
    """Return how many pages moved along that are not the job's: those of folios that are on another node now."""
    return sum(
        part.others
        for part in of
        if witness.node_vector(part.pid, part.page * PAGE, (part.page + 1) * PAGE) != [part.node]
    )


def free_of(node: int) -> int:
    """Return the free bytes of a node."""
    text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
    return int(text.partition("MemFree:")[2].split()[0]) * 1024


def pools() -> Counter[str]:
    """Return how many hugetlb pages are free, and how many there are at all."""
    found: Counter[str] = Counter()
    for path in Path("/sys/devices/system/node").glob("node*/hugepages/hugepages-2048kB/*_hugepages"):
        found[path.name] += int(path.read_text())
    return found


def in_memory(path: Path) -> int:
    """Return how many pages of a file are in memory."""
    pages = -(-path.stat().st_size // PAGE)
    return sum(witness.residency(path, pages)) if pages else 0


def nodes_of(pid: int) -> dict[int, int]:
    """Return the node of each page that a process shows."""
    shown = entries(pid, mapped(pid))
    frames = np.array([frame(entry) for entry in shown.values()], np.int64)
    return dict(zip(shown, witness.node_of(frames).tolist(), strict=True))


def elsewhere(before: dict[int, dict[int, int]], *, stays: bool = True) -> list[str]:
    """Return the pages of processes that are on another node than before; `stays`: or not there any more."""
    found = []
    for pid, nodes in before.items():
        now = nodes_of(pid)
        raw = entries(pid, [(page, 1) for page in nodes if now.get(page) != nodes[page]])
        flags = dict(zip(raw, flags_of(np.array([frame(entry) for entry in raw.values()], np.int64)), strict=True))
        found += [
            f"{pid} {page:#x}: {node} -> {now.get(page)} {raw.get(page, 0):#x} {int(flags.get(page, 0)):#x}"
            for page, node in nodes.items()
            if now.get(page, None if stays else node) != node
        ]
    return found

"""Witnesses of where pages are and what the kernel did, which share no code with what they bear witness to.

Page tables are read whole, page by page, and pages are told apart by their frame; what mincore(2) finds of an object
beyond that is looked up through a mapping of our own. Needs CAP_SYS_ADMIN, for page frames.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
Ints = npt.NDArray[np.int64]
Entries = npt.NDArray[np.uint64]

_NOT_THE_JOBS = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")
_PRESENT, _SWAPPED, _FILE = 63, 62, 61
_ZERO_PAGE = 24
_FRAME = np.uint64((1 << 55) - 1)
_SYS_MOVE_PAGES = 279
_MADV_POPULATE_READ = 22
_TRACING = Path("/sys/kernel/tracing")
_BY_REASON = "hist:keys=reason:vals=succeeded,failed"
_MR_COMPACTION = 0  # the first of enum migrate_reason

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Vma:
    """One line of /proc/PID/maps, in bytes."""

    start: int
    end: int
    permissions: str
    path: str


@dataclass(frozen=True, slots=True)
class Census:
    """All pages that page tables show: `pfn` and `node` of each once (ascending); `sightings` counts them all."""

    pfn: Ints
    node: Ints
    sightings: int
    _paths: dict[str, Ints]
    _cached: dict[str, Ints]

    @property
    def total(self) -> int:
        """The number of pages, each once."""
        return len(self.pfn)

    def on(self, *nodes: int) -> int:
        """Return how many pages are on these nodes."""
        return int(np.isin(self.node, nodes).sum())

    def not_on(self, *nodes: int) -> int:
        """Return how many pages are on other nodes."""
        return self.total - self.on(*nodes)

    def of(self, path: str | Path) -> Counter[int]:
        """Return the pages of the mappings of a path, each once, per node."""
        frames = self._paths.get(str(path), np.zeros(0, np.int64))
        return Counter(self.node[np.searchsorted(self.pfn, frames)].tolist())

    def cached(self, *paths: str | Path) -> Counter[int]:
        """Return, of these paths' mappings, the pages that are the files' own and no process's, per node."""
        found = [self._cached[str(path)] for path in paths if str(path) in self._cached]
        frames = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
        return Counter(self.node[np.searchsorted(self.pfn, frames)].tolist())


def census(pids: Iterable[int], objects: Iterable[tuple[str | Path, int, int]] = ()) -> Census:
    """Count the pages of processes, and of `objects` (path, pages [lo, hi)) those resident in nobody's page table."""
    paths: list[str] = []
    found: list[Entries] = []
    for pid in pids:
        with Path(f"/proc/{thread(pid)}/pagemap").open("rb", buffering=0) as file:
            for vma in vmas(pid):
                if vma.path not in _NOT_THE_JOBS:
                    paths.append(vma.path)
                    found.append(_present(_entries(file.fileno(), vma.start, vma.end)))
    entries = np.concatenate(found)
    path = np.repeat(np.arange(len(paths)), [len(part) for part in found])
    kept = ~_zero(entries)
    entries, path = entries[kept], path[kept]
    frames = (entries & _FRAME).astype(np.int64)
    in_file = _bit(entries, _FILE)
    pfn = np.unique(np.concatenate([frames, *(resident_frames(*what) for what in objects)]))
    by_path: dict[str, list[int]] = {}
    for number, name in enumerate(paths):
        by_path.setdefault(name, []).append(number)
    of = {name: np.isin(path, numbers) for name, numbers in by_path.items() if name.startswith("/")}
    return Census(
        pfn,
        node_of(pfn),
        len(frames),
        {name: np.unique(frames[rows]) for name, rows in of.items()},
        {name: np.unique(frames[rows & in_file]) for name, rows in of.items()},
    )


def thread(pid: int) -> int:
    """Return the ID of a thread of a process that has not ended: the first where that is one."""
    for path in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
        if (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
            return int(path.name)
    return pid


def vmas(pid: int) -> list[Vma]:
    """Return the mappings of a process."""
    found = []
    for line in Path(f"/proc/{thread(pid)}/maps").read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]:
        addresses, permissions, _offset, _device, rest = line.split(" ", 4)
        start, end = addresses.split("-")
        path = rest.split(" ", 1)[1].lstrip(" ") if " " in rest else ""
        found.append(Vma(int(start, 16), int(end, 16), permissions, path))
    return found


def page_table(pid: int, start: int, end: int) -> Entries:
    """Return the pagemap entry of each page of [start, end)."""
    with Path(f"/proc/{thread(pid)}/pagemap").open("rb", buffering=0) as file:
        return _entries(file.fileno(), start, end)


def _entries(descriptor: int, start: int, end: int) -> Entries:
    data = b""
    wanted = (end - start) // PAGE * 8
    while len(data) < wanted and (part := os.pread(descriptor, wanted - len(data), start // PAGE * 8 + len(data))):
        data += part
    return np.frombuffer(data, np.uint64)


def _bit(entries: Entries, bit: int) -> npt.NDArray[np.bool_]:
    answer: npt.NDArray[np.bool_] = (entries >> np.uint64(bit)) & np.uint64(1) != 0
    return answer


def _present(entries: Entries) -> Entries:
    return entries[_bit(entries, _PRESENT)]


def node_vector(pid: int, start: int, end: int) -> list[int]:
    """Return the node of each page of [start, end), -1 where none is present."""
    entries = page_table(pid, start, end)
    nodes = np.full(len(entries), -1, np.int64)
    nodes[_bit(entries, _PRESENT)] = node_of((_present(entries) & _FRAME).astype(np.int64))
    return [int(node) for node in nodes]


def swapped(pid: int, start: int, end: int) -> int:
    """Return how many pages of [start, end) are swapped out."""
    return int(_bit(page_table(pid, start, end), _SWAPPED).sum())


def resident_frames(path: str | Path, lo: int, hi: int) -> Ints:
    """Return the frames of the resident pages [lo, hi) of an object; they may reach beyond its end."""
    with _mapped(path, lo, hi) as memory:
        start = np.frombuffer(memory, np.uint8).ctypes.data
        pages = -(-len(memory) // PAGE)
        for page in np.flatnonzero(_mincore(start, pages)).tolist():
            memory.madvise(_MADV_POPULATE_READ, page * PAGE, min(PAGE, len(memory) - page * PAGE))
        entries = _present(page_table(os.getpid(), start, start + pages * PAGE))
        return (entries & _FRAME).astype(np.int64)


def residency(path: str | Path, pages: int) -> list[int]:
    """Return, for each page of an object, 1 if it is in memory."""
    with _mapped(path, 0, pages) as memory:
        return [int(byte) for byte in _mincore(np.frombuffer(memory, np.uint8).ctypes.data, pages)]


@contextmanager
def _mapped(path: str | Path, lo: int, hi: int) -> Iterator[mmap.mmap]:
    with Path(path).open("rb", buffering=0) as file:
        length = min(hi * PAGE, os.fstat(file.fileno()).st_size or hi * PAGE) - lo * PAGE
        with closing(mmap.mmap(file.fileno(), length, mmap.MAP_SHARED, mmap.PROT_READ, offset=lo * PAGE)) as memory:
            yield memory


def _mincore(address: int, pages: int) -> npt.NDArray[np.uint8]:
    vector = np.zeros(pages, np.uint8)
    where = ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE), ctypes.c_void_p(vector.ctypes.data)
    assert _libc.mincore(*where) == 0
    return vector & np.uint8(1)


def _zero(entries: Entries) -> npt.NDArray[np.bool_]:
    """Return which present entries show the zero page, which is nobody's."""
    frames, inverse = np.unique(entries & _FRAME, return_inverse=True)
    flags = np.zeros(len(frames), np.uint64)
    apart = np.flatnonzero(np.diff(frames) > 512) + 1
    with Path("/proc/kpageflags").open("rb", buffering=0) as file:
        for rows in np.split(np.arange(len(frames)), apart) if len(frames) else []:
            first, last = int(frames[rows[0]]), int(frames[rows[-1]])
            data = np.frombuffer(os.pread(file.fileno(), (last + 1 - first) * 8, first * 8), np.uint64)
            flags[rows] = data[(frames[rows] - np.uint64(first)).astype(np.int64)]
    return _bit(flags, _ZERO_PAGE)[inverse]


def node_of(frames: Ints) -> Ints:
    """Return the node of each frame, by the memory blocks below the nodes in sysfs."""
    block_pages = int(Path("/sys/devices/system/memory/block_size_bytes").read_text(), 16) // PAGE
    owners = {
        int(block.name[6:]): int(node.name[4:])
        for node in Path("/sys/devices/system/node").glob("node[0-9]*")
        for block in node.glob("memory[0-9]*")
    }
    table = np.full(max(owners) + 2, -1, np.int64)
    for block, node in owners.items():
        table[block] = node
    nodes: Ints = table[np.minimum(frames // block_pages, len(table) - 1)]
    return nodes


def queried_nodes(pid: int, addresses: Sequence[int]) -> list[int]:
    """Return the node of each address, or a negative errno, as the system call move_pages(2) itself says."""
    where = (ctypes.c_uint64 * len(addresses))(*addresses)
    status = (ctypes.c_int * len(addresses))()
    assert _libc.syscall(_SYS_MOVE_PAGES, pid, ctypes.c_ulong(len(addresses)), where, None, status, 0) == 0
    return list(status)


def numa_maps(pid: int) -> Counter[int]:
    """Return the base pages of a process per node, as the kernel's own walk counts them."""
    pages: Counter[int] = Counter()
    for line in Path(f"/proc/{thread(pid)}/numa_maps").read_text(errors="surrogateescape").splitlines():
        size = re.search(r" kernelpagesize_kB=(\d+)$", line)
        for node, count in re.findall(r" N(\d+)=(\d+)(?= |$)", line):
            pages[int(node)] += int(count) * (int(size[1]) * 1024 // PAGE if size else 1)
    return pages


def policies(pid: int) -> list[tuple[str, str]]:
    """Return the memory policy of each mapping of a process, by its address."""
    lines = Path(f"/proc/{pid}/numa_maps").read_text(errors="surrogateescape").splitlines()
    return [(line.split()[0], line.split()[1]) for line in lines]


def vmstat() -> Counter[str]:
    """Return the counters of /proc/vmstat, those of migrated pages without what the kernel's compaction moved.

    A node that fills wakes kcompactd, which moves pages within the node and counts them in the same place, a moment
    before it tells of them: so both are read until they stay the same.
    """
    seen: tuple[int, ...] = ()
    while True:
        (succeeded, failed), counters = _compacted(), _counters()
        before, seen = seen, (succeeded, failed, counters["pgmigrate_success"], counters["pgmigrate_fail"])
        if seen == before:
            return counters - Counter(pgmigrate_success=succeeded, pgmigrate_fail=failed)


def _counters() -> Counter[str]:
    lines = Path("/proc/vmstat").read_text().splitlines()
    return Counter({name: int(value) for name, value in (line.split() for line in lines)})


def _compacted() -> tuple[int, int]:
    """Return how many pages compaction moved, and failed to move, since this was first asked, by its trace event."""
    event = _TRACING / "events/migrate/mm_migrate_pages"
    if not event.exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", _TRACING], check=True)
    if "succeeded,failed" not in (event / "trigger").read_text():
        (event / "trigger").write_text(_BY_REASON)
    counted = rf"reason: +{_MR_COMPACTION} .*succeeded: +(\d+) +failed: +(\d+)"
    found = re.search(counted, (event / "hist").read_text())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def count_no_more() -> None:
    """Take back what `vmstat` has the kernel count."""
    trigger = _TRACING / "events/migrate/mm_migrate_pages/trigger"
    if trigger.exists() and "succeeded,failed" in trigger.read_text():
        trigger.write_text(f"!{_BY_REASON}")


def status(pid: int, *fields: str) -> dict[str, int]:
    """Return fields of /proc/PID/status that are in kB."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {field: int(found[field].split()[0]) for field in fields}


def smaps(pid: int, start: int, field: str) -> int:
    """Return a field, in kB, of the mapping that begins at `start`."""
    text = Path(f"/proc/{pid}/smaps").read_text(errors="surrogateescape")
    mapping = text[re.search(f"^{start:x}-", text, re.MULTILINE).start() :]  # type: ignore[union-attr]
    return int(re.search(rf"^{field}: +(\d+) kB", mapping, re.MULTILINE)[1])  # type: ignore[index]

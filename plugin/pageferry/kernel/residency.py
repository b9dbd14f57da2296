"""Which node each present page of a process is on.

With CAP_SYS_ADMIN, by page frame; where frames are hidden, or a memory block belongs to two nodes, by asking
move_pages(2), which takes longer. What is no memory of a node (a device's, the vdso's) is left out.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from pageferry.errors import Denied, KernelError
from pageferry.kernel import libnuma, pagemap
from pageferry.kernel.files import translated
from pageferry.kernel.pageflags import KSM, flags_of, huge_pages, mappings_of
from pageferry.kernel.pfn_ranges import PfnRanges, read_pfn_ranges
from pageferry.kernel.processes import SPARED, descriptors_left
from pageferry.kernel.procfs import living_thread
from pageferry.kernel.sparse import Sparse
from pageferry_planner import shared_huge
from pageferry_planner.capacity import HUGE_PAGES
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.model import ANONYMOUS, SELF, Ranges
from pageferry_planner.pages import Entries, Stretches


class PageTables:
    """Open page tables of processes, by the process's number in `pids`, and our own under SELF. Close it once."""

    def __init__(self, pids: Sequence[int], root: Path = Path("/")) -> None:
        """Open nothing yet: a page table is opened when it is first read."""
        self._pids = dict(enumerate(pids)) | {SELF: os.getpid()}
        self._root = root
        self._proc = str(root / "proc")
        self._open: dict[int, int] = {}
        self._most = max(1, descriptors_left() - SPARED // 2)
        self._in_turn: dict[int, tuple[int, int]] = {}  # by thread: of which process, and the descriptor
        self._lock = threading.Lock()
        self._sparse = Sparse(self.mappings, root)
        self._frames: PfnRanges | None = None
        with suppress(KernelError):
            self._frames = read_pfn_ranges(root)

    def entries(self, ranges: Ranges) -> Iterator[Entries]:
        """Read the present entries of ranges (those of one process must not overlap), a buffer at a time."""
        for present in pagemap.read(ranges, self.descriptor, self._alike):
            node = self._node_of(_frame(present))
            yield self._single(ranges, present, node, np.ones(len(node), bool))

    def stretches(
        self, ranges: Ranges, singled_out: Callable[[Entries | Stretches], Bools]
    ) -> Iterator[tuple[Stretches | Entries, Entries]]:
        """Read as entries() does, joined where that loses nothing; pages that `singled_out` names come one by one."""
        for present in pagemap.read(ranges, self.descriptor, self._alike, self._search):
            pfn = _frame(present)
            node = self._node_of(pfn)
            if node.min(initial=0) < 0:  # nodes are to be asked for page by page
                entries = self._single(ranges, present, node, np.ones(len(node), bool))
                named = singled_out(entries)
                yield entries.take(~named), entries.take(named)
                continue
            file, exclusive = (present.entry & pagemap.FILE) != 0, (present.entry & pagemap.EXCLUSIVE) != 0
            found = Stretches(present.row, present.page, present.count, node, pfn, file, exclusive)
            named = singled_out(found)
            yield found.take(~named), self._single(ranges, present, node, named)

    def _single(self, ranges: Ranges, present: pagemap.Present, node: Ints, rows: Bools) -> Entries:
        """Return the pages of some rows one by one; `node`: of each row, below 0 where it is to be asked for."""
        single = present.single(rows)
        node = np.repeat(node[rows], present.count[rows])
        if node.min(initial=0) < 0:
            self._ask_nodes(ranges.process[single.row], single.page, node)
        entries = Entries(
            row=single.row,
            page=single.page,
            node=node,
            pfn=_frame(single),
            file=(single.entry & pagemap.FILE) != 0,
            exclusive=(single.entry & pagemap.EXCLUSIVE) != 0,
        )
        return entries if node.min(initial=0) >= 0 else entries.take(node >= 0)

    def mappings(self, frames: Ints) -> Ints:
        """Return how often each page frame is mapped, by whomever; -1: we are not told."""
        try:
            return mappings_of(frames, self._root)
        except (Denied, PermissionError):  # as in a container that hides /proc/kpagecount
            return np.full(len(frames), -1, np.int64)

    def kinds(self, frames: Ints) -> npt.NDArray[np.uint64]:
        """Return the flags of page frames; 0: we are not told."""
        try:
            return flags_of(frames, self._root)
        except (Denied, PermissionError):
            return np.zeros(len(frames), np.uint64)

    def flags(self, ranges: Ranges) -> npt.NDArray[np.uint64]:
        """Return the flags of the first page of each range, as /proc/kpageflags has them; 0 where they are not told."""
        found = np.zeros(len(ranges), np.uint64)
        for entries in self.entries(replace(ranges, count=np.minimum(ranges.count, 1))):
            shown = entries.take(entries.pfn != 0)
            found[shown.row] = self.kinds(shown.pfn)
        return found

    def tells_merged(self) -> bool:
        """Return whether KPF_KSM marks merged pages alone: some kernels have it on all that are anonymous (6.12).

        There, stable_page_flags() takes each bit of PAGE_MAPPING_KSM for the whole of it. A page of our own shows it.
        """
        with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[0] = 1
            page = np.frombuffer(memory, np.uint8).ctypes.data // mmap.PAGESIZE
            process, first, count, of, index = np.array([[SELF], [page], [1], [ANONYMOUS], [page]])
            mine = Ranges(process, first, count, of, index, np.ones(1, bool))
            return bool((self.flags(mine) & KSM == 0).all())

    def through_owners(self, ranges: Ranges, entries: Entries, mapped_more: Ints) -> Entries:
        """Return the entries without parts of huge pages of which another process maps all; of such, one is left.

        Its entries may be none of these: the exclusive bit of all is that of the first (fs/proc/task_mmu.c
        pagemap_pmd_range(); of each page itself in Linux 6.11 to 6.14), which a parent that wrote to it has no more.
        Then the frames that the parent still maps are mapped more often than the entries show: `mapped_more`.
        """
        rows = np.flatnonzero(shared_huge.private(entries))
        found = shared_huge.owners(ranges.process[entries.row[rows]], entries.page[rows], entries.pfn[rows])
        blocks = np.setdiff1d(mapped_more // HUGE_PAGES, found.block)
        torn = blocks[huge_pages(blocks * HUGE_PAGES, HUGE_PAGES, self._root)]
        if len(torn):
            columns: list[tuple[Ints, ...]] = [(np.zeros(0, np.int64),) * 3]
            mine = ranges.take(ranges.private)
            for read in self.entries(mine):
                part = read.take(shared_huge.private(read) & np.isin(read.pfn // HUGE_PAGES, torn))
                columns.append((mine.process[part.row], part.page, part.pfn))
            more = shared_huge.owners(*map(np.concatenate, zip(*columns, strict=True)))
            both = shared_huge.Owners.concatenate([found, more])
            found = both.take(np.argsort(both.block))
        return shared_huge.through(ranges, entries, found)

    def descriptor(self, process: int) -> int:
        """Return the open pagemap of a process, until this thread asks for another one.

        Of one that has ended, one that reads as empty.
        """
        with self._lock:
            if process in self._open:
                return self._open[process]
            if len(self._open) < self._most:
                return self._open.setdefault(process, self._opened(process))
            thread = threading.get_ident()
            known, descriptor = self._in_turn.get(thread, (None, -1))
            if known != process:
                if descriptor >= 0:
                    os.close(self._in_turn.pop(thread)[1])
                descriptor = self._opened(process)
                self._in_turn[thread] = process, descriptor
            return descriptor

    def _opened(self, process: int) -> int:
        path = f"{self._proc}/{self._thread(process)}/pagemap"
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            if Path(f"{self._proc}/{self._pids[process]}/stat").exists() and not Path(path).exists():
                raise KernelError(f"{path} is missing: the kernel has no CONFIG_PROC_PAGE_MONITOR") from error
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise translated(error, path) from error

    @property
    def unread(self) -> int:
        """How many pages of sparse mappings are in memory, and were not found in the time that there is for them."""
        return self._sparse.unread

    def _search(self, process: int, lo: int, hi: int) -> list[tuple[int, int]]:
        if process == SELF:
            return [(lo, hi)]
        return self._sparse.present(self._thread(process), self.descriptor(process), lo, hi)

    def _thread(self, process: int) -> int:
        """Return the ID of a thread through which a process is reached now."""
        return living_thread(self._pids[process], self._root)

    def _ask_nodes(self, process: Ints, page: Ints, node: Ints) -> None:
        unknown = np.flatnonzero(node < 0)
        for number in np.unique(process[unknown]).tolist():
            rows = unknown[process[unknown] == number]
            addresses = page[rows].astype(np.uint64) * np.uint64(mmap.PAGESIZE)
            try:
                node[rows] = libnuma.query_pages(self._thread(number), addresses)
            except OSError as error:
                if error.errno not in {errno.ESRCH, errno.EINVAL}:  # EINVAL: that thread has just ended
                    raise

    def _node_of(self, pfn: Ints) -> Ints:
        if self._frames is None:
            return np.full(len(pfn), -1, np.int64)
        node = self._frames.node_of(pfn.view(np.uint64)).astype(np.int64)
        node[pfn == 0] = -1
        return node

    @property
    def _alike(self) -> int:
        """The bits in which entries must agree to be joined: what they say of a page, and which memory block it is in.

        A range of frames starts and ends with a memory block, so the lowest bit set in any of these numbers tells one.
        """
        bits = int(pagemap.PRESENT | pagemap.FILE | pagemap.EXCLUSIVE)
        if self._frames is None or not len(self._frames.node):
            return bits | int(pagemap.PFN)
        edges = int(np.bitwise_or.reduce(np.concatenate([self._frames.start_pfn, self._frames.end_pfn])))
        return bits | int(pagemap.PFN) & -(edges & -edges)

    def close(self) -> None:
        """Close all page tables."""
        while self._open:
            os.close(self._open.popitem()[1])
        while self._in_turn:
            os.close(self._in_turn.popitem()[1][1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _frame(present: pagemap.Present) -> Ints:
    return (present.entry & pagemap.PFN).astype(np.int64)

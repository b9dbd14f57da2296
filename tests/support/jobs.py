"""A job in a simulated memory: processes, what they map, and every page frame, each kept one by one.

It prints what the kernel would (the text of /proc/PID/maps, page-table entries) and knows, by plain sets and
dictionaries, what the planner has to find out. It shares no code with the planner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
from hypothesis import strategies as st

from pageferry_planner.model import Ranges
from pageferry_planner.pages import Entries

PAGE = 4096
ANON = -1
FILES = ("/data/input", "/lib/libm.so", "/dev/shm/ring", "/memfd:pool (deleted)")


@dataclass(frozen=True)
class Mapping:
    """Pages [page, page + count) of a process; `file` (ANON: none) from page `offset` of it on."""

    page: int
    count: int
    file: int = ANON
    offset: int = 0
    shared: bool = False
    writable: bool = True

    @property
    def end(self) -> int:
        return self.page + self.count

    def index_of(self, page: int) -> int:
        return self.offset + page - self.page

    def line(self) -> bytes:
        kind = f"r{'w' if self.writable else '-'}-{'s' if self.shared else 'p'}"
        where = "00:00 0" if self.file == ANON else f"08:01 {100 + self.file}"
        name = "" if self.file == ANON else " " * 20 + FILES[self.file]
        offset = 0 if self.file == ANON else self.offset * PAGE
        return f"{self.page * PAGE:08x}-{self.end * PAGE:08x} {kind} {offset:08x} {where} {name}\n".encode()


def text_of(mappings: Iterable[Mapping]) -> bytes:
    return b"".join(mapping.line() for mapping in sorted(mappings, key=lambda mapping: mapping.page))


@dataclass
class Memory:
    """Frames are numbered from 1. `cache`: (file, index) → frame; `table`: per process, page → frame."""

    processes: list[list[Mapping]]
    node: dict[int, int] = field(default_factory=dict)
    cache: dict[tuple[int, int], int] = field(default_factory=dict)
    table: list[dict[int, int]] = field(default_factory=list)
    outside: set[int] = field(default_factory=set)

    def frame(self, random: Random) -> int:
        number = len(self.node) + 1
        self.node[number] = random.randrange(4)
        return number

    def of_file(self, random: Random, file: int, index: int) -> int:
        if (file, index) not in self.cache:
            self.cache[file, index] = self.frame(random)
        return self.cache[file, index]

    def is_file(self, frame: int) -> bool:
        return frame in self.cache.values()

    def mapped(self) -> set[int]:
        return {frame for table in self.table for frame in table.values()}

    def mapping_at(self, process: int, page: int) -> Mapping:
        return next(m for m in self.processes[process] if m.page <= page < m.end)

    def entries(self, ranges: Ranges, frames_known: bool = True) -> Entries:
        """Return what the kernel shows of the present pages of ranges."""
        rows: list[tuple[int, int, int, int, bool, bool]] = []
        of_files = set(self.cache.values())
        counts: dict[int, int] = {}
        for table in self.table:
            for frame in table.values():
                counts[frame] = counts.get(frame, 0) + 1
        for row in range(len(ranges)):
            table = self.table[int(ranges.process[row])]
            first = int(ranges.page[row])
            for page in range(first, first + int(ranges.count[row])):
                if page in table:
                    frame = table[page]
                    alone = counts[frame] + (frame in self.outside) == 1
                    shown = frame if frames_known else 0
                    rows.append((row, page, self.node[frame], shown, frame in of_files, alone))
        columns = list(zip(*rows, strict=True)) if rows else [()] * 6
        in_range, at, on, pfn = (np.array(column, np.int64) for column in columns[:4])
        file, exclusive = (np.array(column, bool) for column in columns[4:])
        return Entries(in_range, at, on, pfn, file, exclusive)


@st.composite
def mappings(draw: st.DrawFn, most: int = 5) -> list[Mapping]:
    """Draw what one process maps: files at any offset, shared and private, and anonymous memory, in any order."""
    page = draw(st.integers(1, 4))
    found = []
    for _ in range(draw(st.integers(0, most))):
        count = draw(st.integers(1, 6))
        file = draw(st.sampled_from((ANON, 0, 0, 1, 2)))
        found.append(
            Mapping(
                page,
                count,
                file,
                offset=0 if file == ANON else draw(st.integers(0, 6)),
                shared=file != ANON and draw(st.booleans()),
                writable=draw(st.booleans()),
            )
        )
        page += count + draw(st.integers(0, 2))
    return found


@st.composite
def layouts(draw: st.DrawFn, most: int = 4) -> list[list[Mapping]]:
    """Draw what the processes of a job map; some are forks of earlier ones, which may have unmapped something."""
    processes: list[list[Mapping]] = []
    for number in range(draw(st.integers(1, most))):
        if number and draw(st.booleans()):
            parent = draw(st.sampled_from(processes))
            processes.append([mapping for mapping in parent if draw(st.integers(0, 4))])
        else:
            processes.append(draw(mappings()))
    return processes


@st.composite
def memories(draw: st.DrawFn, *, written_then_protected: bool = False) -> Memory:
    """Draw a job with its page frames: touched or not, written or not, and copy-on-write after each fork.

    `written_then_protected`: read-only private mappings of files may hold pages that were written to.
    """
    random = Random(draw(st.integers(0, 1 << 32)))
    eager = draw(st.sampled_from((0.2, 0.7, 1.0)))
    memory = Memory([])
    for number in range(draw(st.integers(1, 4))):
        if number and draw(st.booleans()):
            _fork(draw(st.sampled_from(range(number))), memory, random, draw(st.booleans()))
            continue
        memory.processes.append(draw(mappings()))
        memory.table.append({})
        for mapping in memory.processes[-1]:
            _touch(memory, mapping, random, eager, written_then_protected)
    mapped = sorted(memory.mapped())
    memory.outside = {frame for frame in mapped if random.random() < 0.1}
    return memory


def _touch(memory: Memory, mapping: Mapping, random: Random, eager: float, written_then_protected: bool) -> None:
    may_be_written = not mapping.shared and (mapping.file == ANON or mapping.writable or written_then_protected)
    for page in range(mapping.page, mapping.end):
        if random.random() > eager:
            continue
        if mapping.file == ANON or (may_be_written and random.random() < 0.5):
            memory.table[-1][page] = memory.frame(random)
        else:
            memory.table[-1][page] = memory.of_file(random, mapping.file, mapping.index_of(page))


def _fork(parent: int, memory: Memory, random: Random, protects: bool) -> None:
    """Add a child that shares all pages of the parent; then each may write, which copies, and the child may unmap."""
    kept = [mapping for mapping in memory.processes[parent] if random.random() < 0.9]
    table = {page: frame for m in kept for page, frame in memory.table[parent].items() if m.page <= page < m.end}
    for mapping in kept:
        for page in range(mapping.page, mapping.end):
            if mapping.shared or not mapping.writable or page not in table or random.random() > 0.3:
                continue
            writer = random.choice((table, memory.table[parent]))
            writer[page] = memory.frame(random)
    memory.processes.append(kept)
    memory.table.append(table)
    if protects:  # the child splits a mapping in two, as mprotect(2) does
        memory.processes[-1] = [part for mapping in kept for part in _halves(mapping)]


def _halves(mapping: Mapping) -> Iterator[Mapping]:
    half = mapping.count // 2
    if not half or mapping.shared:
        yield mapping
        return
    yield replace(mapping, count=half)
    offset = mapping.offset + (0 if mapping.file == ANON else half)
    yield replace(mapping, page=mapping.page + half, count=mapping.count - half, offset=offset, writable=False)

"""The planner's values: what is asked of it, what it answers, and how pages are counted.

Columns are numpy arrays of one length, one row per thing; `page` is a virtual page number (address / page size),
`index` a page's place in its backing, `node` a NUMA node. Page counts are base pages unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np

from pageferry_planner.columns import Bools, Columns, Ints

ANONYMOUS = -1
"""In a `backing` column: memory of one process (and, after fork, its children), backed by no object."""

SELF = -1
"""In a `process` column: pageferry's own address space, into which it mapped the object itself."""


def huge_page(page_bytes: int) -> int:
    """Return the pages of a transparent huge page: as many as a page has room for page-table entries of 8 bytes."""
    return page_bytes // 8


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the job. `nodes`: those of the CPUs it may use; `mems_allowed`: its cpuset's nodes."""

    pid: int
    start_time: int
    name: str
    nodes: frozenset[int]
    mems_allowed: frozenset[int]


@dataclass(frozen=True, slots=True)
class Backing:
    """What VMAs map, known by (device, inode).

    `space` tells apart what the pair alone does not: System V segments show their shmid as inode, which may be
    another shmem file's inode, and every IPC namespace counts its shmids from 0 (kernel ipc/shm.c). Subvolumes of a
    btrfs, and the layers of an overlay, show one device: there it is what stat(2) says of the file, or else its path.
    """

    device: str
    inode: int
    space: str
    path: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backing's pages may move, the rule that decided, and what the rule saw."""

    moves: bool
    rule: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ranges(Columns):
    """Pages [page, page + count) of a process, one row per range: what is mapped, or what is to be read.

    `backing` and `index` (of the first page; ANONYMOUS: the page number itself) say what lies there. `private`: pages
    written there belong to the process.
    """

    process: Ints
    page: Ints
    count: Ints
    backing: Ints
    index: Ints
    private: Bools


class Kind(IntEnum):
    """What the pages of a run are.

    PAGE: asked for one by one. FOLIO: whole large folios (huge pages among them), each asked for by the address of its
    first page. PART: what is mapped here of one large folio. HUGETLB: huge pages of a pool.
    """

    PAGE = 0
    FOLIO = 1
    PART = 2
    HUGETLB = 3


@dataclass(frozen=True, slots=True)
class Runs(Columns):
    """Unique resident pages of a job, as runs of consecutive pages of one process on one node (int64 columns).

    `unit`: pages of each of its folios, 1 for ordinary pages, and where nobody has looked; `kind`: a Kind. A run is of
    whole folios, from the first page of one on, unless it is a PART: then it is of one, and has fewer pages than that.
    `folio`: a number that all parts of one folio have, where there are several; else 0.
    """

    process: Ints
    page: Ints
    count: Ints
    node: Ints
    backing: Ints
    index: Ints
    unit: Ints
    kind: Ints
    folio: Ints

    @classmethod
    def of_pages(cls, process: Ints, page: Ints, count: Ints, node: Ints, backing: Ints, index: Ints) -> Runs:  # noqa: PLR0917 - columns
        """Return runs of ordinary pages."""
        nothing = np.zeros_like(page)
        return cls(process, page, count, node, backing, index, nothing + 1, nothing, nothing)

    def pages(self) -> int:
        """Return the number of base pages in all runs."""
        return int(self.count.sum())

    def room(self) -> Ints:
        """Return the pages that each run takes where it goes: of a folio that is mapped in part here, all."""
        return np.where(self.kind == Kind.PART, np.maximum(self.count, self.unit), self.count)

    def steps(self) -> Ints:
        """Return for each run the pages that go together, wherever they go: it may be cut at multiples of so many."""
        return np.where(self.kind == Kind.PART, self.count, self.unit)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at one moment: its processes, what they map, what rules say of it, and where each resident page is.

    `vmas`: all VMAs that memory of the job can be in. `asked_per_process`: what asking every process for every resident
    page of what it maps would request, in pages. `referenced`: how many pages of each run were used of late; None: not
    known. `folios`: large folios were looked for; else all pages count as ordinary ones. `unread`: pages that are in
    memory, and were not found in time.
    """

    page_bytes: int
    processes: tuple[Process, ...]
    backings: tuple[Backing, ...]
    verdicts: tuple[Verdict, ...]
    vmas: Ranges
    runs: Runs
    asked_per_process: int
    referenced: Ints | None = None
    folios: bool = False
    unread: int = 0

    @property
    def huge_page(self) -> int:
        """Pages of a transparent huge page."""
        return huge_page(self.page_bytes)

    def movable(self) -> Bools:
        """Return which runs may move, by the rules."""
        moves = np.array([verdict.moves for verdict in self.verdicts] + [True], bool)  # the last is ANONYMOUS
        may: Bools = moves[self.runs.backing]
        return may


class Strategy(StrEnum):
    """Which node a page goes to; see `placement`."""

    RELATIVE = "relative"
    LOCAL = "local"
    INTERLEAVE = "interleave"
    PACK = "pack"
    WEIGHTED = "weighted"


MOST_WEIGHT = 255
"""A node's weight is 1 to this, as the kernel's."""


class Order(StrEnum):
    """What goes first: what is worth most (see `worth`), or what comes first in large batches."""

    WORTH = "worth"
    ADDRESS = "address"


class WhenFull(StrEnum):
    """What to do when a target node has no room: nothing at all, what fits, or the next nearest node too."""

    REFUSE = "refuse"
    PARTIAL = "partial"
    SPILL = "spill"


class HugePages(StrEnum):
    """What becomes of a transparent huge page whose target has none free: the kernel may split it, or it stays."""

    SPLIT = "split"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a job's memory shall go.

    `nodes` in the order asked. `sources`: the old nodes of the relative map; None: those that hold the job's memory.
    `spill`: nodes that may take what does not fit, if `when_full` says so. `weights`: pairs of a node and its weight,
    for `weighted`; a node that is in none has weight 1. `special`: nodes whose memory is there on purpose (HBM, a
    GPU's), and stays unless `nodes` or `sources` name them. `hugetlb_surplus`: a hugetlb page may go where its pool has
    none free, which makes that pool larger and its own smaller.
    """

    nodes: tuple[int, ...]
    strategy: Strategy = Strategy.RELATIVE
    sources: frozenset[int] | None = None
    when_full: WhenFull = WhenFull.REFUSE
    spill: frozenset[int] = frozenset()
    order: Order = Order.WORTH
    huge_pages: HugePages = HugePages.SPLIT
    weights: tuple[tuple[int, int], ...] = ()
    special: frozenset[int] = frozenset()
    hugetlb_surplus: bool = False

    @property
    def left_alone(self) -> frozenset[int]:
        """The special nodes whose memory stays."""
        return self.special - {*self.nodes, *(self.sources or ())}


@dataclass(frozen=True, slots=True)
class Host:
    """What placement must know of the host: free room in pages per node, and for each node all others by distance.

    `huge`: free huge pages per node, for a target that keeps them. `pools`: free hugetlb pages by node and size in
    pages.
    """

    room: Mapping[int, int]
    nearest: Mapping[int, tuple[int, ...]]
    huge: Mapping[int, int] = field(default_factory=dict)
    pools: Mapping[tuple[int, int], int] = field(default_factory=dict)


class Bucket(StrEnum):
    """Where a resident page ends: exactly one of these."""

    MOVED = "moved"
    IN_PLACE = "in_place"
    EXCLUDED = "excluded"
    PINNED = "pinned"
    NO_ROOM = "no_room"
    NO_HUGE_PAGE = "no_huge_page"
    DENIED = "denied"
    VANISHED = "vanished"
    NOT_REACHED = "not_reached"


FATES = tuple(Bucket)
"""A bucket as a number: its place here."""

GONE = -1
"""In a `to` column: on no node any more."""


@dataclass(frozen=True, slots=True)
class Flows(Columns):
    """Pages of a backing by the node where they were found (`node`), where they are then (`to`), and their `fate`.

    `fate`: a place in FATES.
    """

    backing: Ints
    node: Ints
    to: Ints
    fate: Ints
    count: Ints


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be requested (`moves`, with `target` and `stage` per run) and what stays, and why.

    `stage`: runs of a lower stage leave a node before runs of a higher one need its room. `excluded` and the other
    counts are base pages. `need`, `room`: pages per node. `lacking`: pages per node that have no room there; when it is
    not empty, nothing at all may be moved. `stays`: the pages that are in no move. `rank`: within a stage, runs of a
    lower one go first; None: all are alike. `keeps`: huge pages must not be split; `surplus`: the kernel may add to a
    pool. `no_huge_page`: pages that stay for want of one; `short`: how many of them, per node, a free transparent one
    there would help. `pool_need`, `pools`: hugetlb pages wanted, and free ones, by node and size in pages. `special`:
    how many of `in_place` are so because their node is special. `unread`: as in the snapshot; nothing else here counts
    these.
    """

    page_bytes: int
    processes: tuple[Process, ...]
    moves: Runs
    target: Ints
    stage: Ints
    in_place: int
    excluded: Mapping[str, int]
    no_room: int
    sources: tuple[int, ...]
    need: Mapping[int, int]
    room: Mapping[int, int]
    asked_per_process: int
    lacking: Mapping[int, int]
    stays: Flows = field(default_factory=Flows.empty)
    rank: Ints | None = None
    keeps: bool = False
    surplus: bool = False
    no_huge_page: int = 0
    short: Mapping[int, int] = field(default_factory=dict)
    unread: int = 0
    special: int = 0
    pool_need: Mapping[tuple[int, int], int] = field(default_factory=dict)
    pools: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def total(self) -> int:
        """Return the resident base pages of the job that the plan accounts for."""
        return self.moves.pages() + self.in_place + sum(self.excluded.values()) + self.no_room + self.no_huge_page


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of every resident page, in base pages, and what it cost.

    `requested`: base pages asked of the kernel, the first time; `retried`: again; `addresses`: entries in
    move_pages(2) calls (one per folio); `calls`: move_pages(2) calls. `split`: huge pages that the kernel split to
    migrate them, whosever they were, while this was to keep them.
    """

    pages: Mapping[Bucket, int] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)
    requested: int = 0
    retried: int = 0
    addresses: int = 0
    calls: int = 0
    split: int = 0

    def __getitem__(self, bucket: Bucket) -> int:
        return self.pages.get(bucket, 0)

    def total(self) -> int:
        """Return the pages in all buckets."""
        return sum(self.pages.values())

    def misplaced(self) -> int:
        """Return the pages that were to move and did not."""
        return self.total() - self[Bucket.MOVED] - self[Bucket.IN_PLACE] - self[Bucket.EXCLUDED]

"""What a snapshot file may hold, line by line, and how much of it.

Each line is one JSON object, in ASCII: the head, then as many lines of each kind, in this order, as the head says:
nodes, processes, backings, and the rows of `vmas` and `runs` in pieces. A name that is not UTF-8 has the lone
surrogates that Python gives it. The structs know one line each; what lines say of one another is `read`'s to check.
Rules, and the facts that they were asked of, are as the planner has them: a site's rules become more, and one that an
older file does not know has its default.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pageferry_planner.model import MOST_WEIGHT
from pageferry_planner.policy import Facts, Rules

VERSION = 1
"""Of the file: raised when a reader of the old one would misunderstand the new one."""

MOST_BYTES = 256 << 20
MOST_LINE_BYTES = 4 << 20
MOST_ROWS = 1 << 21
"""Of `vmas`, and of `runs`."""

PIECE_ROWS = 4096
"""Rows of one line."""

MOST_MEMBERS = 1 << 20
"""Members of all node lists of the processes; equal lists count once."""

MOST_OUTSIDERS = 1 << 22
"""Pids of other processes, for all backings."""

MOST_CUTS = 1 << 24
"""Into so many parts a strategy may cut the runs: every 512 pages, or where mappings begin and end."""

_PAGES = 1 << 52
"""Above any page number: an address, or an offset in a file, has 64 bits, and a page at least 4096 bytes."""

_BYTES = 1 << 60
_PATH_CHARACTERS = 1 << 15
"""The kernel's 4096 bytes, each of which may be written as four ("\\012")."""

Bytes = Annotated[int, Meta(ge=0, lt=_BYTES)]
NodeNumber = Annotated[int, Meta(ge=0, lt=1024)]
Weight = Annotated[int, Meta(ge=1, le=MOST_WEIGHT)]
Path = Annotated[str, Meta(max_length=_PATH_CHARACTERS)]
Word = Annotated[str, Meta(max_length=64, pattern=r"^[a-z0-9-]+\Z")]
NodeList = Annotated[str, Meta(max_length=8192)]
Pid = Annotated[int, Meta(ge=0, lt=1 << 31)]
Count = Annotated[int, Meta(ge=0, le=MOST_ROWS)]
Numbers = Annotated[list[Annotated[int, Meta(ge=-1, lt=_PAGES)]], Meta(max_length=PIECE_ROWS)]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the lines. The fields are the planner's, see `pageferry_planner.model`."""


class TargetPart(Line, frozen=True):
    """Where the memory was to go; no `nodes`: nobody had said."""

    nodes: Annotated[tuple[NodeNumber, ...], Meta(max_length=1024)]
    strategy: Literal["relative", "local", "interleave", "pack", "weighted"]
    sources: Annotated[tuple[NodeNumber, ...], Meta(max_length=1024)] | None
    when_full: Literal["refuse", "partial", "spill"]
    spill: Annotated[tuple[NodeNumber, ...], Meta(max_length=1024)]
    order: Literal["worth", "address"]
    huge_pages: Literal["split", "keep"] = "split"
    weights: Annotated[tuple[tuple[NodeNumber, Weight], ...], Meta(max_length=1024)] = ()
    special: Annotated[tuple[NodeNumber, ...], Meta(max_length=1024)] = ()
    hugetlb_surplus: bool = False


class Head(Line, frozen=True):
    """The first line: of which job, what was asked for, and how many lines or rows of each kind follow.

    `huge`: as older files have it.
    """

    pageferry_snapshot: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    pageferry: Annotated[str, Meta(max_length=64)]
    of: Annotated[str, Meta(max_length=_PATH_CHARACTERS)]
    anonymised: bool
    page_bytes: Annotated[int, Meta(ge=4096, le=1 << 20)]
    asked_per_process: Bytes
    reserve_bytes: Bytes | None
    target: TargetPart
    rules: Rules
    nodes: Annotated[int, Meta(ge=1, le=1024)]
    processes: Annotated[int, Meta(ge=1, le=MOST_ROWS)]
    backings: Count
    vmas: Count
    runs: Count
    folios: bool = False
    huge: None = None
    unread: Bytes = 0


class NodeLine(Line, frozen=True):
    """A NUMA node; `distances` to all nodes, in the order of their lines; `cpus` as the kernel lists them.

    `free_hugepages`: by size in bytes.
    """

    node: NodeNumber
    total_bytes: Bytes
    free_bytes: Bytes
    file_cache_bytes: Bytes
    kept_free_bytes: Bytes
    distances: Annotated[tuple[Annotated[int, Meta(ge=0, lt=65536)], ...], Meta(max_length=1024)]
    free_huge_pages: Bytes = 0
    cpus: NodeList = ""
    free_hugepages: Annotated[tuple[tuple[Bytes, Bytes], ...], Meta(max_length=64)] = ()


class ProcessLine(Line, frozen=True):
    """A process; the nodes as the kernel lists them ("0-3")."""

    pid: Pid
    start_time: Bytes
    name: Annotated[str, Meta(max_length=256)]
    nodes: NodeList
    mems_allowed: NodeList


class BackingLine(Line, frozen=True):
    """What VMAs map, what the rules were asked of it, and the verdict."""

    device: Annotated[str, Meta(max_length=64)]
    inode: Annotated[int, Meta(ge=0)]
    space: Path
    path: Path
    facts: Facts
    moves: bool
    rule: Word
    detail: Path


class VmaRows(Line, frozen=True):
    """Some rows of the VMAs; `private` is 0 or 1."""

    vmas: Count
    process: Numbers
    page: Numbers
    count: Numbers
    backing: Numbers
    index: Numbers
    private: Numbers


class RunRows(Line, frozen=True):
    """Some rows of the runs; `referenced` in each of these lines or in none, and so `unit`, `kind` and `folio`."""

    runs: Count
    process: Numbers
    page: Numbers
    count: Numbers
    node: Numbers
    backing: Numbers
    index: Numbers
    unit: Numbers | None = None
    kind: Numbers | None = None
    folio: Numbers | None = None
    referenced: Numbers | None = None

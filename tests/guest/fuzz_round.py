"""One move of a tree of processes that a seed drives, before witnesses: frozen, or while they run.

Frozen, the account is that of an independent census by frames, and the kernel counts as many migrations. While it runs,
each page that is there throughout is in exactly one run of the snapshot, and the account is between what was there
throughout and what was there ever.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from guest import rights, witness
from guest.fuzz_tree import BASE, Tree
from guest.fuzz_witness import (
    HUGE,
    PAGE,
    SHARED_MEMORY,
    elsewhere,
    entries,
    frame,
    free_of,
    in_memory,
    nodes_of,
    others_moved,
    parts,
    pools,
    shared_memory,
)
from guest.proof import prove
from pageferry import ferry
from pageferry.mover import Limits
from pageferry_planner.columns import Ints
from pageferry_planner.model import (
    ANONYMOUS,
    SELF,
    Bucket,
    HugePages,
    Snapshot,
    Strategy,
    Target,
    WhenFull,
)
from pageferry_planner.policy import OUTSIDE, Rules

SIZES = ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmSwap", "VmPTE", "VmSize", "VmLck")
FAULT_AROUND = 16
"""Pages of a file that one fault may map."""


def requested(chance: random.Random, nodes: Sequence[int]) -> ferry.Request:
    """Return a request at random: where to, how, with how much room, by how many workers."""
    chosen = chance.sample(list(nodes), chance.choice([1, 1, 1, 2, 3]))
    reserve = None
    if chance.random() < 0.3:
        free = [int(free_of(node)) for node in chosen]
        reserve = max(0, max(free) - chance.choice([0, 100, 1000, 4000]) * PAGE)
    seconds = chance.choice([0.0, 0.02, 0.2]) if chance.random() < 0.15 else None
    return ferry.Request(
        Target(
            tuple(chosen),
            strategy=chance.choice(list(Strategy)),
            when_full=chance.choice(list(WhenFull)),
            spill=frozenset(nodes),
            huge_pages=chance.choice([HugePages.SPLIT, HugePages.SPLIT, HugePages.KEEP]),
            hugetlb_surplus=chance.random() < 0.3,
        ),
        Rules(),
        Limits(workers=chance.choice([1, 2]), seconds=seconds),
        reserve_bytes=reserve,
    )


def state(tree: Tree, files: Sequence[Path]) -> dict[str, int]:
    """Return what must be the same before and after a move of what stands still."""
    found = dict(pools())
    for pid in tree.pids:
        found |= {f"{pid} {name}": size for name, size in witness.status(witness.thread(pid), *SIZES).items()}
    for path in files:
        found[f"{path} in memory"] = in_memory(path)
        if str(path).startswith(SHARED_MEMORY):
            found[f"{path} blocks"] = path.stat().st_blocks
    return found


@dataclass(slots=True)
class Still:
    """The tree as what stands still, and its state when its memory was sealed, and when that is looked at again."""

    tree: Tree
    files: Sequence[Path]
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)

    @property
    def pids(self) -> tuple[int, ...]:
        """The job's processes."""
        return self.tree.pids

    def seal(self) -> None:
        """Have each remember what its memory holds."""
        self.tree.seal()
        witness.census(self.pids, shared_memory(self.pids))  # what that takes out of the swap is there from now on
        self.before = state(self.tree, self.files)

    def broken(self) -> list[tuple[int, list[int]]]:
        """Return where memory holds something else; who looks has page faults of its own."""
        self.after = state(self.tree, self.files)
        return self.tree.broken()


def frozen(tree: Tree, request: ferry.Request, files: Sequence[Path], outside: Sequence[int]) -> None:
    """Move what stands still, and assert that the account is the census, and that nothing else has changed.

    `outside`: processes that are not the job's, no page of which may move.
    """
    still = Still(tree, files)
    still.seal()
    objects = shared_memory(tree.pids)
    torn = parts(tree.pids, objects)
    theirs = {pid: nodes_of(pid) for pid in outside}
    proof = prove(still, request, objects, unmapped=None)
    assert elsewhere(theirs) == []
    changed = [(name, size, still.after[name]) for name, size in still.before.items() if still.after[name] != size]
    assert changed == []
    assert proof.migrated == proof[Bucket.MOVED] + others_moved(torn)
    assert not proof[Bucket.PINNED] or any(answer[2] for answer in tree.ask("stable").values())


def moved_and_seen(pids: Sequence[int], request: ferry.Request) -> tuple[ferry.Outcome, Snapshot]:
    """Move processes; return the outcome, and the snapshot that it was planned from."""
    seen: list[ferry.Inputs] = []
    return ferry.move(pids, request, seen=seen.append), seen[0].snapshot


def running(tree: Tree, request: ferry.Request, procs: Path, outside: Sequence[int]) -> None:
    """Move what runs, and assert that each page that was there throughout was counted once."""
    before = witness.census(tree.pids, shared_memory(tree.pids))
    stable = {pid: answer[1] for pid, answer in tree.ask("stable").items()}
    pinned = any(answer[2] for answer in tree.ask("stable").values())
    first = {pid: entries(pid, [area[:2] for area in areas]) for pid, areas in stable.items()}
    theirs = {pid: nodes_of(pid) for pid in outside}
    tree.run()
    try:
        pids = tuple(map(int, procs.read_text().split()))
        outcome, snapshot = rights.call(moved_and_seen, pids, request)
    finally:
        tree.stop()
    kept = {pid: [area[:2] for area in areas if area[2]] for pid, areas in stable.items() if pid in tree.pids}
    last = {pid: entries(pid, kept.get(pid, [])) for pid in stable}
    assert elsewhere(theirs, stays=False) == []
    throughout = {frame(entry) for pid in stable for page, entry in first[pid].items() if page in last[pid]}
    counted_once(snapshot, first, last, pinned)
    ever = before.total + tree.possible + FAULT_AROUND * tree.faults
    assert snapshot.runs.pages() == outcome.plan.total()
    assert len(throughout) <= outcome.plan.total() <= ever
    assert len(throughout) <= outcome.tally.total() <= ever


def counted_once(
    snapshot: Snapshot, first: dict[int, dict[int, int]], last: dict[int, dict[int, int]], pinned: bool
) -> None:
    """Assert that each page that processes had at these places before and after is in one run of the snapshot.

    Memory of one process is told by its address, as each of the tree has it at the same; of what has an object, by its
    place in that. A child of a process whose pages were pinned has copies of them (kernel copy_present_page()).
    """
    number = {process.pid: row for row, process in enumerate(snapshot.processes)}
    vmas, runs = snapshot.vmas, snapshot.runs
    private: dict[int, dict[int, bool]] = {}  # by page: the frames, and whether they were there throughout
    objects: dict[tuple[int, int], bool] = {}
    for pid, shown in first.items():
        rows = np.flatnonzero(vmas.process == number.get(pid, -2))
        rows = rows[np.argsort(vmas.page[rows])]
        for page, entry in shown.items():
            at = np.searchsorted(vmas.page[rows], page, "right") - 1
            stays = page in last[pid]
            row = int(rows[at]) if len(rows) and at >= 0 else -1
            of = ANONYMOUS
            if row >= 0 and page < vmas.page[row] + vmas.count[row]:
                of = int(vmas.backing[row])
                if vmas.private[row] and not entry >> 61 & 1:
                    of = ANONYMOUS
            elif entry >> 61 & 1:
                continue  # it had ended when the job was looked at
            if of == ANONYMOUS:
                frames = private.setdefault(page, {})
                frames[frame(entry)] = frames.get(frame(entry), False) or stays
            else:
                key = of, int(vmas.index[row]) + page - int(vmas.page[row])
                objects[key] = objects.get(key, False) or stays
    young = sum(process.pid not in first for process in snapshot.processes) if pinned else 0
    apart = snapshot.backings.index(OUTSIDE) if OUTSIDE in snapshot.backings else ANONYMOUS
    own = runs.take((runs.process != SELF) & ((runs.backing == ANONYMOUS) | (runs.backing == apart)))
    counted = times(own.page - BASE, own.count)
    for page, frames in private.items():
        found = int(counted[page - BASE])
        assert sum(frames.values()) <= found <= len(frames) + young, (hex(page), frames, found)
    for of in {of for of, _ in objects}:
        part = runs.take(runs.backing == of)
        counted = times(part.index, part.count)
        for index in (index for backing, index in objects if backing == of):
            assert objects[of, index] <= counted[index] <= 1, (snapshot.backings[of], index, counted[index])


def times(first: Ints, count: Ints) -> Ints:
    """Return how often each of the numbers from 0 on is in a stretch of so many from a first one on."""
    size = 1 << 16
    lo, hi = (np.bincount(np.clip(edge, 0, size), minlength=size + 1) for edge in (first, first + count))
    return np.cumsum(lo - hi)


def small_batches(chance: random.Random) -> dict[str, int]:
    """Return sizes of the mover's batches: as for a real job, or so small that there are many: a folio each."""
    return {"BATCH_PAGES": chance.choice([1 << 15, HUGE]), "WORKER_PAGES": chance.choice([1 << 13, HUGE])}

"""Memory that spilled to far nodes comes home when another job ends: live, rate-limited, and only as far as it fits."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from guest.proof import prove, request
from guest.ranks import job
from guest.test_capacity import ballast, free_pages
from guest.vm.jobs import Slurm, wait_until
from guest.witness import census, node_vector, vmstat
from pageferry import ferry, spill
from pageferry.kernel.topology import Topology, read_topology
from pageferry.kernel.watermarks import read_kept_free
from pageferry.mover import Limits
from pageferry_planner.model import Bucket

pytestmark = pytest.mark.v1

MIB = 256
"""Pages."""

PROGRAM = Path(__file__).with_name("spill_job.py")
HOME = 0
BIG, SMALL, ROOM = 60 * MIB, 44 * MIB, 128 * MIB
"""The jobs' memory, and the room that there is at home without the filler."""

SLACK = 4 * MIB
"""What interpreters, page tables and counters that are summed up late may make of a difference."""


@dataclass(frozen=True)
class Batch:
    """A Slurm job that runs `spill_job`."""

    slurm: Slurm
    id: int
    folder: Path

    @property
    def pid(self) -> int:
        """The process that has the memory."""
        (name,) = self.folder.glob("pid.*")
        return int(name.suffix[1:])

    def fill(self) -> None:
        (self.folder / "go").touch()
        wait_until((self.folder / "memory").exists, f"job {self.id} has its memory: {self.slurm.output(self.id)}")

    def nodes(self) -> Counter[int]:
        address, pages = map(int, (self.folder / "memory").read_text().split())
        return Counter(node_vector(self.pid, address, address + pages * 4096))

    def count(self) -> int:
        return int((self.folder / "count").read_text() or 0)

    def stop(self) -> None:
        """Have the job end by itself, and its memory found as it was written."""
        (self.folder / "stop").touch()
        wait_until(lambda: self.slurm.state(self.id) == "COMPLETED", f"job {self.id} completed")
        assert (self.folder / "right").exists()


@contextmanager
def submitted(slurm: Slurm, folder: Path, pages: int, node: int = -1) -> Iterator[Batch]:
    folder.mkdir()
    script = f"exec {sys.executable} -I -S {PROGRAM} {folder} {pages} {node}"
    number = slurm.submit(script, "-n1", "--mem=300")
    try:
        wait_until(lambda: any(folder.glob("pid.*")), f"job {number} runs")
        yield Batch(slurm, number, folder)
    finally:
        slurm.cancel(number)


def reserve() -> int:
    """Return what stays free at home whatever comes, in bytes: the kernel's own needs are more than our default."""
    total = read_topology().node(HOME).total_bytes
    return max(16 << 20, total // 64, read_kept_free()[HOME])


def scarce() -> int:
    """Return how many free pages of home are so few that memory comes from elsewhere: the low watermark, and a bit.

    What is free of the old DMA zone is kept from everybody.
    """
    zone = Path("/proc/zoneinfo").read_text().split(f"Node {HOME}, zone    DMA32")[1]
    free, low = (int(zone.split(f" {name} ")[1].split()[0]) for name in ("free", "low"))
    return free_pages(HOME) - free + low + MIB


def far_pages(batch: Batch, topology: Topology) -> int:
    return (spill.far_bytes(batch.id, topology) or 0) // 4096


def looks(batch: Batch, topology: Topology, pages: int) -> bool:
    """Return whether the counters, which the kernel sums up every other second, have seen so many pages far."""
    return abs(far_pages(batch, topology) - pages) < SLACK


@pytest.mark.long
def test_spilled_memory_comes_home_live_the_biggest_gain_first_and_only_as_far_as_it_fits(
    slurm: Slurm, tmp_path: Path
) -> None:
    topology = read_topology()
    with ExitStack() as stack:
        big = stack.enter_context(submitted(slurm, tmp_path / "big", BIG))
        small = stack.enter_context(submitted(slurm, tmp_path / "small", SMALL))
        filler = stack.enter_context(submitted(slurm, tmp_path / "filler", scarce(), HOME))
        both = [big.id, small.id]
        assert spill.candidates(both, least_bytes=4 << 20, bytes_per_second=None) == []

        stack.enter_context(ballast(HOME, reserve() // 4096 + ROOM))
        filler.fill()
        for batch, pages in ((big, BIG), (small, SMALL)):
            batch.fill()
            assert batch.nodes().total() == pages
            assert batch.nodes()[HOME] < pages // 2, "the filler left little room"
            away = pages - batch.nodes()[HOME]
            wait_until(partial(looks, batch, topology, away), f"{away} far pages of job {batch.id} counted")
        assert spill.candidates(both, least_bytes=16 << 20, bytes_per_second=None) == [], "there is no room at home"

        filler.stop()
        far = {batch.id: batch.nodes().total() - batch.nodes()[HOME] for batch in (big, small)}
        for_one_and_a_bit = reserve() // 4096 + far[big.id] + far[small.id] // 8  # page cache is room too
        wait_until(lambda: free_pages(HOME) > for_one_and_a_bit + SLACK, "the filler's memory is free")
        stack.enter_context(ballast(HOME, for_one_and_a_bit))
        room = ferry.host(read_topology(), None).room[HOME]
        first, second = spill.candidates([*reversed(both), filler.id], least_bytes=4 << 20, bytes_per_second=16 << 20)
        assert (first.job, second.job) == (big.id, small.id)
        assert abs(first.bytes // 4096 - far[big.id]) < SLACK
        assert abs(second.bytes // 4096 - (room - far[big.id])) < 2 * SLACK
        assert second.bytes // 4096 < far[small.id] - SLACK
        assert first.gain > second.gain > 0

        oom = vmstat()["oom_kill"]
        for batch, homecoming in ((big, first), (small, second)):
            # The kernel may have given up more page cache meanwhile.
            expected = min(far[batch.id], ferry.host(read_topology(), None).room[HOME])
            before, rounds = batch.nodes(), batch.count()
            outcome = ferry.move(slurm.pids(batch.id), homecoming.request)
            assert batch.count() > rounds + 5, "the job ran on"
            after = batch.nodes()
            home = after[HOME] - before[HOME]
            assert abs(home - expected) < 2 * SLACK
            assert home <= outcome.tally[Bucket.MOVED]
            assert outcome.tally[Bucket.IN_PLACE] >= before[HOME]
            if expected < far[batch.id] - SLACK or batch is big:
                assert (outcome.tally[Bucket.NO_ROOM] > 0) == (batch is small)
            stays = outcome.tally[Bucket.EXCLUDED] + outcome.tally[Bucket.NO_ROOM]
            assert census(slurm.pids(batch.id)).not_on(HOME) <= stays + SLACK // 8, (
                "only what others map, or has no room"
            )
            cache = read_topology().node(HOME).file_cache_bytes
            assert free_pages(HOME) * 4096 + cache >= reserve() - SLACK * 4096
        assert big.nodes() == {HOME: BIG}
        assert vmstat()["oom_kill"] == oom

        wait_until(lambda: far_pages(big, topology) < SLACK, "counted")
        left = spill.candidates(both, least_bytes=SLACK * 4096, bytes_per_second=None)
        assert big.id not in [found.job for found in left]
        for batch in (big, small):
            batch.stop()


def test_where_nothing_spilled_there_is_no_candidate_and_no_page_is_asked_for(slurm: Slurm, tmp_path: Path) -> None:
    topology = read_topology()
    with submitted(slurm, tmp_path / "one", 8 * MIB) as one, submitted(slurm, tmp_path / "two", 8 * MIB) as two:
        for batch in (one, two):
            batch.fill()
        wait_until(lambda: all(spill.look(batch.id, topology) for batch in (one, two)), "both are seen")
        counters = vmstat()
        assert spill.candidates([one.id, two.id], least_bytes=SLACK * 4096, bytes_per_second=None) == []
        assert (vmstat() - counters)["pgmigrate_success"] == 0
        homes = {batch.id: spill.look(batch.id, topology) for batch in (one, two)}
        assert all(found is not None and found.homes == {HOME} for found in homes.values())
        for batch in (one, two):
            batch.stop()


def test_a_move_stays_below_its_rate_at_every_moment() -> None:
    rate = 2048
    samples: list[tuple[float, int]] = []
    done = threading.Event()

    def sample(start: int, began: float) -> None:
        while not done.wait(0.05):
            moved = vmstat()["pgmigrate_success"] - start
            samples.append((time.monotonic() - began, moved))

    with job(node=0, ranks=2) as made:
        for rank in made.ranks:
            rank.map(4096).write()
        watcher = threading.Thread(target=sample, args=(vmstat()["pgmigrate_success"], time.monotonic()))
        watcher.start()
        try:
            proof = prove(made, request(2, limits=Limits(workers=2, bytes_per_second=rate * 4096)))
        finally:
            done.set()
            watcher.join()
        assert proof[Bucket.MOVED] >= 8192
        assert proof.outcome.complete
        assert samples[-1][0] > 4.0
        assert len([moved for _, moved in samples if 0 < moved < 8192]) > 5, "little by little"
        assert [(at, moved) for at, moved in samples if moved > rate * at] == []


def test_a_budget_ends_a_slow_move_and_what_was_not_reached_is_told() -> None:
    with job(node=0) as made:
        made.first.map(16384).write()
        proof = prove(made, request(2, limits=Limits(seconds=5.0, bytes_per_second=1024 * 4096)))
        assert 0 < proof[Bucket.MOVED] <= 5 * 1024
        assert proof[Bucket.NOT_REACHED] == proof.outcome.plan.moves.pages() - proof[Bucket.MOVED]
        assert proof[Bucket.NOT_REACHED] >= 16384 - proof[Bucket.MOVED]
        assert proof.outcome.seconds < 14.0, "it would take longer in all"


def test_huge_pages_move_whole_at_any_rate() -> None:
    with job(node=0) as made:
        memory = made.first.map(4 * 512, align=512)
        memory.tell("madvise", 14)
        memory.write()
        proof = prove(made, request(1, limits=Limits(bytes_per_second=1024 * 4096)))
        assert proof.outcome.complete
        assert node_vector(made.first.pid, *memory.span) == [1] * 4 * 512
        assert proof.outcome.tally.addresses <= proof[Bucket.MOVED] - 4 * 511

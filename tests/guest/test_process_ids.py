"""A process ID that is used again in the middle of a move does not lead to the stranger's pages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.witness import vmstat
from pageferry.errors import Vanished
from pageferry.ferry import host
from pageferry.kernel.topology import read_topology
from pageferry.mover import Limits, carry
from pageferry.snapshot import take
from pageferry_planner.model import Bucket, Target
from pageferry_planner.placement import place
from pageferry_planner.policy import Rules

LAST = Path("/proc/sys/kernel/ns_last_pid")


@contextmanager
def forked(wanted: int = 0) -> Iterator[int]:
    """Fork a process that waits, with the given process ID if any; kill and reap it in the end."""
    if wanted:
        LAST.write_text(str(wanted - 1))
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    try:
        assert pid == (wanted or pid), "another process took the ID first"
        yield pid
    finally:
        end(pid)


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def test_the_pages_of_a_stranger_with_the_same_process_id_stay_where_they_are() -> None:
    topology = read_topology()
    with forked() as pid, take([pid], Rules(reference_count=False), topology) as taken:
        plan = place(taken.snapshot, Target((3,)), host(topology, 0))
        assert plan.moves.pages() > 0
        end(pid)
        with forked(pid):
            before = vmstat()
            carried = carry(plan, taken.handles, taken.tables, Limits())
            assert (vmstat() - before)["pgmigrate_success"] == 0
        assert carried.carrier_lost
        assert carried.tally[Bucket.VANISHED] == plan.moves.pages()
        assert carried.tally.requested == 0


def test_a_snapshot_of_a_process_that_has_ended_says_that_nothing_is_left() -> None:
    with forked() as pid:
        end(pid)
        with pytest.raises(Vanished), take([pid], Rules(), read_topology()):
            pytest.fail("must not be reached")

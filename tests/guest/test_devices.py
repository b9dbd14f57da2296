"""What a driver maps from a device is not the job's memory, for the agent of the unit as for root."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import pytest

from guest import rights
from guest.proof import prove_whole, request
from guest.ranks import READ, SHARED, WRITE, Job, job
from guest.witness import vmas
from pageferry import ferry
from pageferry_planner.policy import Rules

pytestmark = pytest.mark.systemd

MEMORY = (1, 1)
"""/dev/mem, by its numbers."""


def registers() -> Path:
    """Return a BAR of a PCI device, as sysfs offers it for mapping."""
    found = sorted(path.resolve() for path in Path("/sys/bus/pci/devices").glob("*/resource[0-9]"))
    return next(path for path in found if path.stat().st_size >= mmap.PAGESIZE)


def moves_without(made: Job, path: Path) -> None:
    """Assert that a job that maps a device is moved whole, and that the device is nowhere in it."""
    assert any(vma.path == str(path) for vma in vmas(made.first.pid))
    snapshot, _ = rights.call(ferry.survey, made.pids, Rules())
    assert not any(
        backing.path == str(path) and (snapshot.runs.backing == number).any()
        for number, backing in enumerate(snapshot.backings)
    )
    tally = rights.move(made.pids, request(2)).tally
    assert tally.misplaced() == 0
    prove_whole(made, 3)


def test_a_device_node_on_whatever_file_system_is_not_the_jobs_memory(tmp_path: Path) -> None:
    node = tmp_path / "memory"
    os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(*MEMORY))
    with job(node=0) as made:
        made.first.map(16, node, flags=SHARED, prot=READ).read()
        moves_without(made, node)


def test_a_device_of_dev_is_not_the_jobs_memory_where_the_unit_has_a_dev_of_its_own() -> None:
    with job(node=0) as made:
        made.first.map(16, "/dev/mem", flags=SHARED, prot=READ).read()
        moves_without(made, Path("/dev/mem"))


def test_the_registers_of_a_device_that_sysfs_offers_are_not_the_jobs_memory() -> None:
    path = registers()
    with job(node=0) as made:
        made.first.map(1, path, flags=SHARED, prot=READ | WRITE)
        moves_without(made, path)

"""What moves memory in these tests has the rights of the agent's unit, however it comes by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest import rights
from guest.ranks import job

pytestmark = pytest.mark.systemd

CLOSED = ("/etc", "/usr", "/root", "/home", "/var/lib", "/proc/sys/vm/drop_caches")
OPEN = ("/tmp", "/var/tmp", "/dev/shm", "/sys/devices/system/node/node0/compact", "/sys/fs/cgroup/cgroup.procs")
DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue", "hugepages"}
MAY_BE_THERE = {"char", "fd", "stdin", "stdout", "stderr", "core", "log", "ptmx", "initctl"}


@pytest.fixture
def seen() -> rights.View:
    """What a look or a move could do."""
    if rights.chosen() == "root":
        pytest.fail("root has all of it: run without --rights root", pytrace=False)
    return rights.call(rights.view, (*CLOSED, *OPEN))


def test_it_has_the_capabilities_of_the_unit_and_no_way_to_others(seen: rights.View) -> None:
    (granted,) = (value.split() for name, value in rights.properties() if name == "CapabilityBoundingSet")
    assert set(granted) == rights.CAPABILITIES.keys()
    wanted = sum(1 << number for number in rights.CAPABILITIES.values())
    assert seen.capabilities == {"CapInh": 0, "CapPrm": wanted, "CapEff": wanted, "CapBnd": wanted, "CapAmb": 0}
    assert seen.no_new_privileges
    assert seen.umask == 0o077


def test_it_sees_no_device_of_the_hosts(seen: rights.View) -> None:
    assert Path("/dev/vda").exists()
    assert DEVICES <= seen.devices <= DEVICES | MAY_BE_THERE


def test_it_can_write_what_the_unit_leaves_writable_and_nothing_else(seen: rights.View) -> None:
    assert seen.writable == set(OPEN)


def write_to_tmp(path: str) -> None:
    Path(path).write_text("private")


def test_its_tmp_is_its_own(seen: rights.View) -> None:
    path = Path("/tmp/of-the-move")
    rights.call(write_to_tmp, str(path))
    assert not path.exists()


def test_the_test_itself_has_all_rights_still(seen: rights.View) -> None:
    assert rights.view(CLOSED).writable == set(CLOSED)
    assert rights.view(()).capabilities["CapEff"] & 1 << 0, "CAP_CHOWN"


def fails(message: str) -> None:
    raise ValueError(message)


def test_what_it_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="so be it"):
        rights.call(fails, "so be it")


def test_a_job_that_the_test_made_can_be_looked_at() -> None:
    with job(node=0) as made:
        memory = made.first.map(100).write()
        found = rights.call(rights.mapped, made.first.pid)
        assert f"{memory.address:x}-" in found

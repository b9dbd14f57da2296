"""What must hold of reading processes, on this kernel."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from pageferry.errors import Vanished
from pageferry.kernel import procfs
from support.children import LEADER_ENDS, child, python, said, wait_ended, wait_stopped
from support.numa_maps import read_numa_maps

RENAMED = 'open("/proc/self/comm", "wb").write(b") R 1 (\\n\\x1b[2J"); print(1, flush=True); input()'


def test_the_start_time_of_a_hostile_name_is_the_true_one() -> None:
    with python(RENAMED) as process:
        before = procfs.start_time(process.pid)
        said(process)
        assert procfs.start_time(process.pid) == before
        assert procfs.read_status(process.pid).name == r") R 1 (\n\x1b[2J"


def test_the_start_time_agrees_with_psutil() -> None:
    ticks = procfs.start_time(os.getpid()) / os.sysconf("SC_CLK_TCK")
    assert abs(psutil.boot_time() + ticks - psutil.Process().create_time()) < 2


def test_our_own_status_is_what_the_system_calls_say() -> None:
    status = procfs.read_status(os.getpid())
    assert status.cpus_allowed == os.sched_getaffinity(0)
    assert status.uids == (*os.getresuid(), os.geteuid())
    assert status.parent == os.getppid()
    assert status.rss_anon_bytes > 0
    assert status.mems_allowed


def test_states_are_the_kernels_letters() -> None:
    with child() as process:
        os.kill(process.pid, signal.SIGSTOP)
        wait_stopped(process)
        assert procfs.read_status(process.pid).state == "T"
        process.kill()
        wait_ended(process)
        assert procfs.read_status(process.pid).state == "Z"
        assert procfs.read_maps(process.pid) == b""
        process.wait()
        for reader in (procfs.read_status, procfs.read_maps, procfs.start_time, procfs.descendants):
            with pytest.raises(Vanished):
                reader(process.pid)


def test_maps_are_read_through_a_thread_that_lives_when_the_first_has_ended() -> None:
    with python(LEADER_ENDS) as process:
        thread = said(process)
        assert procfs.read_status(thread).thread_group == process.pid
        assert Path(f"/proc/{process.pid}/maps").read_bytes() == b""
        assert procfs.living_thread(process.pid) == thread
        assert b"[heap]" in procfs.read_maps(process.pid)


def test_maps_longer_than_a_page_come_whole() -> None:
    text = procfs.read_maps(os.getpid())
    assert len(text) > 4096
    assert text.endswith(b"\n")
    assert b"[stack]" in text


def test_children_share_our_ipc_namespace() -> None:
    with child() as process:
        assert procfs.ipc_namespace(process.pid) == procfs.ipc_namespace(os.getpid())
        assert procfs.ipc_namespace(process.pid) == Path("/proc/self/ns/ipc").stat().st_ino


def test_grandchildren_are_descendants_by_both_ways_of_looking() -> None:
    program = "import subprocess; p = subprocess.Popen(['cat']); print(p.pid, flush=True); p.wait()"
    with python(program) as process:
        grandchild = said(process)
        for root in (Path("/"), Path("/proc/self/root")):
            found = procfs.descendants(os.getpid(), root)
            assert {process.pid, grandchild} <= found
            assert os.getpid() not in found
        assert {process.pid, grandchild, os.getpid()} <= procfs.list_pids()
        os.kill(grandchild, signal.SIGKILL)


def test_numa_maps_account_for_our_resident_pages() -> None:
    status = procfs.read_status(os.getpid())
    counted = sum(vma.page_bytes * sum(vma.pages.values()) for vma in read_numa_maps(os.getpid()))
    resident = status.rss_anon_bytes + status.rss_file_bytes + status.rss_shmem_bytes
    assert counted == pytest.approx(resident, rel=0.2)

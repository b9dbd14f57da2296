"""Memory as other people's programs and containers have it is found, with the unit's rights as with all."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest import rights
from guest.ranks import READ, SHARED, job
from pageferry import ferry
from pageferry.errors import KernelError
from pageferry.kernel.residency import PageTables
from pageferry_planner.policy import Rules
from support.children import among_its_own_mounts

PAGES = 256


pytestmark = pytest.mark.usefixtures("whose")


@pytest.fixture(params=["unit", "root"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rights a look has: those of the agent's unit, or all."""
    monkeypatch.setenv(rights.VARIABLE, request.param)


def looked_at(pids: tuple[int, ...], name: str) -> dict[str, int]:
    """Return the pages of each backing whose path has this name in it, by "device:inode:space"."""
    found, _ = rights.call(ferry.survey, pids, Rules())
    return {
        f"{backing.device}:{backing.inode}:{backing.space}": int(found.runs.count[found.runs.backing == number].sum())
        for number, backing in enumerate(found.backings)
        if name in backing.path
    }


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Path]:
    """An overlay over two file systems, with a file in each that have one inode number."""
    top, mounted = tmp_path / "overlay", []
    try:
        for name in ("lower", "upper"):
            (tmp_path / name).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "layer", str(tmp_path / name)], check=True)
            mounted.append(tmp_path / name)
        for name in ("lower/files", "upper/files", "overlay"):
            (tmp_path / name).mkdir()
        for name in ("lower/files/file-a", "upper/files/file-b"):
            (tmp_path / name).write_bytes(bytes(PAGES * 4096))
        (tmp_path / "upper/work").mkdir()
        one, two = ((tmp_path / name).stat().st_ino for name in ("lower/files/file-a", "upper/files/file-b"))
        assert one == two
        options = (
            f"lowerdir={tmp_path}/lower/files,upperdir={tmp_path}/upper/files,workdir={tmp_path}/upper/work,xino=off"
        )
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(top)], check=True)
        mounted.append(top)
        yield top
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", str(path)], check=True)


def test_files_of_two_layers_with_one_inode_number_are_two_backings(layers: Path) -> None:
    with job() as made:
        for name in ("file-a", "file-b"):
            made.first.map(PAGES, layers / name, prot=READ, flags=SHARED).read()
        assert sorted(looked_at(made.pids, "/file-").values()) == [PAGES, PAGES]


WRITTEN_BY_A_CHILD = """
import mmap, os, sys
if os.fork() == 0:
    with open("/dev/shm/window", "wb") as file:
        file.write(bytes({bytes}))
    os._exit(0)
os.wait()
memory = mmap.mmap(os.open("/dev/shm/window", os.O_RDWR), {bytes})
memory[0]
os.write(1, b"ready\\n")
sys.stdin.readline()
"""


@contextmanager
def in_its_own_shared_memory(pages: int) -> Iterator[int]:
    """Run a process whose /dev/shm is mounted in its mount namespace alone; a child wrote what it maps there."""
    program = WRITTEN_BY_A_CHILD.format(bytes=pages * 4096)
    with among_its_own_mounts("mount -t tmpfs shm /dev/shm", program) as process:
        yield process.pid


def test_shared_memory_that_is_mounted_for_the_job_alone_is_shared_memory() -> None:
    with in_its_own_shared_memory(PAGES) as pid:
        assert list(looked_at((pid,), "window").values()) == [PAGES]


def test_a_process_that_ends_while_its_threads_are_listed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with job(ranks=2) as made:
        for rank in made.ranks:
            rank.ask("threads", 1, 1, [0])
        gone = f"/proc/{made.ranks[1].pid}/task"
        really = os.listdir

        def listdir(path: str | Path) -> list[str]:
            if str(path) == gone:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), gone)
            return really(path)

        monkeypatch.setattr(os, "listdir", listdir)
        found, _ = rights.call(ferry.survey, made.pids, Rules())
        assert [process.pid for process in found.processes] == [made.first.pid]


def looks_with_few_descriptors(pids: tuple[int, ...]) -> int:
    """Return how many processes a look finds with a soft limit that is lower than what they need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + len(pids), hard))  # noqa: PTH208
    try:
        return len(ferry.survey(pids, Rules())[0].processes)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_job_of_more_processes_than_a_shells_limit_of_open_files_is_looked_at() -> None:
    with job(ranks=50) as made:
        assert rights.call(looks_with_few_descriptors, made.pids) == 50


def test_a_kernel_without_page_tables_to_read_is_told_from_a_process_that_has_ended(tmp_path: Path) -> None:
    (tmp_path / "proc/4711").mkdir(parents=True)
    (tmp_path / "proc/4711/stat").touch()
    with PageTables([4711], tmp_path) as tables, pytest.raises(KernelError):
        tables.descriptor(0)

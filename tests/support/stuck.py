"""A process that no longer answers, on the real kernel: it holds its mmap_lock, and waits for a frozen file system."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.children import python, said

PROGRAM = """
import ctypes, mmap, os, sys, threading
fd = os.open({path!r}, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
memory = mmap.mmap(fd, 1 << 20)
memory[0] = 1
os.fsync(fd)
libc = ctypes.CDLL(None)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
begun = threading.Semaphore(0)
def write():
    print(threading.get_native_id(), flush=True)
    begun.acquire()
    libc.memset(ctypes.c_void_p(address + 8192), 1, 1)
threading.Thread(target=write, daemon=True).start()
os.read(0, 1)
begun.release()  # page_mkwrite() waits for the file system, and holds the mmap_lock or the VMA's
os.read(0, 1)
libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20), 1)  # waits for that, with the mmap_lock or next to it
"""


@contextmanager
def stuck(folder: Path) -> Iterator[int]:
    """Run a process that does not answer."""
    with _mounted(folder) as place, python(PROGRAM.format(path=str(place / "file"))) as process:
        writer = said(process)
        with _frozen(place):
            assert process.stdin is not None
            for thread in (writer, process.pid):
                os.write(process.stdin.fileno(), b".")
                wait_uninterruptible(thread)
            yield process.pid


@contextmanager
def frozen(folder: Path) -> Iterator[Path]:
    """Mount an empty file system on which whoever writes waits."""
    with _mounted(folder) as place, _frozen(place):
        yield place


def wait_uninterruptible(thread: int) -> None:
    """Wait until a thread waits in a way that no signal ends."""
    while Path(f"/proc/{thread}/stat").read_text().rpartition(")")[2].split()[0] != "D":
        os.sched_yield()


@contextmanager
def _mounted(folder: Path) -> Iterator[Path]:
    place = folder / "frozen"
    place.mkdir()
    with _disk(folder) as disk:
        subprocess.run(["mkfs.ext4", "-qF", disk], check=True)
        subprocess.run(["mount", disk, str(place)], check=True)
        try:
            yield place
        finally:
            _unmount(place)


def _unmount(place: Path) -> None:
    """Unmount it as soon as the threads have let go that waited for the stuck process."""
    deadline = time.monotonic() + 20
    while subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, f"{place} stays busy"


@contextmanager
def _frozen(place: Path) -> Iterator[None]:
    subprocess.run(["fsfreeze", "-f", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(place)], check=True)


@contextmanager
def _disk(folder: Path) -> Iterator[str]:
    """Yield an empty disk: the guest's scratch disk, else a loop device."""
    if scratch := os.environ.get("PAGEFERRY_SCRATCH"):
        yield scratch
        return
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    answer = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
    try:
        yield answer.stdout.strip()
    finally:
        subprocess.run(["losetup", "-d", answer.stdout.strip()], check=True)

"""Backings as objects: opened through the job's own mapping, and mapped into pageferry itself.

A page of a shared object that no process of the job has in its page table is moved from here. Nothing is faulted in
that was not resident: mincore(2) says what is, if it tells us the truth, and only that is populated. An object on a
network or FUSE file system is never mapped, because that can hang. /proc/PID/map_files names the very inode, whatever
its path says; it needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pageferry.kernel import capabilities, pageflags

OVERLAY = "overlay"

SHARED_MEMORY = frozenset({"tmpfs", "shmem", "ramfs"})
LOCAL = SHARED_MEMORY | {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", OVERLAY, "squashfs", "erofs", "zfs"}
"""File systems on which opening or mapping a file waits for no other host or process."""

AMBIGUOUS = frozenset({"btrfs", OVERLAY})
"""File systems of which maps show one device and inode for several files: subvolumes of btrfs; layers of an overlay
that are on different file systems (Linux 6.8)."""

_AT_FDCWD, _AT_SYMLINK_FOLLOW = -100, 0x400
_HANDLE_HEAD, _HANDLE_BYTES = 8, 128

_VAST_PAGES = 1 << 20
"""What is known to be in memory takes a byte for each page: of larger objects the holes are left out."""

_MOST_STRETCHES = 1 << 14
_MADV_POPULATE_READ = 22  # Linux 5.14


@dataclass(frozen=True, slots=True)
class Mapped:
    """An object mapped into pageferry: `page` is our page number of its page `index`.

    `data`: stretches of pages, as indexes, outside which it has none; None: not known.
    """

    memory: mmap.mmap
    page: int
    index: int
    count: int
    data: tuple[tuple[int, int], ...] | None = None


def path_of(pid: int, start: int, end: int, root: Path = Path("/")) -> Path:
    """Return the path that names the object behind a process's VMA [start, end)."""
    return root / f"proc/{pid}/map_files/{start:x}-{end:x}"


def status(path: Path) -> os.stat_result | None:
    """Return what stat(2) says of an object, None where it does not."""
    try:
        return path.stat()
    except OSError:
        return None


def identity(status: os.stat_result | None) -> str:
    """Return what tells an object from all others; "" where it cannot be told."""
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}:{status.st_ino}" if status else ""


def is_fuse(fstype: str) -> bool:
    """Return True for a file system that a process serves, by its type as mountinfo has it."""
    return fstype in {"fuse", "fuseblk"} or fstype.startswith("fuse.")


def handle(path: Path) -> str:
    """Return what tells an object of a FUSE file system from all others, without asking its server; "" if not told.

    Servers choose inode numbers as they like: two files of an overlay's layers may have one. name_to_handle_at(2) gives
    the number by which kernel and server know the file (kernel fs/fuse/inode.c fuse_encode_fh()).
    """
    found = (ctypes.c_ubyte * (_HANDLE_HEAD + _HANDLE_BYTES))()
    head = ctypes.c_uint32.from_buffer(found)
    head.value = _HANDLE_BYTES
    where = _AT_FDCWD, os.fsencode(path), found, ctypes.byref(ctypes.c_int()), _AT_SYMLINK_FOLLOW
    if _libc().name_to_handle_at(*where):
        return ""
    return "handle:" + bytes(found[_HANDLE_HEAD : _HANDLE_HEAD + head.value]).hex()


def is_file(status: os.stat_result) -> bool:
    """Return True for what has pages of its own; False for character devices, sockets, inodes of no type (io_uring)."""
    return stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)


def is_content(flags: int) -> bool:
    """Return whether a page of a file is what the file holds, by its flags: a driver's own pages were never read.

    0: nobody tells the flags. Before Linux 6.9 a compound page's later frames do not say that they are up to date.
    """
    return flags == 0 or flags & int(pageflags.UPTODATE | pageflags.HUGE | pageflags.COMPOUND_TAIL) != 0


def is_shared_memory(flags: int) -> bool:
    """Return whether a page of a file is shared memory, by its flags: it would be swapped out, not written back."""
    return flags & int(pageflags.SWAP_BACKED) != 0


def reach(path: Path) -> None:
    """Do with a file all that may wait for its file system, once.

    A layer of an overlay can be a network or FUSE file system that is dead. Who calls this does not wait for it.
    """
    with suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):  # a device would do something when it is opened
            attribute(path, "trusted.pageferry")
            with mapped(path, 0, 1):
                pass


def shared_memory_device() -> str:
    """Return the device, as maps prints it, of the kernel's mount for memfd, System V and shared anonymous memory."""
    descriptor = os.memfd_create("pageferry", os.MFD_CLOEXEC)
    try:
        device = os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
    return f"{os.major(device):02x}:{os.minor(device):02x}"


@contextmanager
def mapped(path: Path, index: int, count: int, *, in_memory: bool = False) -> Iterator[Mapped]:
    """Map pages [index, index + count) of an object, less what lies behind its end.

    `in_memory`: it is shared memory, so that a hole of it has no page; elsewhere one that was read may have. Raises
    OSError; EPERM for one of which we would not be told what is in memory.
    """
    page_bytes = mmap.PAGESIZE
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        count = min(count, -(-status.st_size // page_bytes) - index)
        if count <= 0:
            raise OSError(errno.ENODATA, "nothing there", str(path))
        if not _is_told(descriptor, status.st_uid):
            raise OSError(errno.EPERM, "what of it is in memory is not told", str(path))
        length = min(count * page_bytes, status.st_size - index * page_bytes)
        memory = mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=index * page_bytes)
        data = tuple(_data(descriptor, index, index + count)) if in_memory and count > _VAST_PAGES else None
    finally:
        os.close(descriptor)
    try:
        address = np.frombuffer(memory, np.uint8).ctypes.data
        yield Mapped(memory, address // page_bytes, index, count, data)
    finally:
        memory.close()


def _is_told(descriptor: int, owner: int) -> bool:
    """Return True if mincore(2) tells us what of a file is in memory.

    To all but its owner, who may write it and who has CAP_FOWNER it says that all of it is (kernel mm/mincore.c
    can_do_mincore(), since 5.2).
    """
    if owner == os.geteuid() or "CAP_FOWNER" in capabilities.effective():
        return True
    return os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)


def resident(on: Mapped, lo: int, hi: int) -> list[tuple[int, int]]:
    """Return the stretches of the object's pages [lo, hi) that are in memory, as page indexes. mincore(2)."""
    lo, hi = max(lo, on.index), min(hi, on.index + on.count)
    if on.data is None:
        return _resident(on, lo, hi)
    return [found for first, end in on.data for found in _resident(on, max(lo, first), min(hi, end))]


def _data(descriptor: int, lo: int, hi: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches of a file's pages [lo, hi) that are no holes; the last may be the rest of a long list."""
    for _ in range(_MOST_STRETCHES):
        try:
            first = os.lseek(descriptor, lo * mmap.PAGESIZE, os.SEEK_DATA) // mmap.PAGESIZE
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing more
                return
            break
        if first >= hi:
            return
        lo = min(hi, -(-os.lseek(descriptor, first * mmap.PAGESIZE, os.SEEK_HOLE) // mmap.PAGESIZE))
        yield first, lo
    yield lo, hi


def _resident(on: Mapped, lo: int, hi: int) -> list[tuple[int, int]]:
    if hi <= lo:
        return []
    vector = np.zeros(hi - lo, np.uint8)
    address = (on.page + lo - on.index) * mmap.PAGESIZE
    if _libc().mincore(address, (hi - lo) * mmap.PAGESIZE, vector.ctypes.data):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return stretches((vector & 1).astype(bool), lo)


def populate(on: Mapped, lo: int, hi: int) -> None:
    """Enter pages [lo, hi) of the object, which must be resident, into our page table. Raises OSError (EINVAL: old)."""
    on.memory.madvise(_MADV_POPULATE_READ, (lo - on.index) * mmap.PAGESIZE, (hi - lo) * mmap.PAGESIZE)


def stretches(mask: npt.NDArray[np.bool_], base: int) -> list[tuple[int, int]]:
    """Return the half-open stretches of True in a mask, counted from `base`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(base + a, base + b) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.name_to_handle_at.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
    ]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return libc


def attribute(path: Path, name: str) -> str:
    """Return an extended attribute of an object as text, "" where it has none or may not be asked."""
    try:
        return os.getxattr(path, name).decode("ascii", "replace").strip()
    except OSError:
        return ""

"""Transparent huge pages of the host: their size, how many each node has free, and what the kernel splits and compacts.

A free huge page is a block of the buddy allocator of at least that order. One that a move may count on is above its
zone's watermarks besides, as the allocator asks for (kernel mm/page_alloc.c __zone_watermark_ok()). What lies in the
lists of single CPUs is not counted; what the kernel reserves for itself (MIGRATE_HIGHATOMIC, CMA) is, since
/proc/buddyinfo does not tell it apart.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pageferry.errors import KernelError, PageferryError, Vanished
from pageferry.kernel.files import read_bytes, shown, write_text
from pageferry.kernel.watermarks import read_kept_by_zone

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 0.002

_ZONE = re.compile(rb"Node ([0-9]{1,4}), zone +(\w+)((?: +[0-9]{1,19}){1,64}) *")
_SPLITS = re.compile(rb"^thp_migration_split ([0-9]{1,20})$", re.MULTILINE)


def read_huge_page_bytes(root: Path = Path("/")) -> int | None:
    """Return the size of a transparent huge page, or None where the kernel has none. Raises KernelError."""
    path = root / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
    try:
        text = read_bytes(path).strip()
    except Vanished:
        return None
    if re.fullmatch(rb"[0-9]{1,15}", text) is None or (size := int(text)) < mmap.PAGESIZE or size & (size - 1):
        raise KernelError(f"{path}: not the size of a page: {shown(text)}")
    return size


def read_free_huge_pages(root: Path = Path("/")) -> dict[int, int]:
    """Return how many transparent huge pages each node has free, as blocks above the watermarks of their zones.

    Nothing where the kernel has none. Raises KernelError for files that are missing or cannot be understood.
    """
    size = read_huge_page_bytes(root)
    if size is None:
        return {}
    path = root / "proc/buddyinfo"
    try:
        lines = read_bytes(path).splitlines()
    except Vanished as error:
        raise KernelError(f"{path} is missing: free huge pages cannot be counted") from error
    kept = read_kept_by_zone(root)
    found: dict[int, int] = {}
    for line in lines:
        zone = _ZONE.fullmatch(line)
        if zone is None or (int(zone[1]), zone[2]) not in kept:
            raise KernelError(f"{path}: not a zone's free blocks: {shown(line)}")
        free = [int(count) * mmap.PAGESIZE << order for order, count in enumerate(zone[3].split())]
        blocks = sum(count // size for count in free[(size // mmap.PAGESIZE).bit_length() - 1 :])
        above = (sum(free) - kept[int(zone[1]), zone[2]]) // size
        # Two at a time come to a CPU's own list, where the last of an even number is not seen any more when it is asked
        # for: the kernel would reclaim memory for another one (__zone_watermark_ok(), rmqueue_bulk()).
        found[int(zone[1])] = found.get(int(zone[1]), 0) + max(0, min((blocks - 1) | 1, above))
    return found


def compact(nodes: Iterable[int], root: Path = Path("/")) -> None:
    """Have the kernel move what is on these nodes together, now, so that there are larger free blocks.

    It moves pages of all processes within their node, and takes its time. Where we may not ask for it, nothing is done.
    """
    for node in nodes:
        try:
            write_text(root / f"sys/devices/system/node/node{node}/compact", "1")
        except PageferryError as error:  # also a kernel without CONFIG_COMPACTION
            _log.info("not compacted: %s", error)


@contextmanager
def alone_at(node: int, given_up: Callable[[], bool], root: Path = Path("/")) -> Iterator[bool]:
    """Keep every other pageferry of this host from counting a node's free huge pages and asking for them meanwhile.

    A lock of the node's folder, for threads as for processes. Yields whether it is ours: not if we gave up first.
    """
    folder = os.open(root / f"sys/devices/system/node/node{node}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not (ours := _locked(folder)) and not given_up():
            time.sleep(_AGAIN_SECONDS)
        yield ours and not given_up()
    finally:
        os.close(folder)


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Keep this thread on the CPU that it is on: huge pages come to a CPU's own list, two at a time.

    From there another CPU gets them only after the kernel has reclaimed memory (mm/page_alloc.c rmqueue_bulk(),
    __alloc_pages_direct_reclaim()).
    """
    before = os.sched_getaffinity(0)
    try:
        with suppress(OSError, PageferryError):  # it has been taken away from us
            os.sched_setaffinity(0, {int(read_bytes("/proc/thread-self/stat").rpartition(b")")[2].split()[36])})
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def read_splits(root: Path = Path("/")) -> int:
    """Return how many huge pages the kernel has split to migrate them, since boot; 0 where it does not tell."""
    found = _SPLITS.search(read_bytes(root / "proc/vmstat"))
    return int(found[1]) if found else 0

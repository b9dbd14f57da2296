"""/proc/kpageflags and /proc/kpagecount: what kind of page a frame is, and how often it is mapped. Need CAP_SYS_ADMIN.

Format: kernel include/uapi/linux/kernel-page-flags.h, Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pageferry.errors import KernelError
from pageferry.kernel.files import translated
from pageferry_planner.columns import Bools, Ints

UPTODATE, ANON, SWAP_BACKED, COMPOUND_HEAD, COMPOUND_TAIL, HUGE, KSM = (
    np.uint64(1 << bit) for bit in (3, 12, 14, 15, 16, 17, 21)
)

_JOIN_GAP = 128


def flags_of(pfns: Ints, root: Path = Path("/")) -> npt.NDArray[np.uint64]:
    """Return the flags of page frames, in the order given. Raises Denied, or KernelError."""
    return _looked_up(root / "proc/kpageflags", pfns)


def mappings_of(pfns: Ints, root: Path = Path("/")) -> Ints:
    """Return how often each page frame is mapped, in the order given; 0: it is no memory of a process (any more).

    Raises Denied, or KernelError.
    """
    return _looked_up(root / "proc/kpagecount", pfns).astype(np.int64)


def _looked_up(table: Path, pfns: Ints) -> npt.NDArray[np.uint64]:
    found = np.zeros(len(pfns), np.uint64)
    if not len(pfns):
        return found
    order = np.argsort(pfns, kind="stable")
    wanted = pfns[order]
    begin = np.append(0, np.flatnonzero(np.diff(wanted) > _JOIN_GAP) + 1)
    lo, hi = wanted[begin], wanted[np.append(begin[1:], len(wanted)) - 1] + 1
    with _opened(table) as descriptor:
        parts = [
            os.pread(descriptor, 8 * pages, 8 * first).ljust(8 * pages, b"\0")  # beyond the last frame is nothing
            for first, pages in zip(lo.tolist(), (hi - lo).tolist(), strict=True)
        ]
    place = np.cumsum(hi - lo) - (hi - lo) - lo  # of a group's frames in what was read
    found[order] = np.frombuffer(b"".join(parts), np.uint64)[
        wanted + np.repeat(place, np.diff(np.append(begin, len(wanted))))
    ]
    return found


@contextmanager
def _opened(table: Path) -> Iterator[int]:
    """Open a table of the kernel's; say in our own words what goes wrong with it. Raises Denied, or KernelError."""
    try:
        descriptor = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:  # no process has ended
        raise KernelError(f"{table} is missing: the kernel has no CONFIG_PROC_PAGE_MONITOR") from error
    except OSError as error:
        raise translated(error, table) from error


def folio_pages(pfns: Ints, most: int, root: Path = Path("/")) -> Ints:
    """Return how many pages the folio has that each frame belongs to, 1 for an ordinary page.

    One has at most `most` pages, and begins at a multiple of their number; of more, `most` are counted.
    """
    blocks, of = np.unique(pfns // most, return_inverse=True)
    flags = flags_of((blocks[:, None] * most + np.arange(most)).ravel(), root)
    begins = (flags & COMPOUND_TAIL) == 0
    begins[::most] = True
    heads = np.flatnonzero(begins)
    pages = np.diff(np.append(heads, len(flags)))
    found: Ints = pages[np.searchsorted(heads, of * most + pfns % most, "right") - 1]
    return found


def huge_pages(pfns: Ints, pages: int, root: Path = Path("/")) -> Bools:
    """Return which frames are of a transparent huge page of so many `pages`, however it is mapped."""
    flags = flags_of(pfns, root)
    found: Bools = ((flags & (COMPOUND_HEAD | COMPOUND_TAIL)) != 0) & ((flags & HUGE) == 0)
    found[found] = folio_pages(pfns[found], pages, root) == pages
    return found


def joined_to_previous(pages: Ints, pfns: Ints, flags: npt.NDArray[np.uint64]) -> Bools:
    """Return which entries belong to the same compound page as the entry before them.

    Such a page moves as a whole and is asked for by one address (THP, hugetlb, large folios). `pages` ascending.
    """
    joined = np.zeros(len(pages), bool)
    joined[1:] = ((flags[1:] & COMPOUND_TAIL) != 0) & (np.diff(pages) == 1) & (np.diff(pfns) == 1)
    return joined

"""/sys/kernel/mm/page_idle/bitmap: which page frames were used since they were marked idle.

A kernel has it if it was built with CONFIG_IDLE_PAGE_TRACKING. It tells reclaim nothing and takes nothing from it: that
is what it was made for. Only user memory that reclaim knows can be idle; of a huge page its head alone; all else reads
as used. Format: kernel Documentation/admin-guide/mm/idle_page_tracking.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pageferry.kernel.files import translated
from pageferry_planner.columns import Bools, Ints

_PATH = "sys/kernel/mm/page_idle/bitmap"
_JOIN_GAP = 8
"""Words so near to each other go in one call: one more costs less than a call more."""

Words = npt.NDArray[np.uint64]


def available(root: Path = Path("/")) -> bool:
    """Return whether the kernel has the file, and lets us write to it."""
    return os.access(root / _PATH, os.R_OK | os.W_OK)


def mark(pfns: Ints, root: Path = Path("/")) -> None:
    """Mark page frames idle, and no others. Raises Vanished, Denied and KernelError."""
    pfns = np.sort(pfns)
    bits = np.uint64(1) << (pfns & 63).astype(np.uint64)
    descriptor = _open(root)
    try:
        for lo, hi, part in _stretches(pfns):
            words = np.zeros(hi - lo, np.uint64)  # what is 0 stays as it is
            np.bitwise_or.at(words, (pfns[part] >> 6) - lo, bits[part])
            data = words.tobytes()
            done = 0
            # The kernel takes nothing beyond the last page frame, of the last word either.
            while done < len(data) and (taken := os.pwrite(descriptor, data[done:], lo * 8 + done)):
                done += taken
    except OSError as error:
        raise translated(error, root / _PATH) from error
    finally:
        os.close(descriptor)


def idle(pfns: Ints, root: Path = Path("/")) -> Bools:
    """Return which page frames are idle still, in the order given; what the file does not reach to is not.

    Raises as `mark`.
    """
    order = np.argsort(pfns)
    ordered = pfns[order]
    found = np.zeros(len(pfns), bool)
    descriptor = _open(root)
    try:
        for lo, hi, part in _stretches(ordered):
            words = _read(descriptor, lo, hi)
            here = ordered[part]
            found[order[part]] = (words[(here >> 6) - lo] >> (here & 63).astype(np.uint64)) & np.uint64(1) != 0
    except OSError as error:
        raise translated(error, root / _PATH) from error
    finally:
        os.close(descriptor)
    return found


def _open(root: Path) -> int:
    try:
        return os.open(root / _PATH, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, root / _PATH) from error


def _stretches(pfns: Ints) -> Iterator[tuple[int, int, slice]]:
    """Yield words [lo, hi) of the file, and which of the frames, ascending, are in them."""
    if not len(pfns):
        return
    begin = np.append(0, np.flatnonzero(np.diff(pfns >> 6) > _JOIN_GAP) + 1)
    end = np.append(begin[1:], len(pfns))
    for first, last in zip(begin.tolist(), end.tolist(), strict=True):
        yield int(pfns[first]) >> 6, (int(pfns[last - 1]) >> 6) + 1, slice(first, last)


def _read(descriptor: int, lo: int, hi: int) -> Words:
    data = b""
    while len(data) < (hi - lo) * 8 and (part := os.pread(descriptor, (hi - lo) * 8 - len(data), lo * 8 + len(data))):
        data += part
    return np.frombuffer(data.ljust((hi - lo) * 8, b"\0")[: (hi - lo) * 8], np.uint64)

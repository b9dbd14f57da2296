"""A neighbour that takes a node's memory, all but a little, and keeps it: `demo_neighbour.py NODE LEAVE_MIB FOLDER`."""

import ctypes
import mmap
import re
import signal
import sys
from pathlib import Path

MPOL_BIND = 2
SET_MEMPOLICY = 238
MADV_HUGEPAGE = 14
CHUNK_BYTES = 16 << 20


def main() -> None:
    """Fill the node, say so, and wait to be ended."""
    node, leave_mib, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_ulong(1 << node)
    assert libc.syscall(SET_MEMPOLICY, MPOL_BIND, ctypes.byref(mask), 64) == 0
    kept = []
    while free_mib(node) > leave_mib + (CHUNK_BYTES >> 20):
        memory = mmap.mmap(-1, CHUNK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(MADV_HUGEPAGE)
        for page in range(0, CHUNK_BYTES, mmap.PAGESIZE):
            memory[page] = 1
        kept.append(memory)
    (folder / "filled").touch()
    signal.pause()


def free_mib(node: int) -> int:
    """Return what is free on a node, for anybody."""
    text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
    match = re.search(r"MemFree: +(\d+) kB", text)
    assert match is not None
    return int(match[1]) >> 10


if __name__ == "__main__":
    main()

"""A job of one process for the spill tests: it fills memory when told to, counts on, and ends when told to.

Files in the folder given: `go` and `stop` are the test's; `pid.N`, `memory` (address and pages), `count` and `right`
its own.
"""

import ctypes
import os
import sys
import time
import zlib
from pathlib import Path

PAGE = 4096
PRIVATE_ANONYMOUS = 0x22
MADV_NOHUGEPAGE = 15
MPOL_BIND, SYS_SET_MEMPOLICY = 2, 238

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def filled(pages: int) -> int:
    """Map pages, write each, and return the address."""
    address: int = libc.mmap(None, pages * PAGE, 3, PRIVATE_ANONYMOUS, -1, 0)
    libc.madvise(address, pages * PAGE, MADV_NOHUGEPAGE)
    for page in range(pages):
        ctypes.memmove(address + page * PAGE, (page + os.getpid()).to_bytes(8, "little"), 8)
    return address


def take_all_but(left: int, node: int) -> None:
    """Fill a node until no more than so many pages stay free, whatever page cache the kernel gives up meanwhile."""
    mask = ctypes.c_ulong(1 << node)
    libc.syscall(SYS_SET_MEMPOLICY, MPOL_BIND, ctypes.byref(mask), ctypes.c_ulong(64))
    quiet = 0
    while quiet < 10:
        text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
        over = int(text.split("MemFree:")[1].split()[0]) // 4 - left
        quiet = 0 if over > 0 else quiet + 1
        if over > 0:
            filled(over)
        time.sleep(0.05)
    libc.syscall(SYS_SET_MEMPOLICY, 0, None, ctypes.c_ulong(0))


def main() -> None:
    """Wait, fill so many pages, and count on until told to stop; `node`: take all of it but so many pages instead."""
    folder, pages, node = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (folder / f"pid.{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    if node >= 0:
        take_all_but(pages, node)
        pages = 1
    address = filled(pages)
    memory = (ctypes.c_char * (pages * PAGE)).from_address(address)
    before = zlib.crc32(memory)
    written = folder / "memory.new"
    written.write_text(f"{address} {pages}")
    written.rename(folder / "memory")
    rounds = 0
    with (folder / "count").open("wb", buffering=0) as count:
        while not (folder / "stop").exists():
            rounds += 1
            os.pwrite(count.fileno(), b"%d\n" % rounds, 0)
            time.sleep(0.05)
    if zlib.crc32(memory) == before:
        (folder / "right").touch()


if __name__ == "__main__":
    main()

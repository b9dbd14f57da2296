"""A rank that keeps a diary: how far it has counted, and whenever it had stood still, where its memory is by then.

`python -I -S steady_rank.py FOLDER MIB [SHARED_MIB]`. FOLDER/RANK.count holds a counter and a monotonic time, written
each step; FOLDER/RANK.diary has a line of JSON for the start and for each gap of more than a second. What
stands there is seen by the rank itself in its first steps after the gap: its CPUs, and the node of each of its pages,
asked of the kernel by move_pages(2) without a target. `under_way`: it was stopped around the very store of its count,
which may be one less seen from outside.
"""

import ctypes
import json
import mmap
import os
import struct
import sys
import time
from collections import Counter
from pathlib import Path

GAP_SECONDS = 1.0
STEP_SECONDS = 0.02


def main() -> None:
    """Touch memory and count, until the file `stop` appears."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2]) << 20
    shared_size = int(sys.argv[3]) << 20 if len(sys.argv) > 3 else 0
    rank = os.environ.get("SLURM_PROCID", "0")
    libnuma = ctypes.CDLL("libnuma.so.1")
    private = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memories = [private]
    if shared_size:
        with (folder / "segment").open("r+b") as file:
            memories.append(mmap.mmap(file.fileno(), shared_size))
    pattern = bytes([int(rank) % 250 + 1]) * mmap.PAGESIZE
    for page in range(0, size, mmap.PAGESIZE):
        private[page : page + mmap.PAGESIZE] = pattern
    for memory in memories[1:]:
        for page in range(int(rank) % 4 * mmap.PAGESIZE, len(memory), 4 * mmap.PAGESIZE):
            memory[page] = 1
    with (folder / f"{rank}.count").open("w+b") as file:
        file.truncate(mmap.PAGESIZE)
        count = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    diary = (folder / f"{rank}.diary").open("a")

    def note(gap: float, under_way: bool = False) -> None:
        at = time.monotonic()
        nodes: Counter[int] = Counter()
        for memory in memories:
            nodes += where(libnuma, memory)
        entry = {
            "gap": gap,
            "count": steps,
            "under_way": under_way,
            "at": at,
            "cpus": sorted(os.sched_getaffinity(0)),
            "nodes": {str(node): pages for node, pages in sorted(nodes.items())},
            "intact": private[:: mmap.PAGESIZE] == pattern[:1] * (size // mmap.PAGESIZE),
        }
        diary.write(json.dumps(entry) + "\n")
        diary.flush()

    steps = 0
    last = time.monotonic()
    note(0.0)
    while not (folder / "stop").exists():
        now = time.monotonic()
        if now - last > GAP_SECONDS:
            note(now - last)
            now = time.monotonic()
        steps += 1
        struct.pack_into("<Qd", count, 0, steps, now)
        last = time.monotonic()
        if last - now > GAP_SECONDS:
            note(last - now, under_way=True)
            last = time.monotonic()
        time.sleep(STEP_SECONDS)


def where(libnuma: ctypes.CDLL, memory: mmap.mmap) -> Counter[int]:
    """Return how many pages of our memory are on which node; those that are nowhere are not counted."""
    pages = len(memory) // mmap.PAGESIZE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    addresses = (ctypes.c_void_p * pages)(*range(address, address + len(memory), mmap.PAGESIZE))
    status = (ctypes.c_int * pages)()
    assert libnuma.numa_move_pages(0, ctypes.c_ulong(pages), addresses, None, status, 0) == 0
    return Counter(node for node in status if node >= 0)


if __name__ == "__main__":
    main()

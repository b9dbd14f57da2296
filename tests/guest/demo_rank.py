"""One rank of the demonstration's job: it shares a segment, has memory and a library of its own, and keeps computing.

When it had stood still, it says where it found its memory, before it does anything else. Its checksum is known
beforehand, so that a page lost or mixed up on the way is seen. It ends when the file `stop` appears.
"""

import ctypes
import mmap
import os
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

SHARED_BYTES = 64 << 20
PRIVATE_BYTES = 4 << 20
REST_SECONDS = 3.0
"""An emulated machine has no CPU to spare for eight ranks that never rest."""


def main() -> None:
    """Set up, say that we are ready, compute until told to stop, and say whether the sums are right."""
    folder, rank, ranks = Path(sys.argv[1]), int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    library = ctypes.CDLL(str(folder / "libjob.so"))
    library.cos.restype, library.cos.argtypes = ctypes.c_double, [ctypes.c_double]
    assert library.cos(0.0) == 1.0
    libnuma = ctypes.CDLL("libnuma.so.1")
    with (folder / "segment").open("r+b") as file:
        segment = mmap.mmap(file.fileno(), SHARED_BYTES)
    part = SHARED_BYTES // ranks
    segment[rank * part : (rank + 1) * part] = bytes([rank + 1]) * part  # each rank touches its own part only
    private = mmap.mmap(-1, PRIVATE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private.write(bytes([rank + 101]) * PRIVATE_BYTES)
    (folder / f"ready.{rank}").touch()
    rounds, last = 0, time.monotonic()
    while not (folder / "stop").exists() or not rounds:
        gap = time.monotonic() - last
        if gap > 2 * REST_SECONDS:
            nodes = where(libnuma, segment, rank * part, part) + where(libnuma, private, 0, PRIVATE_BYTES)
            cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            found = ", ".join(f"{pages} pages on node {node}" for node, pages in sorted(nodes.items()))
            print(f"rank {rank}: stood still for {gap:.0f} s; on CPUs {cpus} I find {found}", flush=True)
            (folder / f"found.{rank}").write_text(f"{cpus};{','.join(map(str, sorted(nodes)))}")
        last = time.monotonic()
        shared_sum = zlib.crc32(memoryview(segment)[rank * part : (rank + 1) * part])
        private_sum = zlib.crc32(private)
        rounds += 1
        time.sleep(REST_SECONDS)
    good = shared_sum == zlib.crc32(bytes([rank + 1]) * part) and private_sum == zlib.crc32(
        bytes([rank + 101]) * PRIVATE_BYTES
    )
    print(f"rank {rank}: checksums {'right' if good else 'WRONG'}, {rounds} rounds", flush=True)


def where(libnuma: ctypes.CDLL, memory: mmap.mmap, offset: int, size: int) -> Counter[int]:
    """Return how many pages of a part of our memory are on which node, as move_pages(2) says without a target."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + offset
    pages = size // mmap.PAGESIZE
    addresses = (ctypes.c_void_p * pages)(*range(address, address + size, mmap.PAGESIZE))
    status = (ctypes.c_int * pages)()
    assert libnuma.numa_move_pages(0, ctypes.c_ulong(pages), addresses, None, status, 0) == 0
    return Counter(status)


if __name__ == "__main__":
    main()

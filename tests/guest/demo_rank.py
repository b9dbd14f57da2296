"""One rank of the demonstration's job: it shares a segment, has memory and a library of its own, and keeps computing.

Its checksum is known beforehand, so that a page lost or mixed up on the way is seen. It ends, and says so, when the
file `stop` appears.
"""

import ctypes
import mmap
import os
import sys
import time
import zlib
from pathlib import Path

SHARED_BYTES = 64 << 20
PRIVATE_BYTES = 4 << 20


def main() -> None:
    """Set up, say that we are ready, compute until told to stop, and say whether the sums are right."""
    folder, rank, ranks = Path(sys.argv[1]), int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    library = ctypes.CDLL(str(folder / "libjob.so"))
    library.cos.restype, library.cos.argtypes = ctypes.c_double, [ctypes.c_double]
    assert library.cos(0.0) == 1.0
    with (folder / "segment").open("r+b") as file:
        segment = mmap.mmap(file.fileno(), SHARED_BYTES)
    part = SHARED_BYTES // ranks
    segment[rank * part : (rank + 1) * part] = bytes([rank + 1]) * part  # each rank touches its own part only
    private = bytearray(bytes([rank + 101])) * PRIVATE_BYTES
    (folder / f"ready.{rank}").touch()
    rounds = 0
    while not (folder / "stop").exists() or not rounds:
        shared_sum = zlib.crc32(memoryview(segment)[rank * part : (rank + 1) * part])
        private_sum = zlib.crc32(private)
        rounds += 1
        time.sleep(3)  # an emulated machine has no CPU to spare for eight that never rest
    good = shared_sum == zlib.crc32(bytes([rank + 1]) * part) and private_sum == zlib.crc32(
        bytes([rank + 101]) * PRIVATE_BYTES
    )
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    print(f"rank {rank}: checksums {'right' if good else 'WRONG'}, {rounds} rounds, now on CPUs {cpus}", flush=True)


if __name__ == "__main__":
    main()

"""A process that says, whenever it is asked, where its memory is, and where memory comes that it wants on node 3.

`python -I -S narrow_rank.py FOLDER [bound]`. It maps FOLDER/kept, which a rule may keep, and some memory of its own.
When FOLDER/ask.N appears, FOLDER/answer.N gets a line of JSON: the errno of binding itself to node 3 (0: it may), and
on which nodes the pages are that it touches then, those of its own, and those of the file. With the word "bound" it
binds itself to node 0 when it starts, and never to node 3.
"""

import ctypes
import json
import mmap
import os
import sys
import time
from collections import Counter
from pathlib import Path

MIB = 1 << 20
HOME, WANTED = 0, 3
MPOL_DEFAULT, MPOL_BIND = 0, 2


def main() -> None:
    """Answer until the job is cancelled."""
    folder = Path(sys.argv[1])
    bound = sys.argv[2:] == ["bound"]
    libnuma = ctypes.CDLL("libnuma.so.1", use_errno=True)
    if bound:
        assert bind(libnuma, HOME) == 0
    own = mmap.mmap(-1, 4 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    touch(own)
    with (folder / "kept").open("w+b") as file:
        file.truncate(MIB)
        kept = mmap.mmap(file.fileno(), MIB)
    touch(kept)
    for number in range(1000):
        while not (folder / f"ask.{number}").exists():
            time.sleep(0.05)
        answer: dict[str, object] = {"errno": 0 if bound else bind(libnuma, WANTED)}
        fresh = mmap.mmap(-1, MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        touch(fresh)
        if not bound:
            libnuma.set_mempolicy(MPOL_DEFAULT, None, ctypes.c_ulong(0))
        for name, memory in (("fresh", fresh), ("own", own), ("kept", kept)):
            answer[name] = where(libnuma, memory)
        (folder / "answer.new").write_text(json.dumps(answer))
        os.replace(folder / "answer.new", folder / f"answer.{number}")  # noqa: PTH105


def bind(libnuma: ctypes.CDLL, node: int) -> int:
    """Bind what we allocate from now on to a node; return the errno, 0 if that is allowed."""
    nodes = ctypes.c_ulong(1 << node)
    refused = libnuma.set_mempolicy(MPOL_BIND, ctypes.byref(nodes), ctypes.c_ulong(64))
    return ctypes.get_errno() if refused else 0


def touch(memory: mmap.mmap) -> None:
    """Write to each page."""
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1


def where(libnuma: ctypes.CDLL, memory: mmap.mmap) -> list[int]:
    """Return the nodes that pages of our memory are on, asked of the kernel by move_pages(2) without a target."""
    pages = len(memory) // mmap.PAGESIZE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    addresses = (ctypes.c_void_p * pages)(*range(address, address + len(memory), mmap.PAGESIZE))
    status = (ctypes.c_int * pages)()
    assert libnuma.numa_move_pages(0, ctypes.c_ulong(pages), addresses, None, status, 0) == 0
    return sorted(Counter(status))


if __name__ == "__main__":
    main()

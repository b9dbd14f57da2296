"""Jobs out of real processes, for tests: started on a node, told what memory to have, and always ended.

Each process runs `rank`, which does what it is told and then stands still; every request is answered, so nothing here
waits for time to pass.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guest.vm.layouts import observed

HUGE = 512
"""Base pages of a huge page."""

READ, WRITE = 1, 2
SHARED, PRIVATE, HUGETLB = 0x01, 0x02, 0x40000
MADV_HUGEPAGE, MADV_PAGEOUT, MADV_POPULATE_WRITE = 14, 21, 23
BIND, INTERLEAVE = 2, 3

ONE_OF_ALL = Path(__file__).with_name("rank.py")


@dataclass(frozen=True, slots=True)
class Memory:
    """Pages that a rank has mapped; page numbers count from its beginning."""

    rank: Rank
    address: int
    pages: int

    def write(self, lo: int = 0, hi: int | None = None, *, seed: int = 1, node: int = -1) -> Memory:
        """Write pages [lo, hi), on a node of choice if given; `seed` makes the content differ."""
        self.rank.ask("write", self.address + lo * 4096, (self.pages if hi is None else hi) - lo, seed, node)
        return self

    def read(self, lo: int = 0, hi: int | None = None, *, node: int = -1) -> Memory:
        """Read pages [lo, hi); those that are new come from the node of choice if given."""
        self.rank.ask("read", self.address + lo * 4096, (self.pages if hi is None else hi) - lo, node)
        return self

    def of(self, rank: Rank) -> Memory:
        """Return the same addresses in another process, which was forked from this one."""
        return Memory(rank, self.address, self.pages)

    def tell(self, request: str, *arguments: Any) -> None:
        """Have something done to all of it: madvise, mlock, mbind, mprotect, pin or unmap."""
        self.rank.ask(request, self.address, self.pages, *arguments)

    @property
    def span(self) -> tuple[int, int]:
        """The addresses [start, end)."""
        return self.address, self.address + self.pages * 4096


@dataclass(slots=True)
class Rank:
    """One process of a job."""

    pid: int
    pidfd: int
    _send: int
    _receive: int

    def ask(self, request: str, *arguments: Any) -> Any:
        """Send a request and return its answer; a rank that has ended, or an error in it, fails the test."""
        data = marshal.dumps((request, arguments))
        os.write(self._send, len(data).to_bytes(4, "little") + data)
        return self.answer()

    def answer(self) -> Any:
        """Return the next answer."""
        length = int.from_bytes(self._read(4), "little")
        error, value = marshal.loads(self._read(length))
        assert not error, f"rank {self.pid}: {error}"
        return value

    def map(
        self,
        pages: int,
        path: str | Path = "",
        offset: int = 0,
        *,
        flags: int = PRIVATE,
        prot: int = READ | WRITE,
        align: int = 1,
    ) -> Memory:
        """Map pages of a file, from page `offset`, or of nothing; nothing is touched yet."""
        return Memory(self, self.ask("map", pages, str(path), offset, prot, flags, align), pages)

    def memfd(self, pages: int, name: str = "job") -> str:
        """Make a memfd; return the path by which this rank, and what is forked from it, can map it."""
        return str(self.ask("memfd", name, pages))

    def system_v(self, pages: int) -> Memory:
        """Map a new System V segment."""
        return Memory(self, self.ask("system_v", pages), pages)

    def end_first_thread(self) -> None:
        """Have its first thread end, and wait for that; another one answers from now on."""
        self.ask("leave")
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            os.sched_yield()

    def kill(self) -> None:
        """End the process and wait until it, and its memory, are gone."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        select.select([self.pidfd], [], [])

    def close(self) -> None:
        """End the process and give the descriptors back."""
        self.kill()
        for descriptor in (self.pidfd, self._send, self._receive):
            os.close(descriptor)

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = os.read(self._receive, length - len(data))
            assert part, f"rank {self.pid} has ended"
            data += part
        return data


@dataclass(slots=True)
class Job:
    """The processes of a job; the first is where the others are forked from."""

    ranks: list[Rank] = field(default_factory=list)

    @property
    def first(self) -> Rank:
        """The process that the others were forked from."""
        return self.ranks[0]

    @property
    def pids(self) -> tuple[int, ...]:
        """All process IDs."""
        return tuple(rank.pid for rank in self.ranks)

    def fork(self, count: int = 1, parent: Rank | None = None) -> list[Rank]:
        """Fork ranks from `parent`, or from the first; they have the same memory at the same addresses."""
        fresh = [_forked(parent or self.first) for _ in range(count)]
        self.ranks += fresh
        return fresh

    def end(self, rank: Rank) -> None:
        """End one of its processes, and let go of it."""
        self.ranks.remove(rank)
        rank.close()

    def close(self) -> None:
        """End all processes, the first one last."""
        for rank in reversed(self.ranks):
            rank.close()

    def seal(self) -> None:
        """Have every rank remember what its memory holds."""
        for rank in self.ranks:
            rank.ask("seal")

    def broken(self, ranks: Iterable[Rank] | None = None) -> list[tuple[int, list[int]]]:
        """Return where the memory of ranks (all, if not given) holds something else than when it was sealed."""
        found = [(rank.pid, rank.ask("broken")) for rank in (self.ranks if ranks is None else ranks)]
        return [(pid, addresses) for pid, addresses in found if addresses]


@contextmanager
def job(node: int = 0, ranks: int = 1) -> Iterator[Job]:
    """Start a job of so many processes on the CPUs of a node; end them all, whatever happens."""
    with ExitStack() as stack:
        made = Job()
        stack.callback(made.close)
        made.ranks.append(_started(node, stack))
        made.fork(ranks - 1)
        yield made


def cpus_of(node: int) -> tuple[int, ...]:
    """Return the CPUs of a node of this machine."""
    text = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text()
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def nodes() -> tuple[int, ...]:
    """Return the nodes of this machine that have memory."""
    return tuple(number for number, node in enumerate(observed().nodes) if node.mib)


@contextmanager
def on_node(node: int) -> Iterator[None]:
    """Run on the CPUs of a node, so that what we touch or start comes from its memory."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus_of(node))
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def filled(path: Path, pages: int, node: int = 0) -> Path:
    """Make a file with content; its pages are in memory, on a node of choice."""
    with on_node(node):
        path.write_bytes(b"".join(bytes([number % 251]) * 4096 for number in range(pages)))
    return path


def _started(node: int, stack: ExitStack) -> Rank:
    there, send, receive, back = _pipes()
    try:
        with on_node(node):
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(ONE_OF_ALL), str(there), str(back)],
                pass_fds=(there, back),
                stdin=subprocess.DEVNULL,
            )
    finally:
        os.close(there)
        os.close(back)
    stack.enter_context(process)
    stack.callback(process.kill)
    rank = Rank(process.pid, os.pidfd_open(process.pid), send, receive)
    rank.ask("seal")
    return rank


def _forked(parent: Rank) -> Rank:
    there, send, receive, back = _pipes()
    try:
        pid = parent.ask("fork", f"/proc/{os.getpid()}/fd/{there}", f"/proc/{os.getpid()}/fd/{back}")
        rank = Rank(pid, os.pidfd_open(pid), send, receive)
        # The child opens its ends by our descriptors: they stay open until it has said that it is there.
        assert rank.answer() == pid
    finally:
        os.close(there)
        os.close(back)
    return rank


def _pipes() -> tuple[int, int, int, int]:
    there, send = os.pipe()
    receive, back = os.pipe()
    return there, send, receive, back

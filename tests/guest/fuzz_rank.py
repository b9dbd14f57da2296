"""A process that does with its memory what a seed says, and knows what each of its pages must hold.

Run by `fuzz_tree`, and forked from itself: the same seed, the same orders, the same operations. Each process listens to
the test on a socket of its own. Between orders it stands still; told to run, it goes on until it is stopped, and leaves
alone what it has at even places and in even files, so that of these it is known that they were there throughout.

Memory is written and read by the kernel on its behalf (pread, /proc/PID/mem), so that what is protected, cut off or
gone is an error, not a signal.
"""

from __future__ import annotations

import _random
import _socket
import _thread
import ctypes
import marshal
import os
import signal
import sys
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - pathlib is large

from guest.rank import (
    IPC_CREAT,
    IPC_RMID,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    SYS_EXIT,
    SYS_MBIND,
    checked,
    libc,
    pin,
    set_mempolicy,
)

BASE = 0x2000_0000_0000 // PAGE
"""Far from where the kernel maps what it is not told where to."""
PLACES, PLACE_PAGES, PLACE_STEP = 24, 1024, 2048
HUGE = 512
MAP_NORESERVE, MAP_HUGETLB = 0x4000, 0x40000
MREMAP_TO, MREMAP_DONTUNMAP = 3, 4
MPOL_MF_MOVE = 2
FILE_PAGES = 256
PAUSE = 20_000
"""Microseconds between operations while it runs, so that an emulated machine has time for whoever moves it."""
MOST_DEPTH, MOST_CHILDREN, MOST_THREADS = 2, 2, 3
ADVICE = {
    "DONTNEED": 4, "FREE": 8, "REMOVE": 9, "MERGEABLE": 12, "UNMERGEABLE": 13, "HUGEPAGE": 14, "NOHUGEPAGE": 15,
    "COLD": 20, "PAGEOUT": 21, "POPULATE_READ": 22, "POPULATE_WRITE": 23, "COLLAPSE": 25,
}  # fmt: skip
PRIVATE, PRIVATE_FILE, PRIVATE_HUGETLB, SHARED = range(4)
"""Whose a page is, and so what it may hold: see `may_hold`."""

libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.pread.restype = ctypes.c_ssize_t
libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
libc.pwrite.restype = ctypes.c_ssize_t
libc.pwrite.argtypes = libc.pread.argtypes

ZEROS = bytes(PAGE)


class Source:
    """What is mapped at a page: of which kind, of which object and which page of it (of no object: 0)."""

    def __init__(self, kind: int, name: int = 0, unit: int = 1) -> None:
        """Describe a mapping."""
        self.kind, self.name, self.unit = kind, name, unit


class Process:
    """One process of the tree; what it was told to do, what it has mapped, and what that must hold."""

    def __init__(self, seed: int, address: str, files: list[str], nodes: list[int]) -> None:
        """Begin with nothing mapped."""
        self.seed, self.address, self.nodes = seed, address, nodes
        self.files = [os.open(path, os.O_RDWR) for path in files]
        self.files += [os.memfd_create("even"), os.memfd_create("odd")]
        for file in self.files[-2:]:
            os.truncate(file, FILE_PAGES * PAGE)
        self.pattern, self.sink = os.memfd_create("pattern"), os.memfd_create("sink")
        self.random = _random.Random(seed)
        self.depth = 0
        self.generation = self.objects = 0
        self.areas: dict[int, tuple[int, int, int]] = {}  # by place: first page, pages, and in units of how many
        self.sources: dict[int, tuple[Source, int]] = {}  # by page: what is mapped there, and which page of it
        self.holds: dict[int, bytes] = {}  # by page: what its words are
        self.alike: set[int] = set()  # places whose pages KSM may merge
        self.sealed: list[tuple[int, int, int]] = []
        self.done: list[str] = []
        self.left = 0
        self.live = self.pinned = False
        self.begin()

    def begin(self) -> None:
        """Have what a process does not share with its parent."""
        self.children: list[int] = []
        self.threads: list[Any] = []
        self.rings: list[int] = []
        self.led = True  # by its first thread
        self.memory = os.open("/proc/thread-self/mem", os.O_RDONLY)
        self.table = os.open("/proc/thread-self/pagemap", os.O_RDONLY)
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.socket.connect(self.address)
        self.possible = 0
        self.faults = faults()
        self.tell(("here", os.getpid(), self.depth))

    def tell(self, answer: Any) -> None:
        """Answer the test."""
        self.socket.send(marshal.dumps(answer))

    def serve(self) -> None:
        """Do what is ordered, for ever."""
        while True:
            if self.live or self.left:
                self.left -= not self.live
                self.operate()
                if self.live:
                    libc.usleep(PAUSE)
                if not self.live and not self.left:
                    self.tell(("did", self.done))
            if self.left or (self.live and not self.ordered()):
                continue
            if not (order := self.socket.recv(4096)):
                os._exit(0)
            self.obey(*marshal.loads(order))

    def ordered(self) -> bool:
        try:
            self.socket.recv(1, _socket.MSG_DONTWAIT | _socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    def obey(self, order: str, *arguments: Any) -> None:
        """Do one order; "step" is answered when all of its operations are done."""
        if order == "step":
            self.left, self.done = arguments[0], []
        elif order == "run":
            self.live, self.possible, self.faults, self.done = True, 0, faults(), []
        elif order == "stop":
            self.live = False
            self.tell(("stopped", self.possible, faults() - self.faults, self.done))
        elif order == "seal":
            self.tell(("sealed", self.seal()))
        elif order == "broken":
            self.tell(("broken", self.broken()))
        elif order == "check":
            self.tell(("checked", self.wrong()))
        elif order == "stable":
            self.tell(("stable", self.stable(), self.pinned))

    def operate(self) -> None:
        """Do one operation at random; what the kernel refuses is left undone."""
        turn = self.below(TURNS)
        for weight, operation in OPERATIONS:
            turn -= weight
            if turn < 0:
                try:
                    said = operation(self)
                    self.done.append(f"{operation.__name__} {said or ''}")
                except OSError as error:
                    self.done.append(f"{operation.__name__}: {error}")
                return

    # Chance

    def below(self, limit: int) -> int:
        """Return a number from 0 to limit - 1."""
        return int(self.random.random() * limit)

    def one_in(self, number: int) -> bool:
        """Say yes one time of so many."""
        return self.below(number) == 0

    def some_nodes(self) -> list[int]:
        """Return one node or more."""
        first = self.nodes[self.below(len(self.nodes))]
        return [node for node in self.nodes if node == first or self.one_in(3)]

    def open_place(self) -> int:
        """Return a place that may be changed now."""
        place = self.below(PLACES)
        return place | 1 if self.live else place

    def some_pages(self) -> tuple[int, int]:
        """Return pages of an area, from which page and how many; OSError if there is none."""
        places = [place for place in sorted(self.areas) if place & 1 or not self.live]
        if not places:
            raise OSError("nothing is mapped")
        first, pages, unit = self.areas[places[self.below(len(places))]]
        if self.one_in(3):
            return first, pages
        lo = self.below(pages // unit)
        return first + lo * unit, (1 + self.below(pages // unit - lo)) * unit

    # What maps

    def map(self) -> str:
        """Map something at a place, instead of what is there."""
        place = self.open_place()
        start = BASE + place * PLACE_STEP
        kind = KINDS[self.below(len(KINDS))]
        pages, unit = 1 + self.below(48), 1
        if kind in {"huge", "hugetlb", "hugetlb shared"}:
            pages, unit = HUGE * (1 + self.below(2)), HUGE if kind != "huge" else 1
        lo = 0 if pages >= HUGE else self.below(PLACE_PAGES - pages)
        self.unmap_pages(start, PLACE_PAGES)
        self.areas.pop(place, None)
        self.alike.discard(place)
        self.map_at(kind, start + lo, pages)
        self.areas[place] = start + lo, pages, unit
        if kind == "huge":
            self.advise_pages("HUGEPAGE", start + lo, pages)
        return f"{kind} {pages} at {place}+{lo}"

    def map_over(self) -> str:
        """Map something over a part of what is there."""
        page, pages = self.some_pages()
        kind = ("anonymous", "shared", "file", "private file")[self.below(4)]
        pages = min(pages, FILE_PAGES)
        self.map_at(kind, page, pages)
        return f"{kind} {pages} at {page - BASE:#x}"

    def map_at(self, kind: str, page: int, pages: int) -> None:
        """Map so many pages of a kind from a page on."""
        flags, file, index, source = MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, Source(PRIVATE)
        if kind == "shared":
            flags, source = MAP_SHARED | MAP_ANONYMOUS, self.new_object()
        elif kind in {"file", "private file"}:
            number = self.below(len(self.files) // 2) * 2 + ((page - BASE) // PLACE_STEP & 1)
            file, index = self.files[number], self.below(FILE_PAGES - pages + 1)
            flags = MAP_SHARED if kind == "file" else MAP_PRIVATE
            source = Source(SHARED if kind == "file" else PRIVATE_FILE, number + 1)
        elif kind == "hugetlb":
            flags, source = flags | MAP_HUGETLB, Source(PRIVATE_HUGETLB, 0, HUGE)
        elif kind == "hugetlb shared":
            flags, source = MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, self.new_object(HUGE)
        if kind == "system v":
            source = self.new_object()
            segment = checked(libc.shmget(0, pages * PAGE, IPC_CREAT | 0o600))
            try:
                checked(libc.shmat(segment, ctypes.c_void_p(page * PAGE), 0))
            finally:
                libc.shmctl(segment, IPC_RMID, None)
        else:
            flags |= MAP_FIXED | (MAP_NORESERVE if self.one_in(4) else 0)
            prot = 1 if self.one_in(8) else 3
            checked(libc.mmap(page * PAGE, pages * PAGE, prot, flags, file, index * PAGE))
        for number in range(pages):
            self.sources[page + number] = source, index + number
            self.holds.pop(page + number, None)

    def new_object(self, unit: int = 1) -> Source:
        """Return a source that nobody else has."""
        self.objects += 1
        return Source(SHARED, os.getpid() << 8 | self.objects & 255, unit)

    def unmap(self) -> str:
        """Unmap some pages."""
        page, pages = self.some_pages()
        self.unmap_pages(page, pages)
        return f"{pages} at {page - BASE:#x}"

    def unmap_pages(self, page: int, pages: int) -> None:
        """Unmap pages."""
        checked(libc.munmap(page * PAGE, pages * PAGE))
        for number in range(page, page + pages):
            self.sources.pop(number, None)
            self.holds.pop(number, None)

    def remap(self) -> str:
        """Move a mapping to another place, which was empty; what it was moved from may stay, without its pages."""
        page, pages = self.some_pages()
        pages = min(pages, PLACE_PAGES // 2)
        place = (page - BASE) // PLACE_STEP
        others = [other for other in range(place & 1, PLACES, 2) if other not in self.areas]
        if not others:
            raise OSError("no place is empty")
        other = others[self.below(len(others))]
        to = page + (other - place) * PLACE_STEP
        stays = self.one_in(3)
        flags = MREMAP_TO | (MREMAP_DONTUNMAP if stays else 0)
        checked(libc.mremap(page * PAGE, pages * PAGE, pages * PAGE, flags, to * PAGE))
        unit = self.areas[place][2]
        self.areas[other] = to, pages, unit
        if place in self.alike:
            self.alike.add(other)
        for number in range(page, page + pages):
            if number in self.sources:
                self.sources[number + to - page] = self.sources[number]
                if not stays:
                    del self.sources[number]
            if number in self.holds:
                self.holds[number + to - page] = self.holds.pop(number)
        return f"{pages} from {page - BASE:#x} to {to - BASE:#x}, {'stays' if stays else 'goes'}"

    # What touches

    def write(self) -> str:
        """Write some pages, often on a node of choice."""
        page, pages = self.some_pages()
        pages = min(pages, HUGE if self.one_in(3) else 40)
        chosen = self.some_nodes() if self.one_in(2) else []
        if chosen:
            set_mempolicy(2, chosen)
        self.generation += 1
        words = [self.word(number) for number in range(page, page + pages)]
        data = b"".join([word * (PAGE // 8) for word in words])
        os.pwrite(self.pattern, data, 0)
        self.may_fault(page, pages)
        written = libc.pread(self.pattern, page * PAGE, len(data), 0)
        for number in range(max(written, 0) // PAGE):
            self.holds[page + number] = words[number]
        if written > 0 and written % PAGE:
            self.holds.pop(page + written // PAGE, None)
        if chosen:
            set_mempolicy(0, [])
        return f"{max(written, 0) // PAGE} of {pages} at {page - BASE:#x} on {chosen}"

    def word(self, page: int) -> bytes:
        """Return what a page is to hold: who wrote it, or, of what several write, which page it is."""
        source, index = self.sources.get(page, (None, 0))
        if source is None or source.kind == SHARED:
            return word_of(source.name if source else 1, index)
        if (page - BASE) // PLACE_STEP in self.alike:
            return word_of(0xA11CE, page % 3)
        return word_of(os.getpid(), page % PLACE_STEP, self.generation)

    def read(self) -> str:
        """Read a byte of some pages."""
        page, pages = self.some_pages()
        self.may_fault(page, pages)
        read = 0
        for number in range(page, page + min(pages, 40)):
            read += libc.pwrite(self.sink, number * PAGE, 1, 0) == 1
        return f"{read} of {pages} at {page - BASE:#x}"

    def may_fault(self, page: int, pages: int) -> None:
        """Count what may come to be resident: huge pages whole, and as much again for copies."""
        self.possible += (pages // HUGE + 2) * HUGE if (page + pages) % PLACE_STEP > 64 or pages > 64 else pages

    # What changes

    def protect(self) -> str:
        """Protect pages, or allow them."""
        page, pages = self.some_pages()
        prot = (0, 1, 3, 3)[self.below(4)]
        checked(libc.mprotect(page * PAGE, pages * PAGE, prot))
        return f"{prot} {pages} at {page - BASE:#x}"

    def truncate(self) -> str:
        """Make a file shorter or longer."""
        number = self.below(len(self.files))
        number |= int(self.live)
        pages = self.below(FILE_PAGES + 1) if self.one_in(2) else FILE_PAGES
        os.truncate(self.files[number], pages * PAGE)
        return f"{number} to {pages}"

    def lock(self) -> str:
        """Lock pages, or no more."""
        page, pages = self.some_pages()
        if self.one_in(2):
            checked(libc.munlock(ctypes.c_void_p(page * PAGE), ctypes.c_size_t(pages * PAGE)))
            return f"no more {pages} at {page - BASE:#x}"
        self.may_fault(page, pages)
        on_fault = self.below(2)
        checked(libc.mlock2(ctypes.c_void_p(page * PAGE), ctypes.c_size_t(pages * PAGE), on_fault))
        return f"{pages} at {page - BASE:#x}, on fault {on_fault}"

    def advise(self) -> str:
        """Advise the kernel."""
        page, pages = self.some_pages()
        name = sorted(ADVICE)[self.below(len(ADVICE))]
        self.advise_pages(name, page, pages)
        return f"{name} {pages} at {page - BASE:#x}"

    def advise_pages(self, name: str, page: int, pages: int) -> None:
        """Advise the kernel about pages, and know what that leaves of them."""
        if name.startswith(("POPULATE", "COLLAPSE")):
            self.may_fault(page, pages)
        place = (page - BASE) // PLACE_STEP
        if name in {"DONTNEED", "FREE"}:  # done in part, where it fails
            for number in range(page, page + pages):
                if self.sources.get(number, (None, 0))[0] is not None and self.sources[number][0].kind != SHARED:
                    self.holds.pop(number, None)
        if name == "MERGEABLE":
            self.alike.add(place)
        checked(libc.madvise(page * PAGE, pages * PAGE, ADVICE[name]))

    def bind(self) -> str:
        """Set the memory policy of some pages; what is there may be moved at once."""
        page, pages = self.some_pages()
        mode, move = (0, 1, 2, 3, 4)[self.below(5)], MPOL_MF_MOVE if self.one_in(3) else 0
        nodes = self.some_nodes() if mode in {1, 2, 3} else []
        mask = ctypes.c_ulong(sum(1 << node for node in nodes))
        where = ctypes.c_void_p(page * PAGE), ctypes.c_ulong(pages * PAGE)
        checked(libc.syscall(SYS_MBIND, *where, mode, ctypes.byref(mask), ctypes.c_ulong(64), move))
        return f"{mode} {nodes} {pages} at {page - BASE:#x}"

    def pin(self) -> str:
        """Pin pages, or no more."""
        if self.rings and self.one_in(2):
            os.close(self.rings.pop())
            return "no more"
        page, pages = self.some_pages()
        self.may_fault(page, pages)
        self.pinned = True
        self.rings.append(pin(page * PAGE, min(pages, 16)))
        return f"{min(pages, 16)} at {page - BASE:#x}"

    # What comes and goes

    def fork(self) -> str:
        """Fork a process that does so, too; go on when it listens."""
        self.children = [child for child in self.children if lives(child)]
        if self.depth >= MOST_DEPTH or len(self.children) >= MOST_CHILDREN - self.depth:
            raise OSError("enough")
        seed = self.below(1 << 30)
        ready, tell = os.pipe()
        child = os.fork()
        if not child:
            for descriptor in (ready, self.memory, self.table):
                os.close(descriptor)
            self.socket.close()
            self.depth, self.left, self.done = self.depth + 1, 0, []
            self.random, self.seed = _random.Random(seed), seed
            # Its own pattern: a write of its parent's must not change what it is about to write.
            os.close(self.pattern)
            self.pattern = os.memfd_create("pattern")
            self.begin()
            os.write(tell, b"1")
            os.close(tell)
            self.serve()
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)
        self.children.append(child)
        return ""

    def end(self) -> NoReturn:
        """End, if it was forked."""
        if not self.depth:
            raise OSError("the first one stays")
        self.tell(("ended", self.possible, faults() - self.faults, self.done))
        os._exit(0)

    def thread(self) -> str:
        """Start a thread that does nothing, or end one."""
        if self.threads and (len(self.threads) >= MOST_THREADS or self.one_in(2)):
            self.threads.pop().release()
            return "ends"
        began, over = _thread.allocate_lock(), _thread.allocate_lock()
        began.acquire()
        over.acquire()

        def stay() -> None:
            began.release()
            with over:
                pass

        _thread.start_new_thread(stay, ())
        began.acquire()
        self.threads.append(over)
        return "starts"

    def leave(self) -> None:
        """Have the first thread end, as with pthread_exit(3); another one goes on."""
        if not self.led or not self.one_in(4):
            raise OSError("not now")
        self.led = False
        self.done.append("the first thread ends")
        _thread.start_new_thread(self.go_on, ())
        libc.syscall(SYS_EXIT, 0)

    def go_on(self) -> None:
        """Serve in another thread, once the first has ended."""
        stat = f"/proc/{os.getpid()}/stat"
        while True:
            with open(stat) as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    break
            os.sched_yield()
        if not self.live and not self.left:
            self.tell(("did", self.done))
        self.serve()

    # What is known

    def present(self) -> list[tuple[int, int]]:
        """Return the stretches (page, pages) of which it is known what they hold, as far as they are in memory."""
        found: list[tuple[int, int]] = []
        for first, pages, _ in self.areas.values():
            entries = os.pread(self.table, pages * 8, first * 8)
            for number in range(pages):
                page = first + number
                if entries[number * 8 + 7] & 0x80 and page in self.holds:
                    if found and sum(found[-1]) == page:
                        found[-1] = found[-1][0], found[-1][1] + 1
                    else:
                        found.append((page, 1))
        return found

    def seal(self) -> int:
        """Remember the checksum of what is in memory, and return how many pages that are."""
        self.sealed = [(page, pages, self.checksum(page, pages)) for page, pages in self.present()]
        return sum(pages for _, pages, _ in self.sealed)

    def broken(self) -> list[int]:
        """Return where memory holds something else than when it was sealed."""
        return [page * PAGE for page, pages, sealed in self.sealed if self.checksum(page, pages) != sealed]

    def checksum(self, page: int, pages: int) -> int:
        """Return the CRC of pages, page by page where not all can be read."""
        try:
            return zlib.crc32(os.pread(self.memory, pages * PAGE, page * PAGE))
        except OSError:
            return 1

    def wrong(self) -> list[tuple[int, str]]:
        """Return the pages that hold what they may not, and what that is."""
        found = []
        for page, word in sorted(self.holds.items()):
            source, index = self.sources[page]
            try:
                data = os.pread(self.memory, PAGE, page * PAGE)
            except OSError as error:
                data = b""
                if source.kind in {PRIVATE, SHARED} and source.unit == 1 and not 0 < source.name < 256:
                    found.append((page * PAGE, f"kind {source.kind}: {error}"))
            if data and data != word * (PAGE // 8) and not may_hold(source, index, word, data):
                found.append((page * PAGE, f"kind {source.kind}: {word.hex()}: {data[:16].hex()}"))
        return found

    def stable(self) -> list[tuple[int, int, bool]]:
        """Return the pages (first, how many) that are left alone while it runs; and if KSM does so, too."""
        areas = [(place, first, pages) for place, (first, pages, _) in self.areas.items() if not place & 1]
        return [(first, pages, place not in self.alike) for place, first, pages in areas]


def may_hold(source: Source, index: int, word: bytes, data: bytes) -> bool:
    """Say whether a page that others change, too, holds what it may: of a file that was cut, or punched, zeros."""
    if source.kind in {PRIVATE, PRIVATE_HUGETLB}:
        return False
    words = {data[at : at + 8] for at in range(0, PAGE, 8)}
    return words <= {ZEROS[:8], word, word_of(source.name, index)}


def word_of(who: int, page: int, generation: int = 0) -> bytes:
    """Return eight bytes that tell who wrote them where, and when."""
    return (who << 32 & 0xFFFFFFFF00000000 | (page & 0xFFFF) << 16 | generation & 0xFFFF).to_bytes(8, "little")


def faults() -> int:
    """Return how many page faults this process has had."""
    with open(f"/proc/{os.getpid()}/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    return int(fields[7]) + int(fields[9])


def lives(pid: int) -> bool:
    """Say whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


KINDS = (
    "anonymous",
    "anonymous",
    "shared",
    "file",
    "file",
    "private file",
    "system v",
    "huge",
    "huge",
    "hugetlb",
    "hugetlb shared",
)

OPERATIONS: list[tuple[int, Callable[[Process], str | None]]] = [
    (14, Process.map), (5, Process.map_over), (3, Process.unmap), (3, Process.remap), (24, Process.write),
    (8, Process.read), (5, Process.protect), (2, Process.truncate), (3, Process.lock), (14, Process.advise),
    (4, Process.bind), (2, Process.pin), (5, Process.fork), (1, Process.end), (3, Process.thread), (1, Process.leave),
]  # fmt: skip
TURNS = sum(weight for weight, _ in OPERATIONS)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ends is reaped by the kernel
    seed_, address_, files_, nodes_ = sys.argv[1:]
    Process(int(seed_), address_, files_.split(":"), [int(node) for node in nodes_.split(",")]).serve()

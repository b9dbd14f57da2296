"""What runs in each process of a test's job: it sets up memory when told to, and otherwise stands still.

Run as a program by `ranks`, and forked from there. It imports little, so that a job is mostly the memory that a test
asked for. A request is a marshalled (name, arguments) and gets one answer; between requests nothing is touched. Whether
anything moved is the witness's to say.
"""

from __future__ import annotations

import _thread
import ctypes
import marshal
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
MPOL_DEFAULT, MPOL_BIND = 0, 2
MPOL_MF_STRICT = 1
MADV_DONTNEED, MADV_NOHUGEPAGE = 4, 15
SYS_EXIT = 60
SYS_MBIND, SYS_SET_MEMPOLICY, SYS_IO_URING_SETUP, SYS_IO_URING_REGISTER = 237, 238, 425, 427
SYS_PERF_EVENT_OPEN = 298
IPC_CREAT, IPC_RMID = 0o1000, 0
CLONE_NEWIPC = 0x08000000
PR_SET_DUMPABLE = 4

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.syscall.restype = ctypes.c_long

touched: dict[tuple[int, int], int] = {}
"""(address, bytes) of all that was written or read, and its checksum once sealed."""

turned = _thread.allocate_lock()
"""Held, but for the moment after each round of `use`."""


def checked(result: int | None) -> int:
    """Return what a call of libc returned; OSError if it failed."""
    if result is None or result in {-1, (1 << 64) - 1}:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def map_(pages: int, path: str, offset: int, prot: int, flags: int, align: int) -> int:
    """Map pages of a file ("": of nothing) and return where; memory of nothing is kept from being made huge."""
    length = pages * PAGE
    where = None
    if align > 1:
        room = checked(libc.mmap(None, length + align * PAGE, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
        where = -(-room // (align * PAGE)) * align * PAGE
        flags |= MAP_FIXED
    if not path:
        address = checked(libc.mmap(where, length, prot, flags | MAP_ANONYMOUS, -1, 0))
        if align == 1:
            checked(libc.madvise(address, length, MADV_NOHUGEPAGE))
        return address
    descriptor = os.open(path, os.O_RDWR if prot & 2 and flags & MAP_SHARED else os.O_RDONLY)
    try:
        return checked(libc.mmap(where, length, prot, flags, descriptor, offset * PAGE))
    finally:
        os.close(descriptor)


def memfd(name: str, pages: int) -> str:
    """Make a memfd and return the path by which this process and its children open it."""
    descriptor = os.memfd_create(name)
    os.truncate(descriptor, pages * PAGE)
    return f"/proc/self/fd/{descriptor}"


def system_v(pages: int) -> int:
    """Map a new System V segment, which goes when the last process unmaps it."""
    segment = checked(libc.shmget(0, pages * PAGE, IPC_CREAT | 0o600))
    try:
        return checked(libc.shmat(segment, None, 0))
    finally:
        libc.shmctl(segment, IPC_RMID, None)


def unmap(address: int, pages: int) -> None:
    """Unmap pages, and forget that they were touched."""
    checked(libc.munmap(address, pages * PAGE))
    for area in [area for area in touched if address <= area[0] < address + pages * PAGE]:
        del touched[area]


def write(address: int, pages: int, seed: int, node: int) -> None:
    """Write every page, each its own content; on a node of choice if `node` is not negative."""
    if node >= 0:
        set_mempolicy(MPOL_BIND, [node])
    for page in range(pages):
        ctypes.memmove(address + page * PAGE, ((seed << 32) + page).to_bytes(8, "little") * (PAGE // 8), PAGE)
    if node >= 0:
        set_mempolicy(MPOL_DEFAULT, [])
    touched[address, pages * PAGE] = 0


def write_each(address: int, stride: int, count: int) -> None:
    """Write to one page of every so many, a word only."""
    for number in range(count):
        ctypes.memset(address + number * stride * PAGE, 1, 8)


def read(address: int, pages: int, node: int) -> None:
    """Read one byte of every page; a page that is new then comes from the node of choice."""
    if node >= 0:
        set_mempolicy(MPOL_BIND, [node])
    for page in range(pages):
        ctypes.string_at(address + page * PAGE, 1)
    if node >= 0:
        set_mempolicy(MPOL_DEFAULT, [])
    touched[address, pages * PAGE] = 0


def seal() -> None:
    """Remember the checksum of all that was touched."""
    for address, length in touched:
        touched[address, length] = checksum(address, length)


def broken() -> list[int]:
    """Return the addresses at which the content is another than when it was sealed."""
    return [address for (address, length), sealed in touched.items() if checksum(address, length) != sealed]


def checksum(address: int, length: int) -> int:
    """Return the CRC of memory, without a copy of it."""
    return zlib.crc32((ctypes.c_char * length).from_address(address))


def madvise(address: int, pages: int, advice: int) -> None:
    """madvise(2)."""
    checked(libc.madvise(address, pages * PAGE, advice))


def mprotect(address: int, pages: int, prot: int) -> None:
    """mprotect(2)."""
    checked(libc.mprotect(address, pages * PAGE, prot))


def lock_all() -> None:
    """Lock what is in memory and what comes to be, without faulting anything in: mlockall(2) with MCL_ONFAULT."""
    checked(libc.mlockall(1 | 2 | 4))


def mlock(address: int, pages: int) -> None:
    """mlock(2)."""
    checked(libc.mlock(address, pages * PAGE))


def set_mempolicy(mode: int, nodes: Sequence[int]) -> None:
    """set_mempolicy(2)."""
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    checked(libc.syscall(SYS_SET_MEMPOLICY, mode, ctypes.byref(mask), ctypes.c_ulong(64)))


def mbind(address: int, pages: int, mode: int, nodes: Sequence[int]) -> None:
    """mbind(2), for pages that come later."""
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    length = ctypes.c_ulong(pages * PAGE)
    checked(libc.syscall(SYS_MBIND, ctypes.c_void_p(address), length, mode, ctypes.byref(mask), ctypes.c_ulong(64), 0))


def walk(address: int, pages: int) -> float:
    """Have the kernel look at each page as its migration does, and return the seconds: mbind(2) with MPOL_MF_STRICT."""
    began = time.perf_counter()
    mask, length = ctypes.c_ulong(1), ctypes.c_ulong(pages * PAGE)
    where = ctypes.c_void_p(address), length, MPOL_BIND, ctypes.byref(mask), ctypes.c_ulong(64), MPOL_MF_STRICT
    libc.syscall(SYS_MBIND, *where)  # EIO where a page is not on node 0: it has looked by then
    return time.perf_counter() - began


def pin(address: int, pages: int) -> int:
    """Register pages as a fixed buffer of an io_uring, which pins them for as long as its descriptor is open."""
    ring = checked(libc.syscall(SYS_IO_URING_SETUP, 1, (ctypes.c_char * 120)()))
    vector = (ctypes.c_uint64 * 2)(address, pages * PAGE)
    checked(libc.syscall(SYS_IO_URING_REGISTER, ring, 0, vector, 1))
    return ring


def io_uring() -> int:
    """Map the submission entries of a new io_uring, which are the kernel's pages, and return where."""
    ring = checked(libc.syscall(SYS_IO_URING_SETUP, 8, (ctypes.c_char * 120)()))
    return map_open(ring, 1, 0x10000000 // PAGE)


def perf() -> int:
    """Map the ring of a perf event, and return where."""
    event = perf_event(1, 0, 0)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
    return map_open(event, 9, 0)


def perf_event(kind: int, path: int, offset: int) -> int:
    """perf_event_open(2) for this thread; `path` is the address of a string, for a probe."""
    attributes = (ctypes.c_uint32 * 28)(kind, 112)  # type and size; config1 and config2 are at 56 and 64
    ctypes.c_uint64.from_buffer(attributes, 56).value = path
    ctypes.c_uint64.from_buffer(attributes, 64).value = offset
    return checked(libc.syscall(SYS_PERF_EVENT_OPEN, attributes, 0, -1, -1, 0))


def packet() -> int:
    """Map the ring of a packet socket, and return where."""
    opened = checked(libc.socket(17, 3, 0))  # AF_PACKET, SOCK_RAW; then SOL_PACKET, PACKET_RX_RING
    checked(libc.setsockopt(opened, 263, 5, (ctypes.c_uint32 * 4)(4 * PAGE, 4, PAGE // 2, 32), 16))
    return map_open(opened, 16, 0)


def map_open(descriptor: int, pages: int, offset: int) -> int:
    """Map pages of what is open, and return where."""
    return checked(libc.mmap(None, pages * PAGE, 3, MAP_SHARED, descriptor, offset * PAGE))


def probed(path: str) -> None:
    """Run code that a probe has been set on, so that the kernel maps pages of its own to step over it."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(file, b"\x0f\x1f\x44\x00\x00\xc3".ljust(PAGE, b"\x90"))  # a nop of five bytes, and back
    os.close(file)
    code = map_(1, path, 0, 5, MAP_PRIVATE, 1)
    kind = int(os.read(os.open("/sys/bus/event_source/devices/uprobe/type", os.O_RDONLY), 16))
    name = ctypes.create_string_buffer(path.encode())
    perf_event(kind, ctypes.addressof(name), 0)
    for _ in range(3):
        ctypes.CFUNCTYPE(None)(code)()


def flicker(address: int, pages: int, stride: int, count: int) -> None:
    """Split and join mappings, for ever, in a thread: `count` of every `stride` pages may be written to, or may not."""
    places = range(address, address + pages * PAGE, stride * PAGE)
    for place in places:
        mprotect(place, count, 1)

    def run() -> None:
        while True:
            for place in places:
                libc.mprotect(place, count * PAGE, 3)
                libc.mprotect(place, count * PAGE, 1)

    _thread.start_new_thread(run, ())


def fork_on(seconds: float) -> None:
    """Fork children that end after so long, one after another, for ever, in a thread."""

    def run() -> None:
        while True:
            child = os.fork()
            if child == 0:
                time.sleep(seconds)
                os._exit(0)
            while True:
                try:
                    os.kill(child, 0)
                except ProcessLookupError:
                    break
                time.sleep(seconds / 10)

    _thread.start_new_thread(run, ())


def leave_each(address: int, stride: int, count: int) -> None:
    """Give back all but the first page of every so many."""
    for number in range(count):
        madvise(address + (number * stride + 1) * PAGE, stride - 1, MADV_DONTNEED)


def threads(count: int, pages: int, cpus: Sequence[int]) -> list[int]:
    """Start threads, the i-th pinned to the i-th CPU in turn, that each write pages of their own and stand still."""
    ready, forever = _thread.allocate_lock(), _thread.allocate_lock()
    forever.acquire()
    found: list[int] = []

    def run(number: int) -> None:
        os.sched_setaffinity(0, {cpus[number % len(cpus)]})
        write(map_(pages, "", 0, 3, MAP_PRIVATE, 1), pages, number, -1)
        found.append(_thread.get_native_id())
        ready.release()
        with forever:
            pass

    for number in range(count):
        ready.acquire()
        _thread.start_new_thread(run, (number,))
    ready.acquire()
    return found


def use(areas: Sequence[tuple[int, int]]) -> None:
    """Read a byte of each page of these (address, pages), over and over, in a thread: the memory that a job is at."""
    views = [memoryview((ctypes.c_ubyte * (pages * PAGE)).from_address(address))[::PAGE] for address, pages in areas]
    turned.acquire()

    def run() -> None:
        while True:
            for view in views:
                view.tobytes()
            if turned.locked():
                turned.release()

    _thread.start_new_thread(run, ())


def use_on(rounds: int) -> None:
    """Wait until so many more rounds have ended."""
    for _ in range(rounds):
        turned.acquire()


def affinity(cpus: Sequence[int]) -> None:
    """Pin this process."""
    os.sched_setaffinity(0, cpus)


def load(path: str) -> None:
    """Load a shared library."""
    ctypes.CDLL(path)


def close(descriptor: int) -> None:
    """Close a descriptor."""
    os.close(descriptor)


def unshare_ipc() -> None:
    """Go into a new IPC namespace."""
    checked(libc.unshare(CLONE_NEWIPC))


def drop_to(user: int) -> None:
    """Become another user, without capabilities."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    checked(
        libc.prctl(4, 1, 0, 0, 0)
    )  # PR_SET_DUMPABLE: a change of user took it away, and with it the user's own look


REQUESTS: dict[str, Callable[..., Any]] = {
    function.__name__.rstrip("_"): function
    for function in (
        map_, memfd, system_v, unmap, write, write_each, read, seal, broken, madvise, mprotect, mlock, lock_all,
        fork_on, set_mempolicy, mbind, walk, pin, io_uring, perf, packet, probed, map_open, flicker,
        leave_each, threads, use, use_on, affinity, load, close, unshare_ipc, drop_to,
    )
}  # fmt: skip


def serve(receive: int, send: int) -> None:
    """Answer requests until nobody can send one any more."""
    while head := os.read(receive, 4):
        body = b""
        while len(body) < int.from_bytes(head, "little"):
            body += os.read(receive, int.from_bytes(head, "little") - len(body))
        name, arguments = marshal.loads(body)
        answer: tuple[str, Any]
        if name == "fork":
            if child := os.fork():
                answer = ("", child)
            else:
                os.close(receive)
                os.close(send)
                receive, send = os.open(arguments[0], os.O_RDONLY), os.open(arguments[1], os.O_WRONLY)
                answer = ("", os.getpid())
        elif name == "leave":
            _thread.start_new_thread(serve, (receive, send))
            answer = ("", None)
        else:
            try:
                answer = ("", REQUESTS[name](*arguments))
            except OSError as error:
                answer = (f"{name}: {error}", None)
        data = marshal.dumps(answer)
        os.write(send, len(data).to_bytes(4, "little") + data)
        if name == "leave":  # the first thread ends, as with pthread_exit(3), and the other answers from now on
            libc.syscall(SYS_EXIT, 0)
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ends is reaped by the kernel
    serve(int(sys.argv[1]), int(sys.argv[2]))

"""Reads what the kernel tells of processes below /proc.

Maps are handed on as raw bytes: what they mean is the planner's. A process that ends while it is read raises
Vanished, a normal outcome; one that we may not read raises Denied. Source: the man page proc(5).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import numbered, printable, read_bytes, shown, translated
from pageferry.kernel.lists import parse_list, parse_number

_STATUS = (
    *(b"Name", b"State", b"Tgid", b"PPid", b"Uid", b"Threads", b"Cpus_allowed_list", b"Mems_allowed_list"),
    *(b"RssAnon", b"RssFile", b"RssShmem"),
)
_ENDED = frozenset({b"Z", b"X"})
_FORKED = re.compile(rb"^processes ([0-9]{1,20})$", re.MULTILINE)
_NAMESPACE = re.compile(r"ipc:\[([0-9]{1,20})\]")


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc/PID/status says. Sizes are in bytes and 0 where the process has no memory of its own.

    `name` is printable: the kernel escapes newline and backslash, we the rest. `state` is the kernel's letter,
    such as R, S, D, T (stopped), Z (zombie: its first thread has ended). `uids` are real, effective, saved and
    file system user ID. `cpus_allowed` and `mems_allowed` are the first thread's, and already within its cpuset.
    """

    name: str
    state: str
    thread_group: int
    parent: int
    uids: tuple[int, ...]
    threads: int
    cpus_allowed: frozenset[int]
    mems_allowed: frozenset[int]
    rss_anon_bytes: int
    rss_file_bytes: int
    rss_shmem_bytes: int


def start_time(pid: int, root: Path = Path("/")) -> int:
    """Return when a process started, in clock ticks since boot (field 22 of /proc/PID/stat).

    With the process ID it names a process for as long as the host is up.
    """
    return int(_stat(pid, root)[19])


def read_status(pid: int, root: Path = Path("/")) -> Status:
    """Return the status of a process, or of a thread by its thread ID.

    Raises Vanished, Denied, and KernelError for a file that cannot be understood.
    """
    path = _path(pid, "status", root)
    fields = _fields(read_bytes(path))
    try:
        return Status(
            name=printable(fields[b"Name"]),
            state=_letter(fields[b"State"][:1]),
            thread_group=_id(fields[b"Tgid"]),
            parent=_id(fields[b"PPid"]),
            uids=_uids(fields[b"Uid"]),
            threads=_id(fields[b"Threads"]),
            cpus_allowed=parse_list(fields[b"Cpus_allowed_list"]),
            mems_allowed=parse_list(fields[b"Mems_allowed_list"]),
            rss_anon_bytes=_size(fields.get(b"RssAnon")),
            rss_file_bytes=_size(fields.get(b"RssFile")),
            rss_shmem_bytes=_size(fields.get(b"RssShmem")),
        )
    except KeyError as error:
        raise KernelError(f"{path}: no line for {error.args[0].decode()}") from error
    except ValueError as error:
        raise KernelError(f"{path}: {error}") from error


def read_maps(pid: int, root: Path = Path("/")) -> bytes:
    """Return the text of a process's maps, whole lines; of a kernel thread, and of a process that has ended, nothing.

    A process that ends while it is read can leave the text short without an error: whoever needs all of it asks
    afterwards whether the process is still alive. Raises Vanished and Denied.
    """
    text = read_bytes(_path(pid, "maps", root))
    if not text and (thread := living_thread(pid, root)) != pid:
        return read_bytes(_path(thread, "maps", root))
    return text


def living_thread(pid: int, root: Path = Path("/")) -> int:
    """Return the ID of a thread through which a process's memory is reached; `pid` where none is better.

    That of its first thread, unless it has ended: then the process is a zombie (pthread_exit(3) in main) that has no
    maps, although the others run. /proc/TID has for each thread what /proc/PID has. Raises KernelError.
    """
    if _is_alone(pid, root):
        return pid
    with contextlib.suppress(Vanished):
        if _state(pid, root) in _ENDED:
            for thread in numbered(root / f"proc/{pid}/task"):
                with contextlib.suppress(Vanished):
                    if _state(thread, root) not in _ENDED:
                        return thread
    return pid


def has_ended(pid: int, root: Path = Path("/")) -> bool:
    """Return whether all threads of a process have ended, though its parent has not asked for it. Raises Vanished."""
    return _state(living_thread(pid, root), root) in _ENDED


def _is_alone(pid: int, root: Path) -> bool:
    """Return whether a process has one thread; its threads count as links (proc_task_getattr())."""
    try:
        return os.stat(_path(pid, "task", root)).st_nlink == 3  # noqa: PTH116
    except OSError:
        return False


def ipc_namespace(pid: int, root: Path = Path("/")) -> int:
    """Return the inode of a process's IPC namespace; SysV segments of two namespaces are never the same."""
    path = _path(pid, "ns/ipc", root)
    try:
        link = os.readlink(path)  # noqa: PTH115  (the target is no path)
    except OSError as error:
        raise translated(error, path) from error
    match = _NAMESPACE.fullmatch(link)
    if match is None:
        raise KernelError(f"{path}: not an IPC namespace: {printable(link)}")
    return int(match[1])


def list_pids(root: Path = Path("/")) -> frozenset[int]:
    """Return the IDs of all processes, kernel threads included; some may have ended by now."""
    return frozenset(numbered(root / "proc"))


def descendants(pid: int, root: Path = Path("/")) -> frozenset[int]:
    """Return the IDs of the children of a process, their children and so on, without itself.

    A process whose parent ended belongs to init and is no longer found: a cgroup is the better answer where
    there is one. Raises Vanished when `pid` is not there.
    """
    if root == Path("/"):
        import psutil  # noqa: PLC0415  (no hook needs it)

        try:
            return frozenset(child.pid for child in psutil.Process(pid).children(recursive=True))
        except psutil.NoSuchProcess as error:
            raise Vanished(f"process {pid} has ended") from error
    start_time(pid, root)
    children: dict[int, list[int]] = {}
    for parent, child in _parents(root):
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        fresh = [child for child in children.get(waiting.pop(), ()) if child not in found]
        found.update(fresh)
        waiting.extend(fresh)
    return frozenset(found - {pid})


def cgroups(pid: int, root: Path = Path("/")) -> bytes:
    """Return in which cgroups a process is, as /proc/PID/cgroup says it. Raises Vanished and Denied."""
    return read_bytes(_path(pid, "cgroup", root))


def parent(pid: int, root: Path = Path("/")) -> int:
    """Return the ID of a process's parent. Raises Vanished."""
    return int(_stat(pid, root)[1])


def has_memory(pid: int, root: Path = Path("/")) -> bool:
    """Return whether a process has an address space: not one that is ending, though it may be there for a while."""
    try:
        return not read_bytes(_path(living_thread(pid, root), "statm", root)).startswith(b"0 ")
    except Vanished:
        return False


def processes_forked(root: Path = Path("/")) -> int:
    """Return how many processes and threads were forked since boot. Raises KernelError."""
    path = root / "proc/stat"
    found = _FORKED.search(read_bytes(path))
    if found is None:
        raise KernelError(f"{path}: does not say how many processes were forked")
    return int(found[1])


def mount_namespace(pid: int, root: Path = Path("/")) -> int:
    """Return the inode of a process's mount namespace. Raises Vanished and Denied."""
    path = _path(pid, "ns/mnt", root)
    try:
        return os.stat(path).st_ino  # noqa: PTH116
    except OSError as error:
        raise translated(error, path) from error


def _path(pid: int, name: str, root: Path) -> str:
    top = str(root)  # joining Paths costs more than the open itself
    return f"{'' if top == '/' else top}/proc/{pid}/{name}"


def _state(pid: int, root: Path) -> bytes:
    return _stat(pid, root)[0]


def _stat(pid: int, root: Path) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the state on. Raises as read_bytes() does, and KernelError."""
    path = _path(pid, "stat", root)
    text = read_bytes(path)
    # The command name, in parentheses, can hold any character, ") R 1 (" too; the numbers behind it cannot.
    fields = text[text.rfind(b")") + 1 :].split()
    if len(fields) < 20 or not (_is_number(fields[19]) and _is_number(fields[1])):
        raise KernelError(f"{path}: not a process: {shown(text)}")
    return fields


def _is_number(text: bytes) -> bool:
    return len(text) <= 19 and text.isdigit()


def _fields(text: bytes) -> dict[bytes, bytes]:
    # Eleven of sixty lines are wanted, of every process of a job: finding them is cheaper than taking all apart.
    text = b"\n" + text
    found = {}
    for key in _STATUS:
        at = text.find(b"\n" + key + b":")
        if at >= 0:
            at += len(key) + 2
            end = text.find(b"\n", at)
            found[key] = text[at : end if end >= 0 else None].strip()
    return found


def _size(value: bytes | None) -> int:
    if value is None:
        return 0
    text, _, unit = value.partition(b" ")
    if unit != b"kB" or (number := parse_number(text)) >= 1 << 53:
        raise ValueError(f"not in kB: {shown(value)}")
    return number * 1024


def _id(value: bytes) -> int:
    if (number := parse_number(value)) >= 1 << 32:
        raise ValueError(f"not an ID: {number}")
    return number


def _uids(value: bytes) -> tuple[int, ...]:
    uids = tuple(map(_id, value.split()))
    if len(uids) != 4:
        raise ValueError(f"not four user IDs: {shown(value)}")
    return uids


def _letter(value: bytes) -> str:
    if not value.isalpha():
        raise ValueError(f"not a state: {shown(value)}")
    return value.decode("ascii")


def _parents(root: Path) -> Iterator[tuple[int, int]]:
    for pid in list_pids(root):
        with contextlib.suppress(Vanished):
            yield read_status(pid, root).parent, pid

"""Releases what pageferry stopped, if pageferry dies, hangs or is killed before it could.

A process of its own, in its own session, that imports nothing of pageferry: `guardian.py AGENT PULSE_SECONDS [FOLDER]`.
It is told on its standard input of each hold before that is set, and answers `ok`. When its parent dies, or sends
nothing for PULSE_SECONDS (0: it may be silent) while there are holds, it releases them all, says so in the folder's
log, and ends. How a hold is undone is said here alone: the gate uses the same functions.

One JSON array a line: ["hold", JOB, [ENTRY, ...]] with all entries of the job, ["forget", JOB], ["pulse"] (which is
not answered), ["end"]. The entries, in the records of the folder too, one a line:

    ["job", JOB, SINCE, WALL]           in records: when it was held, by the monotonic and by the wall clock
    ["group", PATH, INODE]              a version 2 group that we freeze
    ["private", PATH, INODE]            a version 2 group of our own, which we freeze and move processes to
    ["moved", PID, START, ORIGIN]       such a process, when it started, and the group that it came from
    ["stopped", PID, START]             a process that we stop by signal
"""

# Only os's functions here: this starts before each hold of the command, and stays small.
# ruff: noqa: PTH104, PTH106, PTH108, PTH118, PTH120, PTH122, PTH123, PTH208
import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

RECORD = ".hold"
UNDONE = ".undone"
LOG = "guardian.log"
LOG_BYTES = 65536
RECORD_BYTES = 1 << 24
"""A record with a line for each of a hundred thousand processes; a larger file is none of ours."""

_SHAPES = {
    "job": (int, float, float),
    "group": (str, int),
    "private": (str, int),
    "moved": (int, int, str),
    "stopped": (int, int),
}
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_ROUNDS = 20
_IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""All that systemd or an operator sends to a whole service; SIGABRT is its watchdog's."""

Entry = list[Any]


def write_group(path: str, inode: int, name: str, text: str) -> None:
    """Write to a file of a group if it is still the same one; raises OSError, FileNotFoundError if it is gone."""
    with _group(path, inode) as folder:
        file = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def undo(entries: Iterable[Entry]) -> list[str]:
    """Release what entries name, in any order; what is gone is released. Return why something still stands still."""
    entries = list(entries)
    complaints = []
    for kind, *words in entries:
        try:
            if kind in {"group", "private"}:
                write_group(words[0], words[1], "cgroup.freeze", "0")
            elif kind == "stopped":
                _continue(*words)
        except OSError as error:
            if error.errno not in _GONE:
                complaints.append(f"{words[0]!a}: {error.strerror}")
        except ValueError as error:  # a path that cannot be: it spoils no other entry
            complaints.append(f"{words[0]!a}: {error}")
    for path, inode in [words for kind, *words in entries if kind == "private"]:
        # It runs by now; where it stays in the end is no reason to complain.
        with contextlib.suppress(OSError, ValueError):
            _put_back(path, inode, {words[0]: (words[1], words[2]) for kind, *words in entries if kind == "moved"})
    return complaints


def parse_record(text: bytes) -> tuple[list[Entry], int]:
    """Return the entries of a record, and how many of its lines are damaged."""
    entries: list[Entry] = []
    damaged = 0
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if _well_formed(entry):
            entries.append(entry)
        else:
            damaged += 1
    return entries, damaged + (not text.endswith(b"\n"))


def read_record(path: str) -> tuple[list[Entry], int]:
    """Return what `parse_record` says of a file; one that cannot be read has one damaged line."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return [], 1
            text = os.read(file, min(status.st_size, RECORD_BYTES) + 1)
        finally:
            os.close(file)
    except FileNotFoundError:
        return [], 0
    except OSError:
        return [], 1
    return parse_record(text) if len(text) <= RECORD_BYTES else ([], 1)


def release(folder: str | None, job: int, entries: list[Entry]) -> list[str]:
    """Undo a job's hold with its record; the record stays, under the name of one undone, if something still stands.

    An agent that went on after it had hung finds no record of its hold, and sets nothing more.
    """
    undone = None
    if folder is not None:
        undone = os.path.join(folder, f"{job}{UNDONE}")
        with contextlib.suppress(OSError):
            os.rename(os.path.join(folder, f"{job}{RECORD}"), undone)
    complaints = undo(entries)
    if undone is not None and not complaints:
        with contextlib.suppress(OSError):
            os.unlink(undone)
    return complaints


def recorded(folder: str) -> dict[int, list[str]]:
    """Return the jobs that have records in a folder, and the names of these."""
    jobs: dict[int, list[str]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            number, suffix = os.path.splitext(name)
            if suffix in {RECORD, UNDONE} and number.isascii() and number.isdigit() and len(number) <= 10:
                jobs.setdefault(int(number), []).append(name)
    return jobs


def log(folder: str, why: str, jobs: Iterable[int], complaints: Iterable[str]) -> None:
    """Say in the folder's log, and to our standard error, what was released and why."""
    line = f"{why}: released job {', '.join(map(str, jobs))}" + "".join(f"; {text}" for text in complaints)
    with contextlib.suppress(OSError):
        os.write(2, f"pageferry guardian: {line}\n".encode())
    with contextlib.suppress(OSError), open(os.path.join(folder, LOG), "a", opener=_opened) as file:
        if file.tell() < LOG_BYTES:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n")


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)  # nobody may read a pipe


def _is_path(word: str) -> bool:
    try:
        return word.startswith("/") and b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return False


def _well_formed(entry: object) -> bool:
    if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
        return False
    shape, words = _SHAPES.get(entry[0]), entry[1:]
    return (
        shape is not None
        and [type(word) for word in words] == list(shape)
        and all(_is_path(word) for word in words if isinstance(word, str))
        and all(0 <= word < 1 << 64 for word in words if not isinstance(word, str))
        and (entry[0] not in {"moved", "stopped"} or 0 < words[0] < 1 << 30)
    )


@contextlib.contextmanager
def _group(path: str, inode: int) -> Iterator[int]:
    folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_ino != inode:
            raise FileNotFoundError(errno.ENOENT, "another group has its name", path)
        yield folder
    finally:
        os.close(folder)


def _start(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    return int(text[text.rfind(b")") + 1 :].split()[19])


def _continue(pid: int, start: int) -> None:
    handle = os.pidfd_open(pid)
    try:
        if _start(pid) == start:
            signal.pidfd_send_signal(handle, signal.SIGCONT)
    finally:
        os.close(handle)


def _put_back(path: str, inode: int, moved: dict[int, tuple[int, str]]) -> None:
    """Move the processes of a group of our own to where they came from, and remove it.

    Children that they had meanwhile go where the first one came from, or to the top of the hierarchy.
    """
    top = os.path.dirname(os.path.dirname(path))
    common = next((origin for _, origin in moved.values()), top)
    for _ in range(_ROUNDS):
        with _group(path, inode) as folder:
            file = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            with open(file, "rb") as procs:
                pids = [int(word) for word in procs.read().split()]
        for pid in pids:
            with contextlib.suppress(OSError):
                start, origin = moved.get(pid, (0, common))
                _enter(pid, origin if start in {0, _start(pid)} else common, common, top)
        with contextlib.suppress(OSError):
            os.rmdir(path)
            return


def _enter(pid: int, *groups: str) -> None:
    for group in groups:
        with contextlib.suppress(OSError), open(os.path.join(group, "cgroup.procs"), "r+b", buffering=0) as procs:
            procs.write(str(pid).encode())
            return


def _watch(agent: int, parent: int, pulse_seconds: float, held: dict[int, list[Entry]]) -> str:
    """Keep `held` as we are told; return why it is to be released."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(parent, select.POLLIN)
    os.write(1, b"ready\n")
    died = f"pageferry (process {agent}) died"
    heard, text = time.monotonic(), b""
    while True:
        left = heard + pulse_seconds - time.monotonic() if pulse_seconds and held else None
        ready = dict(poll.poll(None if left is None else max(left, 0) * 1000))
        if parent in ready:
            return died
        if 0 not in ready:
            if left is not None and left <= 0:
                return f"pageferry (process {agent}) has not been heard for {pulse_seconds:g} s"
            continue
        chunk = os.read(0, 65536)
        if not chunk:  # it dies: its descriptors go first
            return died
        heard = time.monotonic()
        *lines, text = (text + chunk).split(b"\n")
        for line in lines:
            verb, *words = json.loads(line)
            if verb == "end":
                return f"pageferry (process {agent}) ended"
            if verb == "hold":
                held[words[0]] = words[1]
            elif verb == "forget":
                held.pop(words[0], None)
            if verb != "pulse":
                os.write(1, b"ok\n")


def main(agent: int, pulse_seconds: float, folder: str | None = None) -> None:
    """Watch over the agent, our parent, until it ends; then release what it held."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        parent = os.pidfd_open(agent)
    except ProcessLookupError:
        return
    if os.getppid() != agent:  # it died before, and its number may be a stranger's
        return
    if folder is not None:
        # One guardian for a folder: the last one ends when it has released all. Nothing in the folder is needed for it.
        fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_EX)
    held: dict[int, list[Entry]] = {}
    why = "the guardian failed"
    try:
        why = _watch(agent, parent, pulse_seconds, held)
    finally:
        complaints = [text for job, entries in held.items() for text in release(folder, job, entries)]
        if held and folder is not None:
            log(folder, why, held, complaints)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:4])

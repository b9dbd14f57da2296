"""Text of /proc/PID/maps of many processes → their VMAs as columns.

Forked processes share almost all lines, and exec'd ones all but the addresses, so each distinct line is parsed
once, and what follows its addresses once more only when it is new. Format: proc_pid_maps(5), kernel
fs/proc/task_mmu.c show_map_vma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pageferry_planner.columns import Ints

_KERNEL_OWN = frozenset({"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]", "[sigpage]", "[vectors]"})
"""VMAs that the kernel puts into every process; their pages are the kernel's and never move."""

REMEMBERED = 1 << 16
"""So many distinct lines are remembered; forked ranks have far fewer, those of exec'd ones do not come again."""

_SHOWN_BYTES = 80
_HEXADECIMAL = b"0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Region:
    """What a line says besides its addresses: permissions, offset in bytes, device, inode and path.

    `path` is as printed: a newline in a name shows as the four characters backslash-0-1-2, " (deleted)" may be part
    of a name, so it is for globs and for people, never to be opened. `namespace` is the IPC namespace of a System V
    segment, else 0.
    """

    shared: bool
    writable: bool
    offset: int
    device: str
    inode: int
    path: str
    namespace: int

    @property
    def anonymous(self) -> bool:
        """True for memory that no object backs. A System V segment with shmid 0 shows inode 0 but has a device."""
        return self.device == "00:00"

    @property
    def kernel_own(self) -> bool:
        """True for the vdso and its like."""
        return self.path in _KERNEL_OWN


@dataclass(frozen=True, slots=True)
class Maps:
    """VMAs of several processes.

    One row per distinct line (or more, if there are very many): `start`, `end` (bytes, half open), `region` (number in
    `regions`). One row per VMA of a process: `process` (number in the order given) and `line`.
    """

    start: Ints
    end: Ints
    region: Ints
    regions: tuple[Region, ...]
    process: Ints
    line: Ints

    def shown(self, wanted: Callable[[Region], bool]) -> Iterator[tuple[int, int, int, int]]:
        """Yield each region that is wanted, with a VMA that shows it: its process, and its [start, end)."""
        regions, first = np.unique(self.region[self.line], return_index=True)
        for region, row in zip(regions.tolist(), first.tolist(), strict=True):
            if wanted(self.regions[region]):
                line = self.line[row]
                yield region, int(self.process[row]), int(self.start[line]), int(self.end[line])


class _Numbers(dict[bytes, int]):
    """Numbers new keys in the order in which they are first looked up, those that it was made to forget included."""

    forgotten = 0

    def __missing__(self, key: bytes) -> int:
        number = self[key] = self.forgotten + len(self)
        return number

    def forget(self) -> None:
        self.forgotten += len(self)
        self.clear()


def parse(texts: Sequence[bytes], namespaces: Sequence[int] | None = None) -> Maps:
    """Parse the maps of several processes; `namespaces` is the IPC namespace of each (default: one for all).

    Raises ValueError, with the line, for text that is not the kernel's.
    """
    lines, tails = _Numbers(), _Numbers()
    per_process: list[Ints] = []
    parts: list[tuple[Ints, Ints, Ints]] = []
    for number, text in enumerate(texts):
        rows = text.split(b"\n")
        if rows[-1] == b"":
            rows.pop()
        if b" /SYSV" in text:
            mark = b"\n%d" % (namespaces[number] if namespaces else 0)
            rows = [row + mark if b" /SYSV" in row else row for row in rows]
        per_process.append(np.fromiter(map(lines.__getitem__, rows), np.int64, len(rows)))
        if len(lines) > REMEMBERED:
            parts.append(_columns(lines, tails))
            lines.forget()
    parts.append(_columns(lines, tails))
    start, end, region = (np.concatenate(column) for column in zip(*parts, strict=True))
    lengths = [len(rows) for rows in per_process]
    return Maps(
        start=start,
        end=end,
        region=region,
        regions=tuple(map(_region, tails)),
        process=np.repeat(np.arange(len(texts)), lengths),
        line=np.concatenate(per_process) if per_process else np.zeros(0, np.int64),
    )


def _columns(lines: _Numbers, tails: _Numbers) -> tuple[Ints, Ints, Ints]:
    """Return start, end and region of lines."""
    starts: list[int] = []
    ends: list[int] = []
    regions: list[int] = []
    for line in lines:
        try:
            addresses, tail = line.split(b" ", 1)
            first, last = addresses.split(b"-")
            start, end = int(first, 16), int(last, 16)
            if not 0 <= start < end < 1 << 64:
                raise ValueError("address")
        except ValueError as error:
            raise ValueError(f"not a line of /proc/PID/maps: {line[:_SHOWN_BYTES]!r}") from error
        starts.append(start)
        ends.append(end)
        regions.append(tails[tail])
    start_of, end_of = (np.array(column, np.uint64).view(np.int64) for column in (starts, ends))
    return start_of, end_of, np.array(regions, np.int64)  # vsyscall wraps to negative; it is never used


def _region(tail: bytes) -> Region:
    text, _, namespace = tail.partition(b"\n")
    try:
        permissions, offset, device, inode, *path = text.split(None, 4)
        numbers = int(offset, 16), int(inode)
        if len(permissions) != 4 or min(numbers) < 0 or max(numbers) >> 64 or not _is_device(device):
            raise ValueError("permissions, offset, device or inode")
        return Region(
            shared=permissions[3:4] == b"s",
            writable=permissions[1:2] == b"w",
            offset=numbers[0],
            device=device.decode("ascii"),
            inode=numbers[1],
            path=path[0].decode("utf-8", "surrogateescape") if path else "",
            namespace=int(namespace or 0),
        )
    except ValueError as error:
        raise ValueError(f"not a line of /proc/PID/maps: {tail[:_SHOWN_BYTES]!r}") from error


def _is_device(text: bytes) -> bool:
    major, _, minor = text.partition(b":")
    return all(2 <= len(part) <= 8 and not part.translate(None, _HEXADECIMAL) for part in (major, minor))

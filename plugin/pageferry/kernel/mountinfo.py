"""Reads the table of mounts of a mount namespace: our own, or that of a process.

Which mount is a cgroup hierarchy, or which file system a mapping lies on, is left to the readers that ask.
Source: the man page proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.kernel.files import printable, read_bytes, shown

_DEVICE = re.compile(rb"([0-9]{1,10}):([0-9]{1,10})")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. Paths and options are raw bytes, their octal escapes undone: they can hold any byte but NUL.

    `device` is "major:minor" as /proc/PID/maps writes it (hexadecimal, two digits at least), not as mountinfo does.
    `point` is where it is mounted, `top` which directory of the file system is shown there.
    """

    device: str
    top: bytes
    point: bytes
    fstype: str
    super_options: frozenset[bytes]


def read_mountinfo(root: Path = Path("/"), process: int | str = "self") -> tuple[Mount, ...]:
    """Return all mounts that a process sees, in the kernel's order: a later one hides an earlier one at the same point.

    Raises KernelError for a line that cannot be understood, Vanished and Denied.
    """
    path = root / f"proc/{process}/mountinfo"
    return tuple(_parse_line(line, path) for line in read_bytes(path).split(b"\n") if line)


def _parse_line(line: bytes, path: Path) -> Mount:
    # Optional fields end with a lone "-". White space and backslashes inside names are escaped, so that none
    # of the names can hold " - ".
    own, separator, rest = line.partition(b" - ")
    fields, others = own.split(b" "), rest.split(b" ")
    device = _DEVICE.fullmatch(fields[2]) if len(fields) >= 6 else None
    if not separator or device is None or len(others) < 3:
        raise KernelError(f"{path}: not a mount: {shown(line)}")
    return Mount(
        device=f"{int(device[1]):02x}:{int(device[2]):02x}",
        top=_unescape(fields[3]),
        point=_unescape(fields[4]),
        fstype=printable(_unescape(others[0])),
        super_options=frozenset(_unescape(option) for option in others[2].split(b",")),
    )


def _unescape(name: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), name)

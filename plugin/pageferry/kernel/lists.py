"""Reads the kernel's numbers, and reads and writes its list format, such as "0-3,8,10-11", which names CPUs and nodes.

The format is that of the man page cpuset(7), section "List format", without the strides that only the kernel
reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_MEMBERS = 65536
"""No list of CPUs or nodes is longer: the kernel's largest NR_CPUS is 8192 and MAX_NUMNODES 1024."""

MOST_NODES = 1024
"""Every node of Linux has a number below this: MAX_NUMNODES is no larger anywhere."""

_NUMBER = re.compile(rb"[0-9]{1,20}")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_QUOTED_CHARACTERS = 80


def parse_number(text: bytes) -> int:
    """Return a number as the kernel writes it: decimal digits, and less than 2^64.

    Raises ValueError with the text, quoted and shortened.
    """
    if _NUMBER.fullmatch(text) is None or (number := int(text)) >= 1 << 64:
        raise ValueError(f"not a number: {_quoted(text[: _QUOTED_CHARACTERS + 1].decode('latin-1'))}")
    return number


def parse_list(text: str | bytes) -> frozenset[int]:
    """Return the members of a kernel list; empty text, as of a node without CPUs, is the empty set.

    White space around the whole is allowed, inside it is not. Ranges may overlap, must not be reversed, and
    must not name more than `MAX_MEMBERS` members before duplicates are dropped.
    Raises ValueError with the text, quoted and shortened.
    """
    words = text.decode("latin-1") if isinstance(text, bytes) else text
    words = words.strip(" \t\n")
    members: set[int] = set()
    named = 0
    for part in words.split(",") if words else ():
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"not a list of numbers: {_quoted(words)}")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ValueError(f"reversed range {part} in the list {_quoted(words)}")
        named += last - first + 1
        if named > MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} members in the list {_quoted(words)}")
        members.update(range(first, last + 1))
    return frozenset(members)


def format_list(members: Iterable[int]) -> str:
    """Return the shortest kernel list of `members`, ascending; the empty set is the empty text.

    Raises ValueError for a negative member and for more than `MAX_MEMBERS` of them.
    """
    ordered = sorted(set(members))
    if len(ordered) > MAX_MEMBERS:
        raise ValueError(f"more than {MAX_MEMBERS} members")
    if ordered and ordered[0] < 0:
        raise ValueError(f"negative member {ordered[0]}")
    ranges: list[tuple[int, int]] = []
    for member in ordered:
        if ranges and ranges[-1][1] == member - 1:
            ranges[-1] = (ranges[-1][0], member)
        else:
            ranges.append((member, member))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "...")

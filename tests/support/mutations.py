"""Texts that were recorded, and then changed: what a fuzzer gives to whatever reads them.

PAGEFERRY_FUZZ=N has each property take N examples, other ones each time; without it, the same hundred.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pageferry.errors import PageferryError
from support.odd_files import in_time

_EXAMPLES = os.environ.get("PAGEFERRY_FUZZ", "")
fuzz = settings(
    max_examples=int(_EXAMPLES or 100),
    derandomize=not _EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LONG = 70 * 1024
_MOST_BYTES = 2 * LONG
MOST_MESSAGE = 700
"""Characters of a complaint, without the names of files in it."""

NUMBERS: tuple[bytes, ...] = (
    b"0",
    b"-1",
    b"1",
    b"+1",
    b"1_0",
    b"0x10",
    b"1.5",
    b"1e999",
    b"1023",
    b"1024",
    b"65536",
    b"2147483648",
)
NUMBERS += (b"4294967295", b"4294967296", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615")
NUMBERS += (b"18446744073709551616", b"9" * 40, b"9" * 5000, b"", b"\xd9\xa7", b"nan", b"inf", b"00", b"0-1048576")
WORDS = tuple(
    b'|x| |\t|\0|\r|\n|\xff|\xed\xa0\x80|\xe2\x80\xae|\x1b[2J|(deleted)|:|=|-|,|[|]|{|"|/|..|kB|N0=1|null|true'.split(
        b"|"
    )
)
_NUMBER = re.compile(rb"[0-9]+")
_WORD = re.compile(rb"[^\s]+")


def mutated(texts: Iterable[bytes], numbers: Sequence[bytes] = NUMBERS) -> st.SearchStrategy[bytes]:
    """Return texts, each one of these with a few things in it changed: bytes, numbers, words, lines, its end."""
    kinds = (_byte, _cut, _swapped, _repeated, _dropped, _joined, _number, _number, _number, _word, _long, _inserted)

    def change(text: bytes, seeds: list[int]) -> bytes:
        for seed in seeds:
            chance = random.Random(seed)
            text = chance.choice(kinds)(text, chance, numbers)[:_MOST_BYTES]
        return text

    return st.builds(change, st.sampled_from(sorted(set(texts))), st.lists(st.integers(0, 1 << 32), max_size=6))


def clean(read: Callable[[], Any], without: Collection[object] = (), seconds: int = 10) -> Any:
    """Return what is read, or the error that is raised: one of ours, and one line of bounded length.

    `without`: names that are not counted. Anything else that is raised is a fault, and so is a read without an end.
    """
    try:
        with in_time(seconds):
            return read()
    except PageferryError as error:
        one_line(str(error), without)
        return error


def one_line(text: str, without: Collection[object] = ()) -> None:
    """Assert that a complaint is one line of bounded length that any encoding holds."""
    assert text
    assert text.isprintable()
    for name in without:
        text = text.replace(str(name), "")
    assert len(text) <= MOST_MESSAGE


def _byte(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(text) + 1)
    return text[:at] + bytes([chance.randrange(256)]) + text[at + chance.randrange(2) :]


def _cut(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    return text[: chance.randrange(len(text) + 1)]


def _lines(text: bytes, chance: random.Random) -> tuple[list[bytes], int]:
    lines = text.splitlines(keepends=True) or [b""]
    return lines, chance.randrange(len(lines))


def _swapped(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    lines, at = _lines(text, chance)
    other = chance.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]
    return b"".join(lines)


def _repeated(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    lines, at = _lines(text, chance)
    return b"".join([*lines[:at], lines[at] * chance.choice((2, 3, 20)), *lines[at + 1 :]])


def _dropped(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    lines, at = _lines(text, chance)
    return b"".join(lines[:at] + lines[at + 1 :])


def _joined(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    lines, at = _lines(text, chance)
    lines[at] = lines[at].rstrip(b"\n")
    return b"".join(lines)


def _inserted(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    lines, at = _lines(text, chance)
    return b"".join([*lines[:at], chance.choice(WORDS), b"\n", *lines[at:]])


def _number(text: bytes, chance: random.Random, numbers: Sequence[bytes]) -> bytes:
    return _replaced(text, chance, _NUMBER, chance.choice(numbers))


def _word(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    return _replaced(text, chance, _WORD, chance.choice(WORDS))


def _long(text: bytes, chance: random.Random, _numbers: Sequence[bytes]) -> bytes:
    if chance.randrange(4):  # the others are to be seen, too
        return text
    return _replaced(text, chance, _WORD, chance.choice((b"x", b"1", b"\xff", b"\n", b" ", b"[")) * LONG)


def _replaced(text: bytes, chance: random.Random, pattern: re.Pattern[bytes], by: bytes) -> bytes:
    found = list(pattern.finditer(text))
    if not found:
        return text + by
    match = chance.choice(found)
    return text[: match.start()] + by + text[match.end() :]

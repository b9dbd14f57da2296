"""Things that stand where a file is expected, and a limit for what might wait for them for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

KINDS = ("pipe", "device", "directory")


def make_odd(path: Path, kind: str) -> Path:
    """Make something of a kind at a path, and return the path: a pipe that nobody writes to, a device without end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


class LateError(BaseException):
    """What is in `in_time` took too long; nobody is to catch it on the way."""


@contextmanager
def in_time(seconds: int = 10) -> Iterator[None]:
    """Raise LateError in what takes longer than so many seconds; in the main thread alone."""

    def late(number: int, frame: FrameType | None) -> None:
        raise LateError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

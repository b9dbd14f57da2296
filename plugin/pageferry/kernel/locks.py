"""Locks that are files, one for each job, and that are removed with it: who waits for one never gets a removed one."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


def taken(path: Path, *, wait: bool = False) -> int | None:
    """Return a lock that we have, to be closed: of the file that has the name, which others may remove.

    None if another has it; after a `wait`, if it was removed meanwhile. Raises OSError.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    ours = False
    try:
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            ours = os.fstat(lock).st_ino == path.stat().st_ino
    finally:
        if not ours:
            os.close(lock)
    return lock if ours else None


def remove(path: Path) -> None:
    """Remove a lock that nobody has, if that can be."""
    with suppress(OSError):
        if path.exists() and (lock := taken(path)) is not None:
            path.unlink(missing_ok=True)
            os.close(lock)

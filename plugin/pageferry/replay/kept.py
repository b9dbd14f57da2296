"""The snapshots that the agent's errands keep at debug level, so that a plan can be looked at afterwards.

A few files beside the history, the oldest of which give way to new ones. Nothing here is a condition for a move: what
cannot be written is said in the log, and that is all.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pageferry.ferry import Inputs

MOST_FILES = 32
MOST_BYTES = 256 << 20
"""Of all files. One alone may have a quarter of that."""

_log = logging.getLogger(__name__)


@contextmanager
def recording(folder: Path | None, job: int | str) -> Iterator[Callable[[Inputs], None]]:
    """Yield what is to be told what a plan is made from; in the end, however that comes, it is kept. None: nowhere.

    The job's pages come first: it is written when the move is over, or has failed.
    """
    if folder is None:
        yield lambda _inputs: None
        return
    told: list[Inputs] = []
    try:
        yield told.append
    finally:
        for inputs in told:
            keep(folder, job, inputs)


def keep(folder: Path, job: int | str, inputs: Inputs) -> None:
    """Write a snapshot of a job's into the folder, and say which file it is. Raises nothing."""
    from pageferry.replay.write import Recorded, lines, save  # noqa: PLC0415 - no errand needs it at other levels

    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = folder / f"{began}-job-{re.sub('[^A-Za-z0-9._-]', '_', str(job))[:64]}-{os.getpid()}.jsonl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        save(path, lines(Recorded(f"job {job}", inputs), MOST_BYTES // 4))
        _remove_oldest(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the job's memory has moved
        _log.debug("job %s: no snapshot: %s", job, error)
    else:
        _log.debug("job %s: snapshot: %s", job, path)


def _remove_oldest(folder: Path) -> None:
    """Keep the newest files, no more than the limits say; what an errand that was killed left half written is one."""
    found = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            found.append((status.st_mtime_ns, entry.path, status.st_size))
    kept = 0
    for number, (_, name, size) in enumerate(sorted(found, reverse=True)):
        kept += size
        if number >= MOST_FILES or kept > MOST_BYTES:
            with suppress(FileNotFoundError):
                Path(name).unlink()

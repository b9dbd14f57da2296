"""A SQLite file that never fails its user: what cannot be done is said, not raised.

A damaged file is set aside and a new one begun; a file that was removed or replaced is opened anew; a full, read-only
or busy one is tried again by the next call. A file of an earlier version is brought up to date where it is. The tables
and what is in them are `store`'s.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

from pageferry.kernel.files import printable

_log = logging.getLogger(__name__)

_DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB})
"""The file is not what we wrote. SQLITE_ERROR: it is a database, and its tables are not ours."""

_BUSY_SECONDS = 0.1
_CACHE = -512  # KiB; the agent's memory is counted
_KEPT_ASIDE = 3
_COMPANIONS = ("-wal", "-shm")


class Database:
    """The file at `path`, opened when first needed; for one thread.

    `steps`: the i-th has the statements that bring tables of version i (0: a new file) to the next; the version is kept
    as the file's user_version. Do not use it in a forked child, and end that with os._exit, so that nothing is closed
    there (https://sqlite.org/howtocorrupt.html, section 2.7).
    """

    def __init__(self, path: Path, steps: Sequence[Sequence[str]]) -> None:
        self.path = path
        self._steps = steps
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def do(self, work: Callable[[sqlite3.Connection], None]) -> str | None:
        """Do `work` in one transaction. Return None, or in one line why it was not done: then none of it was.

        `work` may be called twice, the second time with a new file, and may raise ValueError, TypeError, OverflowError.
        """
        fault = ""
        for _ in range(2):
            try:
                connection = self._opened()
                with connection:  # a transaction
                    work(connection)
            except sqlite3.Error as error:
                fault, code = printable(str(error)), getattr(error, "sqlite_errorcode", 0) & 0xFF
                self.close()
                if code not in _DAMAGE or not self._set_aside(fault):
                    return fault
            except (OSError, ValueError, TypeError, OverflowError) as error:
                return printable(str(error))
            else:
                return None
        return fault

    def close(self) -> None:
        """Close the file, which writes its log back; the next call opens it again."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._file != _identity(self.path):
            self.close()
        if self._connection is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))  # SQLite's own files follow
            connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS)
            connection.text_factory = _text
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._file = connection, _identity(self.path)
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Set the journal up, and bring the tables to our version, in one transaction.

        A commit is in the page cache, which outlives us if we are killed; the disk is never waited for, since jobs may
        saturate it. A loss of power may cost the file, which is then set aside.
        """
        for setting in ("journal_mode = WAL", "synchronous = OFF", f"cache_size = {_CACHE}"):
            connection.execute(f"PRAGMA {setting}").close()
        with closing(connection.execute("PRAGMA user_version")) as cursor:
            (version,) = cursor.fetchone()
        ours = len(self._steps)
        if version == ours:
            return
        if not 0 <= version < ours:
            error = sqlite3.DatabaseError(f"tables of version {version}, expected {ours}")
            error.sqlite_errorcode = sqlite3.SQLITE_FORMAT
            raise error
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            for statement in (*chain(*self._steps[version:]), f"PRAGMA user_version = {ours}"):
                connection.execute(statement)

    def _set_aside(self, why: str) -> bool:
        """Rename the file, with the log that belongs to it. False: it cannot be."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
        try:
            self.path.rename(aside)
            for companion in _COMPANIONS:
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{companion}").rename(f"{aside}{companion}")
            for old in sorted(self.path.parent.glob(f"{self.path.name}.damaged-*[0-9]"))[:-_KEPT_ASIDE]:
                for companion in ("", *_COMPANIONS):
                    Path(f"{old}{companion}").unlink(missing_ok=True)
        except OSError:
            return False
        _log.error("%s: %s; set aside as %s", self.path, why, aside.name)
        return True


def _text(raw: bytes) -> str:
    """Return text of the file, which need not be UTF-8 by now: that is no reason to show nothing at all."""
    return raw.decode("utf-8", "replace")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino

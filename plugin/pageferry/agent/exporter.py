"""When and where metrics go: to a file for the textfile collector, soon after one has changed, and to who asks by HTTP.

An agent with nothing to do does nothing for its metrics either. A folder or an address that cannot be used costs the
metrics and nothing else: it is said in the log, and by `pageferry doctor`, which asks for `faults`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pageferry import config
from pageferry.agent.metrics import Metrics
from pageferry.agent.metrics_http import Listener

COALESCE_SECONDS = 1.0
"""After a change it is waited this long for others, and for the job that it is about, before the file is written."""

FILE = "pageferry.prom"

_log = logging.getLogger(__name__)


class Exporter:
    """The metrics of an agent on their way out. For one thread; nothing here waits but for the folder's own disk."""

    def __init__(
        self, metrics: Metrics, settings: config.Metrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._folder = settings.folder()
        self._at: float | None = None
        self._written: object = None
        self._file_fault = ""
        self._listen_fault = ""
        self._listener: Listener | None = None
        if settings.listen:
            try:
                self._listener = Listener(settings.listen, metrics.text)
            except OSError as error:
                self._listen_fault = f"metrics.listen: {settings.listen}: {error.strerror}"
                _log.error("%s", self._listen_fault)

    def faults(self) -> list[str]:
        """Return why the file cannot be written, or the address not be listened at, a line each."""
        return [fault for fault in (self._file_fault, self._listen_fault) if fault]

    def descriptors(self) -> dict[int, Callable[[], None]]:
        """Return what is to be waited for, and what to do when it is readable."""
        return {} if self._listener is None else {self._listener.fileno(): self._listener.serve}

    def due(self) -> float | None:
        """Do what its time has come for; return when to come again, None: not before something happens."""
        times = []
        if self._listener is not None:
            self._listener.expire()
            times.append(self._listener.deadline())
        if self._folder is not None:
            if self._at is None and self._metrics.state() != self._written:
                self._at = self._clock() + COALESCE_SECONDS
            elif self._at is not None and self._clock() >= self._at:
                self._at = None
                self._write(self._folder)
            times.append(self._at)
        return min((at for at in times if at is not None), default=None)

    def give_way(self, settings: config.Metrics) -> None:
        """Listen no more, for another exporter with these settings; a file that nobody will write again is removed."""
        if self._listener is not None:
            self._listener.close()
        if self._folder is not None and self._folder != settings.folder():
            with suppress(OSError):
                (self._folder / FILE).unlink()

    def close(self) -> None:
        """Listen no more, and leave a last file that says that the agent was stopped."""
        if self._listener is not None:
            self._listener.close()
        if self._folder is not None:
            self._write(self._folder, up=False)

    def _write(self, folder: Path, *, up: bool = True) -> None:
        self._written = self._metrics.state()
        try:
            replace(folder / FILE, self._metrics.text(up))
        except OSError as error:
            fault = f"metrics.textfile: {error.filename or folder / FILE}: {error.strerror}"
            if fault != self._file_fault:
                _log.error("%s; there are no metrics until this is mended", fault)
            self._file_fault = fault
        else:
            if self._file_fault:
                _log.warning("%s: written again", folder / FILE)
            self._file_fault = ""


def replace(path: Path, text: str) -> None:
    """Put a text in a file's place, whole at each moment and for everyone to read. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")  # the collector reads what ends in .prom
    with suppress(FileNotFoundError):
        fresh.unlink()
    try:
        # A link that somebody put there in between is not followed.
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask
            file.write(text)
        os.replace(fresh, path)  # noqa: PTH105
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise

"""Reads of many things of which some may never answer: in threads, so that a read that hangs holds up no other.

A thread of a process can hold its mmap_lock for ever, because it waits for a dead file system. Reads of the process's
maps, pagemap and environ then wait as well. Such a wait ends by SIGKILL (mmap_read_lock_killable()), hence when our own
process ends: threads will do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pageferry.errors import KernelError

T = TypeVar("T")
V = TypeVar("V")

SILENT_SECONDS = 2.0
"""A read that takes longer hangs, and so do all others if none of them has ended for so long.

Time in which this process did not run (a host that is suspended, a virtual machine that gets no CPU) does not count.
"""

_SLICE_SECONDS = 0.1
"""So long is waited at a time, at most: in what a wait takes beyond it, this process did not run."""

_PATIENCE = 0.1
"""So long a thread is waited for before another goes on with the rest; half as long after each that hangs."""

_LEAST_PATIENCE = 0.002
_MOST_THREADS = 256


@dataclass(frozen=True, slots=True)
class Answers(Generic[T, V]):
    """What was read of each item that answered, and the items that did not, both in the order of the items."""

    values: dict[T, V]
    silent: tuple[T, ...]


def each(items: Iterable[T], read: Callable[[T], V]) -> Answers[T, V]:
    """Read items, each once, one after another as long as they answer; raise what the first read raised that did.

    Those that do not answer cost 2 s together, and 2 ms each. A read whose item is silent may go on in its thread.
    Raises KernelError where there can be no thread.
    """
    return _Round(list(dict.fromkeys(items)), read).answers()


@dataclass(slots=True)
class _Clock:
    """Seconds that were waited for answers: of each wait no more than a slice."""

    before: float = 0.0
    since: float | None = None

    def now(self) -> float:
        if self.since is None:
            return self.before
        return self.before + min(_SLICE_SECONDS, time.monotonic() - self.since)

    @contextmanager
    def runs(self) -> Iterator[None]:
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.before, self.since = self.now(), None


@dataclass(eq=False, slots=True)
class _Round(Generic[T, V]):
    """Threads that take items from one queue; all that they share is behind the lock of `changed`."""

    items: list[T]
    read: Callable[[T], V]
    waiting: deque[T] = field(default_factory=deque)
    clock: _Clock = field(default_factory=_Clock)
    reading: dict[T, float] = field(default_factory=dict)  # since when
    values: dict[T, V] = field(default_factory=dict)
    errors: dict[T, BaseException] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    last_answer: float = 0.0

    def answers(self) -> Answers[T, V]:
        self.waiting.extend(self.items)
        try:
            self._wait()
        finally:
            with self.changed:
                self.waiting.clear()
                idle = not self.reading
                values, errors = dict(self.values), dict(self.errors)
        if idle:  # nobody is left behind, as who forks afterwards wants it
            for thread in self.threads:
                thread.join()
        for item in self.items:
            if item in errors:
                raise errors[item]
        answered = {item: values[item] for item in self.items if item in values}
        return Answers(answered, tuple(item for item in self.items if item not in values))

    def _wait(self) -> None:
        """Wait until all have answered, or those that have not have had their time."""
        patience = _PATIENCE
        with self.changed:
            while self.waiting or self.reading:
                now = self.clock.now()
                since = max(self.reading.values(), default=-_PATIENCE)  # the thread that is last to hang, if it does
                if self.waiting and now - since >= patience and len(self.threads) < _MOST_THREADS:
                    patience = max(patience / 2, _LEAST_PATIENCE) if self.threads else patience
                    self._start()
                    continue
                give_up = (since if not self.waiting else self.last_answer) + SILENT_SECONDS
                if now >= give_up:
                    return
                with self.clock.runs():
                    self.changed.wait(min(patience if self.waiting else _SLICE_SECONDS, give_up - now))

    def _start(self) -> None:
        """Have a fresh thread take the next item; called with the lock."""
        item = self.waiting.popleft()
        self.reading[item] = self.clock.now()
        thread = threading.Thread(target=self._work, args=(item,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise KernelError(f"no thread to read with: {error}") from error
        self.threads.append(thread)

    def _work(self, item: T) -> None:
        """Read this item, and then others as long as there are some."""
        while True:
            try:
                value = self.read(item)
            except BaseException as error:  # noqa: BLE001 - raised by who asked
                with self.changed:
                    self.errors[item] = error
            else:
                with self.changed:
                    self.values[item] = value
            with self.changed:
                del self.reading[item]
                self.last_answer = self.clock.now()
                if not self.waiting:
                    self.changed.notify()
                    return
                item = self.waiting.popleft()
                self.reading[item] = self.last_answer

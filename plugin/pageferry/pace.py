"""Keeps a move below a rate: every call is paid for in time before it is made, by all workers out of one purse.

How much one call takes is the mover's to decide, and whether to go on at all; here is only the waiting.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

from pageferry.errors import UsageError

CALL_SECONDS = 0.25
"""One call is to take no more than is paid for in this time, so that the rate holds over short times too."""

_SLICE_SECONDS = 0.05
"""How often a wait looks whether the move is to stop."""


class Pace:
    """A rate that workers keep together; what nobody used cannot be saved up.

    `clock` returns seconds; `pause` waits for so many, or until the process of a pidfd has ended, which it says.
    """

    def __init__(
        self,
        bytes_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float, int | None], bool] | None = None,
    ) -> None:
        """Begin with an empty purse. Raises UsageError for a rate that lets nothing pass."""
        if not bytes_per_second > 0:  # NaN is not either
            raise UsageError(f"bytes per second: {bytes_per_second:g} would never move anything")
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._pause = pause or _pause
        self._lock = threading.Lock()
        self._paid_until = clock()

    def call_bytes(self, most: int) -> int:
        """Return how many bytes one call is to take at most, and never more than `most`."""
        return int(min(most, self.bytes_per_second * CALL_SECONDS))

    def pay(self, count: int, stopped: Callable[[], bool], pidfd: int | None = None) -> None:
        """Wait until so many bytes are paid for; sooner if `stopped` says so, or if the process of `pidfd` ends."""
        with self._lock:
            self._paid_until = turn = max(self._paid_until, self._clock()) + count / self.bytes_per_second
        while (left := turn - self._clock()) > 0 and not stopped():
            if self._pause(min(left, _SLICE_SECONDS), pidfd):
                return


def _pause(seconds: float, pidfd: int | None) -> bool:
    poll = select.poll()
    if pidfd is not None and pidfd >= 0:
        poll.register(pidfd, select.POLLIN)  # readable once every thread has ended: the man page pidfd_open(2)
    return bool(poll.poll(max(1.0, seconds * 1000)))

"""The errands that are on their way, how long each may take, and what is to follow when they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pageferry.agent import errand
from pageferry.agent.chores import Chore
from pageferry.agent.errand import Errand, Result

Ended = Callable[[Result], None]
Said = Callable[[Mapping[str, Any]], None]

ASK_SECONDS = 60.0
"""Slurm's commands have limits of their own, which this is beyond: a command that cannot be killed is left behind."""

MOVE_SECONDS = 3600.0
REAP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Sent:
    errand: Errand
    said: Said
    ended: Ended
    job: int
    kill_at: float


class Errands:
    """Children at work. The loop waits for `descriptors`, has what is readable collected, and calls `due`."""

    def __init__(self) -> None:
        self._on_their_way: dict[int, _Sent] = {}
        self._ended: list[Errand] = []

    def send(
        self, chore: Chore, ended: Ended, said: Said = lambda _message: None, *, job: int = 0, seconds: float
    ) -> Errand | None:
        """Have a chore done, for a job or (0) for several, in so many seconds at most; `ended` gets its result.

        At once, if there can be no further process: then None is returned.
        """
        try:
            sent = errand.begin(chore)
        except OSError as error:
            ended(Result(None, f"no process for an errand: {error.strerror}", 4))
            return None
        self._on_their_way[sent.fd] = _Sent(sent, said, ended, job, time.monotonic() + seconds)
        return sent

    def descriptors(self) -> list[int]:
        """Return what is readable when an errand has something to say."""
        return list(self._on_their_way)

    def job(self, descriptor: int) -> int:
        """Return the job that an errand was sent for, 0 for several."""
        return self._on_their_way[descriptor].job

    def collect(self, descriptor: int) -> None:
        """Take what an errand has said, and what follows from its end."""
        sent = self._on_their_way[descriptor]
        for message in sent.errand.read():
            sent.said(message)
        if sent.errand.result is not None:
            del self._on_their_way[descriptor]
            if not sent.errand.reap():
                self._ended.append(sent.errand)
            sent.ended(sent.errand.result)

    def due(self) -> float | None:
        """End what has taken too long; return when to come again (monotonic), None: not before something happens."""
        now = time.monotonic()
        self._ended = [ended for ended in self._ended if not ended.reap()]
        for descriptor, sent in list(self._on_their_way.items()):
            if now >= sent.kill_at:
                del self._on_their_way[descriptor]
                sent.errand.kill("the errand took too long")
                self._ended.append(sent.errand)
                if sent.errand.result is not None:
                    sent.ended(sent.errand.result)
        times = [sent.kill_at for sent in self._on_their_way.values()]
        return min([*times, *([now + REAP_SECONDS] if self._ended else [])], default=None)

    def close(self) -> None:
        """End them all, without waiting; what they have begun in the kernel is finished there."""
        for sent in self._on_their_way.values():
            sent.errand.kill()
            sent.errand.reap()
        self._on_their_way.clear()

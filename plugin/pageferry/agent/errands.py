"""The errands that are on their way, and what is to follow when they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pageferry.agent import errand
from pageferry.agent.chores import Chore
from pageferry.agent.errand import Errand, Result

Ended = Callable[[Result], None]
Said = Callable[[Mapping[str, Any]], None]


class Errands:
    """Children at work. The loop waits for `descriptors`, and has what is readable collected."""

    def __init__(self) -> None:
        self._on_their_way: dict[int, tuple[Errand, Said, Ended, int]] = {}

    def send(self, chore: Chore, ended: Ended, said: Said = lambda _message: None, *, job: int = 0) -> None:
        """Have a chore done, for a job or (0) for several; `ended` gets its result.

        At once, if there can be no further process.
        """
        try:
            sent = errand.begin(chore)
        except OSError as error:
            ended(Result(None, f"no process for an errand: {error.strerror}", 4))
        else:
            self._on_their_way[sent.fd] = (sent, said, ended, job)

    def descriptors(self) -> list[int]:
        """Return what is readable when an errand has something to say."""
        return list(self._on_their_way)

    def job(self, descriptor: int) -> int:
        """Return the job that an errand was sent for, 0 for several."""
        return self._on_their_way[descriptor][-1]

    def collect(self, descriptor: int) -> None:
        """Take what an errand has said, and what follows from its end."""
        sent, said, ended, _ = self._on_their_way[descriptor]
        for message in sent.read():
            said(message)
        if sent.result is not None:
            del self._on_their_way[descriptor]
            ended(sent.result)

    def close(self) -> None:
        """End them all; what they have begun in the kernel is finished there."""
        for sent, *_ in self._on_their_way.values():
            sent.kill()
        self._on_their_way.clear()

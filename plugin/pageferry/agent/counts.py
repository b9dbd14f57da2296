"""What an agent counts, since it started: the one place for it. The metrics and `status` are made of it.

Who counts what is `chronicle`'s and, for holds, `tending`'s and `pbs`'; nothing here is ever forgotten or written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pageferry.exposition import Histogram

STOPPED_SECONDS = (0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 3600)
"""Bounds of the histogram: 0 for who did not wait, 60 is max_hold's default, 3600 the most that it can be."""


class Release(Enum):
    """Why a job was let go; the words are the log's."""

    ARRIVED = "its memory is there"
    MAX_HOLD = "max_hold is used up"
    GUARDIAN = "the guardian released it"
    RECOVERED = "Slurm lets it run"
    """It was held by an agent before us."""

    POLICY = "its rule does not move it"
    """Its rule was not known when it was held."""

    ENDED = "the job has ended"
    FAULT = "a fault of our own"
    STOPPED = "the agent stops"


class Counts:
    """Numbers that only grow, and what of memory was last seen far away. `changes` grows with each change."""

    def __init__(self) -> None:
        self.changes = 0
        self.events: Counter[str] = Counter()
        self.migrations: Counter[tuple[str, str]] = Counter()
        """By event and outcome."""
        self.pages: Counter[str] = Counter()
        """By bucket."""
        self.moved_bytes = 0
        self.stopped = Histogram(STOPPED_SECONDS)
        self.holds = 0
        self.releases: Counter[Release] = Counter()
        self._far: dict[str, Mapping[int, int]] = {}

    def happened(self, kind: str) -> None:
        """Count an event."""
        self.events[kind] += 1
        self.changes += 1

    def migrated(self, event: str, word: str, outcome: Mapping[str, Any], seconds_stopped: float) -> None:
        """Count a migration: its outcome in a word, and as `report.outcome_json` has it ({}: nothing was asked)."""
        self.migrations[event, word] += 1
        if not outcome.get("observed"):
            self.pages.update(outcome.get("pages", {}))
        self.moved_bytes += outcome.get("moved_bytes", 0)
        self.stopped.observe(seconds_stopped)
        self.changes += 1

    def held(self) -> None:
        """Count a hold that was set, or taken over from an agent before us."""
        self.holds += 1
        self.changes += 1

    def released(self, cause: Release) -> None:
        """Count a hold that is no more."""
        self.releases[cause] += 1
        self.changes += 1

    def seen_far(self, scheduler: str, far: Mapping[int, int]) -> None:
        """Take note of how many bytes of a scheduler's jobs are on each node, away from their CPUs."""
        self._far[scheduler] = dict(far)
        self.changes += 1

    def nothing_far(self, scheduler: str) -> None:
        """Take note that a scheduler has no job left here."""
        self.seen_far(scheduler, dict.fromkeys(self._far.get(scheduler, {}), 0))

    def far(self) -> dict[int, int]:
        """Return the bytes on each node that were away from their CPUs when last looked at; none: not yet."""
        found: dict[int, int] = {}
        for nodes in self._far.values():
            for node, count in nodes.items():
                found[node] = found.get(node, 0) + count
        return dict(sorted(found.items()))

    def as_dict(self) -> dict[str, int]:
        """Return events by kind, and migrations by outcome, for a program."""
        outcomes: Counter[str] = Counter()
        for (_, outcome), count in self.migrations.items():
            outcomes[f"migrations {outcome}"] += count
        return {**self.events, **outcomes}

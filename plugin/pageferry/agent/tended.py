"""A job under the agent's care, as values: how it stands, and what is being done about its memory.

What follows from them is `tending`'s.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from pageferry import parking
from pageferry.agent.counts import Release
from pageferry.agent.errand import Errand
from pageferry.comment import Wish
from pageferry.policy import Facts, Policy
from pageferry.report import outcome_word

Reply = Callable[[Mapping[str, Any]], None]


class Phase(Enum):
    """How a job stands."""

    RUNS = "runs"
    """Nobody holds it. Slurm may have suspended it, if we could not hold it as well."""

    HELD = "held"
    """Slurm has it suspended, and we hold it as well."""

    WAITS = "waits"
    """Slurm lets it run; we hold it until its pages have arrived, at most `max_hold_seconds`."""


class Stage(Enum):
    """How far a migration is."""

    ASKS = "asks Slurm"
    COPIES = "moves while it runs"
    """It is held for the rest, when that is done."""

    READY = "ready"
    """It waits for the job to stand still, if the job is held."""

    MOVES = "moves"


class Cause(Enum):
    """Why a job's memory is looked at."""

    SUSPEND = "suspend"
    PARK = parking.PARK
    """It is suspended, and its rule has its memory on other nodes meanwhile."""

    UNPARK = parking.UNPARK
    """It was parked, and goes on."""

    RESUME = "resume"
    """It runs again: a request may have been made while it was suspended."""

    BEATEN = "resume-beat-hold"
    CPUSET = "cpuset"
    DISPLACED = "displaced"
    """Another job was given its CPUs, and it got that one's."""

    REQUEST = "request"
    """Over the socket, or a comment that says `now`."""

    RECOVERED = "recovered"
    SPILL = "spill"


@dataclass(slots=True)
class Stop:
    """One time that a job stands still for us; its moments by name, in seconds since 1970.

    `told`: the migrations that the history has already, by ID, with their moments: later ones are added at the end.
    """

    moments: dict[str, float]
    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)


@dataclass(slots=True)
class Migration:
    """One time that a job's memory is brought to where it belongs.

    `text`: the request that `wish` is from, for all hosts; `exit_code`: that of `error`. `policy`: what holds for it,
    once that is known. `memory_only`: no CPUs are given for it; `by_owner`: the job's user asks for it. `late`: the
    time for which the job may be held was used up meanwhile; `errand`: what moves. `moments`: its own, as `Stop` has
    them; `stop`: the one that it is done in, if any.
    """

    cause: Cause
    stage: Stage
    wish: Wish | None = None
    text: str = ""
    reply: Reply | None = None
    nodes: tuple[int, ...] = ()
    sources: tuple[int, ...] | None = None
    policy: Policy = field(default_factory=Policy)
    memory_only: bool = False
    by_owner: bool = False
    late: bool = False
    errand: Errand | None = None
    outcome: Mapping[str, Any] | None = None
    copied: Mapping[str, Any] | None = None
    """What became of its memory before it was held, as an outcome."""

    error: str | None = None
    exit_code: int = 4
    began: float = field(default_factory=time.time)
    began_ns: int = field(default_factory=time.monotonic_ns)
    seconds_stopped: float = 0.0
    progress: tuple[int, int] | None = None
    """Bytes that are dealt with, of how many; None before the first word of it."""

    moments: dict[str, float] = field(default_factory=dict)
    stop: Stop | None = None

    def reached(self, moment: str) -> None:
        """Take note that this is the time of a moment."""
        self.moments[moment] = time.time()

    def as_move(self) -> dict[str, Any]:
        """Return how far it is, as plain data."""
        return {
            "event": self.cause.value,
            "nodes": self.nodes,
            "seconds": round((time.monotonic_ns() - self.began_ns) / 1e9, 3),
            "done_bytes": self.progress[0] if self.progress else None,
            "of_bytes": self.progress[1] if self.progress else None,
        }

    def outcome_word(self) -> str:
        """Return in one word what became of it."""
        return outcome_word(self.outcome, self.error)


@dataclass(slots=True)
class Tended:
    """A job of this host, which Slurm knows as `hosts`. Times are of the monotonic clock.

    `facts`: what Slurm last said of it, for the site's rules; None: nothing as yet.
    `served`: the request that was served last, as text; `answered_at`: since when its outcome is in the comment, so
    that the same text, if it is read later than that, has been typed again.
    """

    job: int
    phase: Phase = Phase.RUNS
    migration: Migration | None = None
    queue: list[Migration] = field(default_factory=list)
    stop: Stop | None = None
    hosts: tuple[str, ...] = ()
    name: str = ""
    uid: int = -1
    facts: Facts | None = None
    cpu_nodes: tuple[int, ...] = ()
    placed_for: tuple[int, ...] = ()
    """The nodes of its CPUs when its memory was last placed: a request may want it on others than these."""

    served: str = ""
    answered_at: float = math.inf
    groups: tuple[Path, ...] = ()
    """What Slurm freezes of it, as of the last event that may have changed that."""

    unheld: bool = False
    thawed_at: float = 0.0
    deadline: float | None = None
    unreleased: Release | None = None
    """Why it is to be let go, while the kernel does not let us."""

    held_at: float = 0.0
    look_at: float = 0.0
    reassigned_at: float | None = None
    writes: Counter[Path] = field(default_factory=Counter)
    """Of freezers, by group, that we saw only when the group ran again."""

    def know(self, answer: Mapping[str, Any]) -> None:
        """Keep what Slurm says of the job (`chores.ask`)."""
        self.facts = Facts.from_plain(answer["facts"])
        self.hosts, self.name = tuple(answer["hosts"]), answer.get("name", "")
        self.uid = self.uid if answer["uid"] is None else answer["uid"]

    def hurry(self) -> None:
        """It stands still: what is being watched of it need not be watched longer."""
        if self.migration is not None and self.migration.errand is not None:
            self.migration.errand.hurry()

    def queued(self, cause: Cause) -> bool:
        """Say whether a migration for this cause waits already: one will do for both."""
        return any(waiting.cause is cause and waiting.reply is None for waiting in self.queue)

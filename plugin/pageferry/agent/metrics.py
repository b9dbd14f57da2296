"""What the agent tells Prometheus: its counts, and how things stand, as families.

The numbers are `counts`'; when and where they are written is `exporter`'s. All series that an alert may ask for are
there from the start: the first failure of a host is then an increase, and not a series that was not there before.
There are no job IDs: what became of one job is the history's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from itertools import product

from pageferry import __version__
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.counts import Release
from pageferry.agent.tended import Cause
from pageferry.exposition import Family, Kind, Sample, text_of
from pageferry.pbs.event import Kind as PbsKind
from pageferry.report import OUTCOMES
from pageferry_planner.model import Bucket

EVENTS = (
    *(cause.value for cause in Cause),
    *(kind.value for kind in (PbsKind.POSTSUSPEND, PbsKind.PRERESUME, PbsKind.RESIZE, PbsKind.PERIODIC)),
)


class Metrics:
    """The metrics of an agent; `held`: how many jobs are held now, by how they stand."""

    def __init__(self, chronicle: Chronicle, held: Callable[[], Mapping[str, int]]) -> None:
        self._chronicle = chronicle
        self._held = held
        self._started = time.time()

    def state(self) -> object:
        """Return what differs whenever a metric does: cheap enough to be asked for at every turn of the loop."""
        return self._chronicle.counts.changes, self._chronicle.lost(), tuple(self._held().values())

    def text(self, up: bool = True) -> str:
        """Return all of them in Prometheus' text format."""
        return text_of(self.families(up))

    def families(self, up: bool = True) -> tuple[Family, ...]:
        """Return all metrics; `up`: the agent is to go on."""
        counts = self._chronicle.counts
        return (
            _one(
                "up",
                Kind.GAUGE,
                "1 while the agent runs, 0 once it was stopped; it cannot tell that it was killed.",
                int(up),
            ),
            _one("start_time_seconds", Kind.GAUGE, "When the agent started, in seconds since 1970.", self._started),
            _by(
                "build_info",
                Kind.GAUGE,
                "1; the labels say what runs.",
                ("version", "python"),
                {(__version__, sys.version.split()[0]): 1},
            ),
            _by(
                "migrations_total",
                Kind.COUNTER,
                "How often a job's memory was to be moved, by why and by what became of it.",
                ("event", "outcome"),
                {key: counts.migrations[key] for key in (*product(EVENTS, OUTCOMES), *counts.migrations)},
            ),
            _by(
                "pages_total",
                Kind.COUNTER,
                "Base pages of jobs whose memory was to be moved, by what became of them.",
                ("bucket",),
                {(bucket.value,): counts.pages[bucket.value] for bucket in Bucket},
            ),
            _one("moved_bytes_total", Kind.COUNTER, "Memory that was moved.", counts.moved_bytes),
            Family(
                "pageferry_stopped_seconds",
                Kind.HISTOGRAM,
                "How long jobs stood still for a migration after their resume, 0 for those that did not.",
                counts.stopped.samples(),
            ),
            _one("holds_total", Kind.COUNTER, "Holds of jobs that were set, or taken over.", counts.holds),
            _by(
                "hold_releases_total",
                Kind.COUNTER,
                "Holds that are no more, by why.",
                ("cause",),
                {(cause.name.lower(),): counts.releases[cause] for cause in Release},
            ),
            _by(
                "held_jobs",
                Kind.GAUGE,
                "Jobs held now: suspended by the scheduler too (held), or let go by it and waiting for memory (waits).",
                ("phase",),
                {(phase,): number for phase, number in self._held().items()},
            ),
            _one(
                "beaten_resumes_total",
                Kind.COUNTER,
                "Jobs that were resumed before they could be held, and served while they ran.",
                counts.events["beaten"],
            ),
            _by(
                "spilled_bytes",
                Kind.GAUGE,
                "Memory away from its job's CPUs, by where it is; as seen after a job's end, before any came home.",
                ("node",),
                {(str(node),): far for node, far in counts.far().items()},
            ),
            _one(
                "history_lost_records_total",
                Kind.COUNTER,
                "Records that could not be written to the history.",
                self._chronicle.lost(),
            ),
            _by(
                "events_total",
                Kind.COUNTER,
                "Events in the agent's log, by kind.",
                ("kind",),
                {(kind,): count for kind, count in sorted(counts.events.items())},
            ),
        )


def _one(name: str, kind: Kind, help_text: str, value: float) -> Family:
    return Family(f"pageferry_{name}", kind, help_text, (Sample(value),))


def _by(
    name: str, kind: Kind, help_text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Family:
    samples = (Sample(value, dict(zip(labels, key, strict=True))) for key, value in values.items())
    return Family(f"pageferry_{name}", kind, help_text, tuple(samples))

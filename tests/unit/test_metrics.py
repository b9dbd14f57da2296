"""What must hold of the agent's metrics: they say what was counted, alerts find their series, and nothing grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pageferry.agent.chronicle import Chronicle
from pageferry.agent.counts import Release
from pageferry.agent.metrics import Metrics
from pageferry.agent.tended import Cause, Migration, Stage, Tended
from pageferry.exposition import Kind
from pageferry.history.store import Store
from pageferry.report import OUTCOMES, outcome_word
from pageferry_planner.model import Bucket

HELD = {"held": 0, "waits": 0}
OUTCOME: dict[str, Any] = {
    "complete": False,
    "refused": False,
    "moved_bytes": 8192,
    "pages": {"moved": 2, "pinned": 1, "in_place": 5},
    "requested_pages": 3,
    "calls": 1,
    "excluded": {},
}


@pytest.fixture
def chronicle(tmp_path: Path) -> Chronicle:
    return Chronicle(Store(tmp_path / "history.sqlite3"))


def series(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return each number by its name and its labels' values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def ended(cause: Cause, seconds_stopped: float = 0.0, job: int = 7, **what: Any) -> tuple[Tended, Migration]:
    migration = Migration(cause, Stage.MOVES, nodes=(1,), **what)
    migration.seconds_stopped = seconds_stopped
    return Tended(job), migration


def test_what_became_of_migrations_is_told_by_event_and_outcome(chronicle: Chronicle) -> None:
    chronicle.ended(*ended(Cause.SUSPEND, 0.02, outcome=OUTCOME))
    chronicle.ended(*ended(Cause.SUSPEND, outcome=OUTCOME))
    chronicle.ended(*ended(Cause.REQUEST, 61.0, error="no such node: 9"))
    found = series(Metrics(chronicle, lambda: HELD))
    assert found["pageferry_migrations_total", "suspend", "partial"] == 2
    assert found["pageferry_migrations_total", "request", "failed"] == 1
    assert sum(value for key, value in found.items() if key[0] == "pageferry_migrations_total") == 3
    assert found["pageferry_moved_bytes_total",] == 2 * 8192
    pages = {key[1]: value for key, value in found.items() if key[0] == "pageferry_pages_total"}
    assert pages == {bucket.value: 2 * OUTCOME["pages"].get(bucket.value, 0) for bucket in Bucket}
    stopped = {key[1]: value for key, value in found.items() if key[0] == "pageferry_stopped_seconds_bucket"}
    assert (stopped["0.0"], stopped["0.03"], stopped["60.0"], stopped["300.0"]) == (1, 2, 2, 3)
    assert found["pageferry_stopped_seconds_sum",] == pytest.approx(61.02)


def test_pbs_migrations_are_counted_as_slurms_are(chronicle: Chronicle) -> None:
    told = {
        "job": "12.server",
        "uid": 1000,
        "event": "execjob_preresume",
        "began": 0.0,
        "seconds_stopped": 2.0,
        "rule": "",
        "moments": {},
        "sources": [0],
        "nodes": [1],
        "outcome": OUTCOME,
        "error": None,
        "request": "",
    }
    chronicle.served(told)
    found = series(Metrics(chronicle, lambda: HELD))
    assert found["pageferry_migrations_total", "execjob_preresume", "partial"] == 1
    assert found["pageferry_stopped_seconds_bucket", "3.0"] == 1


def test_holds_are_told_as_they_stand_and_as_they_ended(chronicle: Chronicle) -> None:
    counts = chronicle.counts
    for cause in (Release.ARRIVED, Release.ARRIVED, Release.MAX_HOLD):
        counts.held()
        counts.released(cause)
    counts.held()
    chronicle.tell(None, "beaten")
    found = series(Metrics(chronicle, lambda: {"held": 0, "waits": 1}))
    assert found["pageferry_holds_total",] == 4
    releases = {key[1]: value for key, value in found.items() if key[0] == "pageferry_hold_releases_total"}
    assert releases == {
        "arrived": 2,
        "max_hold": 1,
        "guardian": 0,
        "recovered": 0,
        "policy": 0,
        "ended": 0,
        "fault": 0,
        "stopped": 0,
    }
    assert found["pageferry_held_jobs", "held"] == 0
    assert found["pageferry_held_jobs", "waits"] == 1
    assert found["pageferry_beaten_resumes_total",] == 1
    assert found["pageferry_events_total", "beaten"] == 1


def test_spilled_memory_is_told_by_node_once_it_was_looked_for(chronicle: Chronicle) -> None:
    def spilled() -> dict[str, float]:
        found = series(Metrics(chronicle, lambda: HELD))
        return {key[1]: value for key, value in found.items() if key[0] == "pageferry_spilled_bytes"}

    assert spilled() == {}, "nobody has looked"
    chronicle.counts.seen_far("slurm", {0: 100, 1: 0})
    chronicle.counts.seen_far("pbs", {0: 11, 1: 7})
    assert spilled() == {"0": 111, "1": 7}
    chronicle.counts.seen_far("slurm", {0: 0, 1: 50})
    assert spilled() == {"0": 11, "1": 57}
    chronicle.counts.nothing_far("slurm")
    assert spilled() == {"0": 11, "1": 7}


def test_records_that_are_lost_are_told(tmp_path: Path) -> None:
    chronicle = Chronicle(Store(tmp_path))  # a folder: nothing can be written there
    chronicle.tell(None, "started")
    assert series(Metrics(chronicle, lambda: HELD))["pageferry_history_lost_records_total",] == 1


def test_every_series_of_migrations_is_there_before_the_first(chronicle: Chronicle) -> None:
    before = series(Metrics(chronicle, lambda: HELD))
    for cause in Cause:
        for outcome in OUTCOMES:
            assert before["pageferry_migrations_total", cause.value, outcome] == 0
    chronicle.ended(*ended(Cause.DISPLACED, error="no"))
    after = series(Metrics(chronicle, lambda: HELD))
    assert after.keys() - before.keys() == set()


def test_the_outcomes_that_are_told_from_the_start_are_all_there_are() -> None:
    words = {
        outcome_word(outcome, error)
        for error in (None, "why")
        for outcome in (
            None,
            OUTCOME,
            OUTCOME | {"refused": True},
            OUTCOME | {"complete": True},
            OUTCOME | {"complete": True, "moved_bytes": 0},
            OUTCOME | {"observed": True, "would_move_bytes": 0},
        )
    }
    assert words == set(OUTCOMES)


def test_more_jobs_are_no_more_series(chronicle: Chronicle) -> None:
    chronicle.ended(*ended(Cause.SUSPEND, outcome=OUTCOME))
    chronicle.tell(Tended(7), "held")
    before = series(Metrics(chronicle, lambda: HELD)).keys()
    for job in range(1000, 1050):
        chronicle.ended(*ended(Cause.SUSPEND, job=job, outcome=OUTCOME))
        chronicle.tell(Tended(job), "held", f"of job {job}")
    assert series(Metrics(chronicle, lambda: HELD)).keys() == before
    assert len(before) < 200


def test_the_state_differs_whenever_a_number_does(chronicle: Chronicle) -> None:
    held = dict(HELD)
    metrics = Metrics(chronicle, lambda: held)
    counts = chronicle.counts
    seen = [metrics.state()]
    changes: tuple[Callable[[], None], ...] = (
        lambda: chronicle.tell(None, "started"),
        lambda: chronicle.ended(*ended(Cause.SUSPEND, outcome=OUTCOME)),
        counts.held,
        lambda: counts.released(Release.ENDED),
        lambda: counts.seen_far("slurm", {0: 1}),
        lambda: held.update(held=1),
    )
    for change in changes:
        assert metrics.state() == seen[-1]
        change()
        seen.append(metrics.state())
    assert len(set(seen)) == len(seen)


def test_names_are_prometheus_conventions_and_used_once(chronicle: Chronicle) -> None:
    families = Metrics(chronicle, lambda: HELD).families()
    assert max(Counter(family.name for family in families).values()) == 1
    for family in families:
        assert family.name.startswith("pageferry_")
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert family.help.endswith(".")


def test_status_has_events_and_outcomes_from_the_same_counts(chronicle: Chronicle) -> None:
    chronicle.tell(None, "started")
    chronicle.ended(*ended(Cause.SUSPEND, outcome=OUTCOME))
    chronicle.ended(*ended(Cause.SPILL, outcome=OUTCOME))
    assert chronicle.counts.as_dict() == {"started": 1, "migrations partial": 2}

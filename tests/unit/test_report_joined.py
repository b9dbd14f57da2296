"""What must hold when two moves of a job are told as one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pageferry import report
from pageferry_planner.model import Bucket

PAGE = 4096
BUCKETS = tuple(bucket.value for bucket in Bucket)
SUMMED = ("requested_pages", "retried_pages", "addresses", "calls", "seconds", "seconds_planning")
COUNTS = st.integers(0, 1 << 20)


@st.composite
def outcomes(draw: st.DrawFn) -> dict[str, Any]:
    pages = {bucket: draw(COUNTS) for bucket in BUCKETS}
    return {
        **{key: draw(COUNTS) for key in (*SUMMED, "asked_per_process_pages")},
        "complete": draw(st.booleans()),
        "refused": False,
        "pages": pages,
        "total_pages": sum(pages.values()),
        "page_bytes": PAGE,
        "moved_bytes": pages["moved"] * PAGE,
    }


@given(first=outcomes(), again=outcomes())
def test_no_page_is_counted_twice_and_the_work_of_both_is_counted(first: dict[str, Any], again: dict[str, Any]) -> None:
    both = report.joined(first, again)
    assert sum(both["pages"].values()) == again["total_pages"] == both["total_pages"]
    assert min(both["pages"].values()) >= 0
    assert again["pages"]["moved"] <= both["pages"]["moved"] <= again["pages"]["moved"] + first["pages"]["moved"]
    assert both["moved_bytes"] == both["pages"]["moved"] * PAGE
    assert both["moved_bytes"] - both["precopied_bytes"] == again["moved_bytes"]
    assert all(both[key] == first[key] + again[key] for key in SUMMED)
    assert both["complete"] == again["complete"]


@given(outcome=outcomes())
def test_where_nothing_was_left_the_moved_pages_are_those_of_the_first(outcome: dict[str, Any]) -> None:
    moved = outcome["pages"]["moved"]
    at_rest = outcome["pages"] | {"moved": 0, "in_place": outcome["pages"]["in_place"] + moved}
    assert report.joined(outcome, outcome | {"pages": at_rest, "moved_bytes": 0})["pages"] == outcome["pages"]

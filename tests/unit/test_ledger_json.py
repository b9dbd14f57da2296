"""What must hold of the ledger as the history keeps it: bounded, printable, and every page in it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import ledger_json, report
from pageferry_planner.ledger import Ledger, buckets
from pageferry_planner.model import GONE, Backing, Bucket

WHYS = tuple(bucket.value for bucket in Bucket if bucket not in {Bucket.EXCLUDED, Bucket.VANISHED})


def backing(number: int, path: str = "") -> Backing:
    return Backing("08:01", number, "", path or f"/data/{number}")


@st.composite
def ledgers(draw: st.DrawFn, most: int = 8) -> Ledger:
    found: Ledger = Counter()
    for _ in range(draw(st.integers(0, most * 3))):
        what = draw(st.none() | st.integers(0, most).map(backing))
        here, why = draw(st.integers(0, 3)), draw(st.sampled_from((*WHYS, "vanished", "reference-count")))
        to = draw(st.integers(0, 3)) if why in {"moved", "in_place"} else GONE if why == "vanished" else here
        if why != "moved" or here != to:
            found[what, here, to, why] += draw(st.integers(1, 1 << 20))
    return found


def outcome(ledger: Ledger) -> dict[str, Any]:
    pages = {bucket.value: buckets(ledger).get(bucket, 0) for bucket in Bucket}
    costs = ("requested_pages", "retried_pages", "addresses", "calls", "seconds", "seconds_planning")
    return {
        **dict.fromkeys((*costs, "asked_per_process_pages"), 1),
        "complete": True,
        "refused": False,
        "pages": pages,
        "total_pages": sum(pages.values()),
        "page_bytes": 4096,
        "moved_bytes": pages["moved"] * 4096,
        "ledger": ledger_json.ledger_json(ledger, 4096),
    }


def by_bucket(told: dict[str, Any]) -> dict[str, int]:
    found = Counter(dict.fromkeys(told["pages"], 0))
    for _, _, why, pages in ledger_json.every_flow(told["ledger"]):
        found[why if why in told["pages"] else "excluded"] += pages
    return dict(found)


@given(ledgers())
def test_before_and_after_per_node_add_up_to_the_tally_exactly(ledger: Ledger) -> None:
    told = outcome(ledger)
    flows = ledger_json.every_flow(told["ledger"])
    assert by_bucket(told) == told["pages"]
    assert sum(ledger_json.before(flows).values()) == told["total_pages"]
    assert sum(ledger_json.after(flows).values()) == told["total_pages"] - told["pages"]["vanished"]
    assert ledger_json.of_bucket(flows, Bucket.MOVED) == told["pages"]["moved"]


@pytest.mark.parametrize("count", [49, 50, 51, 3000])
def test_the_largest_fifty_are_told_one_by_one_and_the_rest_as_a_sum(count: int) -> None:
    ledger: Ledger = Counter({(backing(number), 0, 1, "moved"): number + 1 for number in range(count)})
    told = ledger_json.ledger_json(ledger, 4096)
    assert [part["what"] for part in told["backings"]] == [f"/data/{n}" for n in range(count)[::-1][:50]]
    assert (told["rest"] or {"backings": 0})["backings"] == max(0, count - 50)
    assert ledger_json.before(ledger_json.every_flow(told)) == {0: count * (count + 1) // 2}
    assert len(json.dumps(told)) <= ledger_json.CHARACTERS


@pytest.mark.parametrize("name", ["/" + "x" * 4000, "/" + "\x1b[2J\n" * 700, "/" + "é" * 2000, "/\u202e" * 900])
def test_hostile_names_are_printable_and_cost_other_backings_no_page(name: str) -> None:
    ledger: Ledger = Counter(
        {(backing(n, name + str(n)), here, here ^ 1, "moved"): 1 for n in range(80) for here in range(8)}
    )
    told = ledger_json.ledger_json(ledger, 4096)
    assert len(json.dumps(told)) <= ledger_json.CHARACTERS
    assert told["backings"]
    assert all(part["what"].isprintable() and len(part["what"]) <= 120 for part in told["backings"])
    assert sum(pages for *_, pages in ledger_json.every_flow(told)) == 640


@given(first=ledgers(), again=ledgers())
def test_two_moves_told_as_one_add_up_and_move_no_page_that_neither_did(first: Ledger, again: Ledger) -> None:
    one, two = outcome(first), outcome(again)
    both = report.joined(one, two)
    assert by_bucket(both) == both["pages"]
    assert sum(both["pages"].values()) == both["total_pages"] == two["total_pages"]
    assert two["pages"]["moved"] <= both["pages"]["moved"] <= one["pages"]["moved"] + two["pages"]["moved"]
    flows = ledger_json.every_flow(both["ledger"])
    assert ledger_json.after(flows) == ledger_json.after(ledger_json.every_flow(two["ledger"])), "it is where it is"


@given(ledgers())
def test_a_move_whose_rest_is_nothing_is_told_as_it_was(ledger: Ledger) -> None:
    moved: Ledger = Counter({key: pages for key, pages in ledger.items() if key[3] == "moved"})
    at_rest: Ledger = Counter()
    for (what, _, to, _), pages in moved.items():
        at_rest[what, to, to, "in_place"] += pages
    both = report.joined(outcome(moved), outcome(at_rest))
    assert both["ledger"] == outcome(moved)["ledger"]


def test_a_rest_of_other_backings_is_matched_by_its_nodes() -> None:
    moved: Ledger = Counter({(backing(n), 0, 1, "moved"): 100 - n for n in range(60)})
    at_rest: Ledger = Counter({(backing(n), 1, 1, "in_place"): 41 + n for n in range(60)})  # others are the largest now
    both = report.joined(outcome(moved), outcome(at_rest))
    assert both["pages"]["moved"] == sum(moved.values())
    assert ledger_json.before(ledger_json.every_flow(both["ledger"])) == {0: sum(moved.values())}

"""A move's ledger as plain data, small enough for every record of the history.

    {"page_bytes": 4096, "backings": [{"what": "/dev/shm/ring", "flows": [[0, 2, "moved", 8192], ...]}, ...],
     "rest": {"backings": 12, "flows": [...]}}

A flow is: from node, to node (-1: none), the bucket or the rule that kept it there, base pages. The largest backings
are told one by one, the others as a sum, so that all flows together are all pages of the job.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pageferry.kernel.files import printable
from pageferry_planner.ledger import Ledger
from pageferry_planner.model import Backing, Bucket

BACKINGS = 50
"""So many backings are told one by one, at most."""

CHARACTERS = 8192
"""Fewer are told one by one where the whole would be longer than this, as JSON."""

PRIVATE = "private memory"

_WHAT_CHARACTERS = 120

Flow = Sequence[Any]
"""From node, to node, bucket or rule, pages."""

_Sums = Counter[tuple[int, int, str]]


def ledger_json(ledger: Ledger, page_bytes: int) -> dict[str, Any]:
    """Return a ledger as plain data."""
    sums: dict[Backing | None, _Sums] = {}
    for (backing, node, to, why), pages in ledger.items():
        sums.setdefault(backing, Counter())[node, to, why] += pages
    return _bounded([(_what(backing), found) for backing, found in sums.items()], page_bytes)


def joined(first: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ledgers of two moves of a job as one: of one while it ran, and of the look at the rest.

    What the first brought to a node and the second found in place there is moved, and came from where it was before:
    page by page of the same backing, as far as both tell of it, else of any.
    """
    rows = [(part["what"], _sums(part["flows"])) for part in again["backings"]]
    others = _sums(again["rest"]["flows"]) if again["rest"] else Counter()
    moved = [(part["what"], _sums(part["flows"])) for part in first["backings"]]
    moved.append(("", _sums(first["rest"]["flows"]) if first["rest"] else Counter()))
    for same in (True, False):
        for what, sums in moved:
            for row in [row for row in rows if (row[0] == what) is same] + ([] if same else [("", others)]):
                _take(sums, row[1])
    found = {"page_bytes": again["page_bytes"], "backings": [_entry(what, sums) for what, sums in rows], "rest": None}
    if again["rest"]:
        found["rest"] = {"backings": again["rest"]["backings"], "flows": _flows(others)}
    return found


def every_flow(ledger: Mapping[str, Any]) -> list[Flow]:
    """Return the flows of all backings."""
    parts = [*ledger["backings"], *([ledger["rest"]] if ledger["rest"] else [])]
    return [flow for part in parts for flow in part["flows"]]


def before(flows: Iterable[Flow]) -> dict[int, int]:
    """Return the pages by the node that they were on, ascending."""
    return _per_node((node, pages) for node, _, _, pages in flows)


def after(flows: Iterable[Flow]) -> dict[int, int]:
    """Return the pages by the node that they are on then, ascending; what has vanished is on none."""
    return _per_node((to, pages) for _, to, _, pages in flows if to >= 0)


def of_bucket(flows: Iterable[Flow], bucket: Bucket) -> int:
    """Return the pages that ended in a bucket."""
    return sum(pages for _, _, why, pages in flows if why == bucket.value)


def _take(first: _Sums, again: _Sums) -> None:
    """Tell what is in place now, and was brought there by the first move, as moved by it."""
    for (node, to, why), pages in list(first.items()):
        here = (to, to, Bucket.IN_PLACE.value)
        if why == Bucket.MOVED and (taken := min(pages, again[here])):
            again[here] -= taken
            again[node, to, why] += taken
            first[node, to, why] -= taken


def _bounded(rows: list[tuple[str, _Sums]], page_bytes: int) -> dict[str, Any]:
    rows.sort(key=lambda row: (-row[1].total(), row[0]))
    told = min(BACKINGS, len(rows))
    while True:
        rest: _Sums = Counter()
        for _, sums in rows[told:]:
            rest.update(sums)
        found = {
            "page_bytes": page_bytes,
            "backings": [_entry(what, sums) for what, sums in rows[:told]],
            "rest": {"backings": len(rows) - told, "flows": _flows(rest)} if rows[told:] else None,
        }
        if not told or len(json.dumps(found)) <= CHARACTERS:
            return found
        told = told * 3 // 4


def _entry(what: str, sums: _Sums) -> dict[str, Any]:
    return {"what": what, "flows": _flows(sums)}


def _flows(sums: _Sums) -> list[Flow]:
    return [[*key, pages] for key, pages in sorted(sums.items()) if pages]


def _sums(flows: Iterable[Flow]) -> _Sums:
    sums: _Sums = Counter()
    for node, to, why, pages in flows:
        sums[node, to, why] += pages
    return sums


def _per_node(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    found: Counter[int] = Counter()
    for node, pages in pairs:
        found[node] += pages
    return dict(sorted(found.items()))


def _what(backing: Backing | None) -> str:
    """Return a backing's name for people, its middle left out where it is long."""
    if backing is None:
        return PRIVATE
    name = printable(backing.path)
    half = _WHAT_CHARACTERS // 2
    return name if len(name) <= _WHAT_CHARACTERS else f"{name[: half - 1]}...{name[2 - half :]}"

"""A migration of the history → what the page says of it: words, sums, and the parts of its pictures.

Pure: rows in, values out; how they look is the template's. A row of an earlier version, or one whose ledger was dropped
for its age or length, has less to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pageferry import ledger_json
from pageferry.ledger_json import Flow
from pageferry.page.timeline import TimeLine, time_line
from pageferry_planner.model import Bucket

_BUCKETS = {
    Bucket.MOVED: "on its target now",
    Bucket.IN_PLACE: "was on a node where it may be",
    Bucket.EXCLUDED: "a rule says that it stays",
    Bucket.PINNED: "could not be moved in several rounds: pinned by I/O, a device or the kernel",
    Bucket.NO_ROOM: "its target has no room, and no other node was nearer or allowed",
    Bucket.NO_HUGE_PAGE: "huge pages that are to stay whole: none was free on the target, or the job maps it in parts",
    Bucket.DENIED: "the kernel refused: a capability is missing, or the cpuset leaves the node out",
    Bucket.VANISHED: "freed, swapped out or gone with its process while we worked",
    Bucket.NOT_REACHED: "the time was used up, or the move was ended, before its turn",
}
_LATER: dict[str, Any] = {"ledger": {}, "moments": {}, "requests_saved": None}
"""What a row does not have that an agent of an earlier version tells."""

_DETAILS: dict[str, Any] = {"request": "", "name": "", "excluded": {}}

_RULES = {
    "reference-count": "processes outside the job map it too",
    "library-list": "on the site's list of files that stay",
    "xattr": "the file is marked to stay",
}
_ARRIVED = frozenset({Bucket.MOVED.value, Bucket.IN_PLACE.value})
_FAILED = frozenset(
    bucket.value for bucket in (Bucket.PINNED, Bucket.NO_ROOM, Bucket.NO_HUGE_PAGE, Bucket.DENIED, Bucket.NOT_REACHED)
)


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes on a node, and which part of 100 that is."""

    node: int
    bytes: int
    percent: float


@dataclass(frozen=True, slots=True)
class NodeBars:
    """A node's memory of the job before and after; percent of the largest of all."""

    node: int
    before: Share
    after: Share


@dataclass(frozen=True, slots=True)
class Fate:
    """How much ended in a bucket or stayed by a rule, and what that means; `failed`: it was to move."""

    why: str
    means: str
    pages: int
    bytes: int
    percent: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Backing:
    """What became of one thing that the job maps: its memory by node before and after, what is gone, what stayed."""

    what: str
    bytes: int
    before: Sequence[Share]
    after: Sequence[Share]
    gone_bytes: int
    stays: Sequence[Fate]


@dataclass(frozen=True, slots=True)
class View:
    """A migration. `nodes`, `backings` are empty where its ledger was not kept; `total_bytes` None: nobody counted."""

    row: Mapping[str, Any]
    fates: Sequence[Fate]
    total_bytes: int | None
    nodes: Sequence[NodeBars]
    backings: Sequence[Backing]
    time_line: TimeLine | None
    scheduler: str


def view(row: Mapping[str, Any]) -> View:
    """Return what the page says of a migration, a row of the agent's answer to `history` with its ledger."""
    row = {**_LATER, **row, "details": {**_DETAILS, **row["details"]}}
    ledger = row["ledger"] if row["ledger"].get("backings") is not None else None
    flows = ledger_json.every_flow(ledger) if ledger else []
    page = ledger["page_bytes"] if ledger else _page_bytes(row)
    scheduler = "Slurm" if str(row["job"]).isdigit() else "PBS"
    pages: Mapping[str, int] = {bucket: count for bucket, count in row["pages"].items() if isinstance(count, int)}
    return View(
        row=row,
        fates=_tally(pages, row["details"]["excluded"], page),
        total_bytes=sum(pages.values()) * page if pages and page else None,
        nodes=_node_bars(flows, page),
        backings=_backings(ledger) if ledger else (),
        time_line=time_line(row["moments"], scheduler),
        scheduler=scheduler,
    )


def means(why: str) -> str:
    """Return what a bucket, or a rule that kept a page, means."""
    return _BUCKETS[Bucket(why)] if why in set(Bucket) else _RULES.get(why, "a rule of the site")


def _page_bytes(row: Mapping[str, Any]) -> int:
    """Return the size of a page where no ledger tells it, 0 where nothing does."""
    moved = row["pages"].get(Bucket.MOVED.value, 0)
    return row["bytes"] // moved if moved else 0


def _tally(pages: Mapping[str, int], excluded: Mapping[str, int], page: int) -> list[Fate]:
    counted = Counter({bucket: count for bucket, count in pages.items() if bucket != Bucket.EXCLUDED})
    by_rule = {rule: count for rule, count in excluded.items() if isinstance(count, int)}
    if sum(by_rule.values()) != pages.get(Bucket.EXCLUDED, 0):
        by_rule = {Bucket.EXCLUDED.value: pages.get(Bucket.EXCLUDED, 0)}
    return _fates(counted + Counter(by_rule), page)


def _fates(pages: Counter[str], page: int) -> list[Fate]:
    order = [bucket.value for bucket in Bucket]
    total = max(1, pages.total())
    places = {why: order.index(why) if why in order else order.index(Bucket.EXCLUDED) for why in pages}
    return [
        Fate(why, means(why), count, count * page, count * 100 / total, why in _FAILED)
        for why, count in sorted(pages.items(), key=lambda item: (places[item[0]], -item[1], item[0]))
        if count
    ]


def _node_bars(flows: Sequence[Flow], page: int) -> list[NodeBars]:
    before, after = ledger_json.before(flows), ledger_json.after(flows)
    most = max([*before.values(), *after.values()], default=0) or 1

    def share(pages: Mapping[int, int], node: int) -> Share:
        return Share(node, pages.get(node, 0) * page, pages.get(node, 0) * 100 / most)

    return [NodeBars(node, share(before, node), share(after, node)) for node in sorted({*before, *after})]


def _backings(ledger: Mapping[str, Any]) -> list[Backing]:
    page = ledger["page_bytes"]
    found = [_backing(part["what"] or "(no name)", part["flows"], page) for part in ledger["backings"]]
    if rest := ledger["rest"]:
        found.append(_backing(f"{rest['backings']} smaller ones", rest["flows"], page))
    return found


def _backing(what: str, flows: Sequence[Flow], page: int) -> Backing:
    stays: Counter[str] = Counter()
    for _, _, why, pages in flows:
        if why not in _ARRIVED:
            stays[why] += pages
    gone = stays.pop(Bucket.VANISHED.value, 0)
    before, after = ledger_json.before(flows), ledger_json.after(flows)
    total = sum(before.values())
    return Backing(
        what=what,
        bytes=total * page,
        before=_shares(before, total, page),
        after=_shares(after, total, page),
        gone_bytes=gone * page,
        stays=_fates(stays, page),
    )


def _shares(pages: Mapping[int, int], total: int, page: int) -> list[Share]:
    return [Share(node, count * page, count * 100 / max(1, total)) for node, count in pages.items() if count]


def newest_first(rows: Iterable[Mapping[str, Any]]) -> list[View]:
    """Return the views of rows, newest first."""
    return [view(row) for row in sorted(rows, key=lambda row: -row["id"])]

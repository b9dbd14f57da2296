"""Generated inputs of plans, with names as hostile as names can be, and what is to be said of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pageferry import ferry, report
from pageferry.errors import PageferryError
from pageferry.ferry import Inputs, Request
from pageferry.kernel.topology import Node, Topology
from pageferry.replay.write import Recorded
from pageferry_planner.columns import Columns
from pageferry_planner.folios import marked
from pageferry_planner.model import HugePages, Snapshot, Target
from pageferry_planner.policy import Facts, Rules
from support.plans import NODES, Row, huge_of, referenced_of, snapshot_of, snapshots, targets

HOSTILE = ("ring", "libm.so.6", "naïve", "a\nb", "\x1b[31m", "\u202egnp", "x\udcff", '"', "\\012", " ", "😀", "*.so")
"""Parts of names: line ends, escape codes, direction marks, no UTF-8, and what JSON and globs have for their own."""

paths = st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)) | (
    st.sampled_from(("/memfd:pool (deleted)", "/SYSV0000abcd (deleted)", "/dev/zero (deleted)", "/dev/shm/a/b", ""))
)
raw_names = st.binary(max_size=20).map(os.fsdecode)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Draw four nodes; some are full, and one may have no memory."""
    sizes = st.sampled_from((0, 1 << 20, 40 << 20, 100 << 20, 8 << 30))
    return Topology(
        tuple(
            Node(
                number=node,
                cpus=frozenset(),
                total_bytes=draw(st.sampled_from((0, 8 << 30, 8 << 30, 8 << 30))),
                free_bytes=draw(sizes),
                file_cache_bytes=draw(sizes),
                distances={other: 10 if other == node else draw(st.integers(11, 40)) for other in NODES},
                free_hugepages=draw(st.sampled_from(({}, {2 << 20: 3, 1 << 30: 0}))),
            )
            for node in NODES
        )
    )


@st.composite
def recordings(draw: st.DrawFn) -> Recorded:
    """Draw all that a plan is made from."""
    snapshot = draw(snapshots())
    names = draw(st.lists(raw_names, min_size=len(snapshot.processes), max_size=len(snapshot.processes)))
    processes = [
        replace(process, name=name, mems_allowed=frozenset(draw(st.sampled_from(((0, 1, 2, 3), (0, 1, 2, 3), (1, 2))))))
        for process, name in zip(snapshot.processes, names, strict=True)
    ]
    backings = [
        replace(backing, path=(path := draw(paths)), space=draw(st.sampled_from(("", "sysv:4026531839", path))))
        for backing in snapshot.backings
    ]
    verdicts = [replace(verdict, detail=draw(raw_names)) for verdict in snapshot.verdicts]
    facts = [
        Facts(
            tuple(draw(st.lists(st.integers(1, 4194304), max_size=3))),
            draw(st.sampled_from(("", "stay", "move"))),
            draw(st.sampled_from(("", "stay"))),
        )
        for _ in backings
    ]
    keeps = draw(st.booleans())
    snapshot = marked(snapshot, draw(huge_of(snapshot))) if keeps else snapshot
    snapshot = replace(
        snapshot,
        processes=tuple(processes),
        backings=tuple(backings),
        verdicts=tuple(verdicts),
        asked_per_process=7,
        referenced=draw(st.none() | referenced_of(snapshot)) if len(snapshot.runs) else None,
    )
    target = replace(draw(targets()), special=draw(st.frozensets(st.sampled_from(NODES))))
    request = Request(
        target=replace(
            target, huge_pages=HugePages.KEEP if keeps else HugePages.SPLIT, hugetlb_surplus=draw(st.booleans())
        ),
        rules=Rules(tuple(draw(st.lists(paths, max_size=2))), draw(st.booleans()), draw(st.booleans())),
        reserve_bytes=draw(st.none() | st.sampled_from((0, 1 << 20, 1 << 40))),
    )
    kept = {node: draw(st.sampled_from((0, 1 << 20))) for node in NODES}
    free_huge = {node: draw(st.integers(1, 3)) for node in NODES} if keeps else {}
    return Recorded("job 4711", Inputs(snapshot, tuple(facts), draw(topologies()), kept, request, free_huge))


def recording_of(rows: Iterable[Row], **asked: Any) -> Recorded:
    """Return the recording of a job with anonymous memory on a host with ample room."""
    return Recorded("job 7", inputs_of(snapshot_of(rows), **asked))


def inputs_of(snapshot: Snapshot, **asked: Any) -> Inputs:
    """Return them for a host of four nodes in a line."""
    nodes = tuple(
        Node(node, frozenset(), 64 << 30, 32 << 30, 0, {other: 10 + 5 * abs(node - other) for other in range(4)}, {})
        for node in range(4)
    )
    target = Target(**{"nodes": (2,), "spill": frozenset(range(4))} | asked)
    facts = (Facts(),) * len(snapshot.backings)
    return Inputs(snapshot, facts, Topology(nodes), {}, Request(target))


def plan_text(inputs: Inputs) -> str:
    """Return what `plan --json` prints for the inputs, or the error that it ends with."""
    try:
        return json.dumps(report.plan_json(inputs.snapshot, ferry.plan_from(inputs)))
    except PageferryError as error:
        return f"{type(error).__name__}: {error}"


def plain(inputs: Inputs) -> Any:
    """Return the inputs as values that can be compared."""
    snapshot = inputs.snapshot
    return (
        [_columns(table) for table in (snapshot.vmas, snapshot.runs)],
        _without_tables(snapshot),
        inputs.facts,
        inputs.topology,
        dict(inputs.kept_free),
        inputs.request,
        dict(inputs.free_huge),
    )


def _columns(table: Columns) -> list[Any]:
    return [(column.dtype, column.tolist()) for column in table.columns()]


def _without_tables(snapshot: Snapshot) -> list[Any]:
    values = [getattr(snapshot, name) for name in snapshot.__slots__]
    plainly = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    return [value for value in plainly if not isinstance(value, Columns)]


def same_pages(one: Inputs, other: Inputs) -> bool:
    """Say whether two plans move the same pages to the same nodes in the same order, and keep the same ones."""
    try:
        plan = ferry.plan_from(one)
    except PageferryError as error:
        return plan_text(other) == f"{type(error).__name__}: {error}"
    again = ferry.plan_from(other)
    assert plan.rank is not None and again.rank is not None
    tables = zip(
        (*plan.moves.columns(), plan.target, plan.stage, plan.rank),
        (*again.moves.columns(), again.target, again.stage, again.rank),
        strict=True,
    )
    counts = [
        (
            made.in_place,
            made.excluded,
            made.no_room,
            made.no_huge_page,
            made.sources,
            made.need,
            made.pool_need,
            made.pools,
            made.room,
            made.lacking,
        )
        for made in (plan, again)
    ]
    return all(np.array_equal(column, another) for column, another in tables) and counts[0] == counts[1]

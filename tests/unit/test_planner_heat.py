"""What must hold of use: every page is still there once, and each run says how many of its pages were used."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pageferry_planner.heat import PIECE_PAGES, Pieces, by_mapping, by_piece
from pageferry_planner.model import ANONYMOUS, SELF, Order, Snapshot, Target, Verdict
from pageferry_planner.placement import place
from support.plans import AMPLE, anonymous, line_host, pages_of, snapshot_of, snapshots

ROUNDED = Fraction(1, 1 << 14)
"""What shares lose by being whole numbers: far less than a page of any run here."""


def said(snapshot: Snapshot) -> dict[tuple[int, int], Fraction]:
    """Return for each page the share of its run that was used."""
    assert snapshot.referenced is not None
    runs = snapshot.runs
    found: dict[tuple[int, int], Fraction] = {}
    columns = (runs.process, runs.page, runs.count, snapshot.referenced)
    for process, page, count, used in zip(*(column.tolist() for column in columns), strict=True):
        assert 0 <= used <= count
        found |= {(process, at): Fraction(used, count) for at in range(page, page + count)}
    return found


@st.composite
def mapped(draw: st.DrawFn) -> tuple[Snapshot, list[int], list[int]]:
    """Draw a job whose own memory is mapped in pieces, too, and what was seen of each of its mappings."""
    snapshot = draw(snapshots())
    rows = list(zip(*(column.tolist() for column in snapshot.vmas.columns()[:5]), strict=True))
    for process, page, count, _, backing, _ in zip(*(c.tolist() for c in snapshot.runs.columns()[:6]), strict=True):
        if backing == ANONYMOUS:
            cut = draw(st.integers(1, count))
            rows.append((process, page, cut, ANONYMOUS, page))
            if cut < count and draw(st.booleans()):
                rows.append((process, page + cut, count - cut, ANONYMOUS, page + cut))
    rows = draw(st.permutations(rows))
    pages = [draw(st.sampled_from((0, count, -(-count // 2)))) for _, _, count, _, _ in rows]
    used = [draw(st.sampled_from((0, resident, resident // 3))) for resident in pages]
    vmas = snapshot_of([], vmas=rows).vmas
    return replace(snapshot, vmas=vmas), pages, used


@given(mapped())
def test_a_page_is_as_much_used_as_the_mean_of_the_mappings_that_show_it(
    drawn: tuple[Snapshot, list[int], list[int]],
) -> None:
    snapshot, pages, used = drawn
    found = by_mapping(snapshot, np.array(pages, np.int64), np.array(used, np.int64))
    assert pages_of(found.runs) == pages_of(snapshot.runs)
    vmas = list(zip(*(column.tolist() for column in snapshot.vmas.columns()[:5]), pages, used, strict=True))
    shares = said(found)
    lengths: dict[tuple[int, int], int] = {}
    runs = found.runs
    for process, page, count in zip(runs.process.tolist(), runs.page.tolist(), runs.count.tolist(), strict=True):
        lengths |= {(process, at): count for at in range(page, page + count)}
    for (process, at), page in pages_of(snapshot.runs).items():
        known = [
            Fraction(of_these, resident)
            for owner, first, count, backing, index, resident, of_these in vmas
            if resident
            and (
                (owner == process and first <= at < first + count)
                if page.backing == ANONYMOUS
                else (backing == page.backing and index <= page.index < index + count)
            )
        ]
        mean = sum(known, Fraction(0)) / len(known) if known else Fraction(1)
        assert mean <= shares[process, at] <= mean + ROUNDED + Fraction(1, lengths[process, at])
        assert (shares[process, at] == 0) == (mean == 0)


@given(snapshots(), st.data())
def test_what_was_seen_piece_by_piece_is_told_piece_by_piece(snapshot: Snapshot, data: st.DataObject) -> None:
    looked: dict[tuple[int, int], tuple[int, int]] = {}
    rows = []
    for run, (page, count) in enumerate(zip(snapshot.runs.page.tolist(), snapshot.runs.count.tolist(), strict=True)):
        if not data.draw(st.integers(0, 3)):
            continue  # nobody looked
        for piece in range(page // PIECE_PAGES, (page + count - 1) // PIECE_PAGES + 1):
            pages = min(page + count, (piece + 1) * PIECE_PAGES) - max(page, piece * PIECE_PAGES)
            used = data.draw(st.sampled_from((0, pages, pages // 3)))
            looked[run, piece] = pages, used
            part = data.draw(st.integers(0, pages - 1))  # seen in two readings
            parts = [(part, min(part, used)), (pages - part, used - min(part, used))] if part else [(pages, used)]
            rows += [(run, piece, *seen) for seen in parts]
    rows = data.draw(st.permutations(rows))
    pieces = Pieces(*np.array(rows, np.int64).reshape(-1, 4).T.copy())
    found = by_piece(snapshot, pieces)
    assert pages_of(found.runs) == pages_of(snapshot.runs)
    if not rows:
        assert found is snapshot
        return
    shares = said(found)
    for run, (process, page, count) in enumerate(
        zip(*(c.tolist() for c in (snapshot.runs.process, snapshot.runs.page, snapshot.runs.count)), strict=True)
    ):
        for at in range(page, page + count):
            pages, used = looked.get((run, at // PIECE_PAGES), (1, 1))
            share = shares[process, at]
            assert (share == 0) == (used == 0)
            if used:  # runs are cut where use doubles or halves
                assert Fraction(used, pages) / 2 <= share <= Fraction(used, pages) * 2 + Fraction(1, PIECE_PAGES)


def test_the_hot_end_of_one_mapping_goes_before_its_cold_beginning() -> None:
    snapshot = snapshot_of([anonymous(0, 0, 8 * PIECE_PAGES, 0)])
    used = np.array([0, 0, 0, 0, 0, 512, 512, 3])
    seen = by_piece(snapshot, Pieces(np.zeros(8, np.int64), np.arange(8), np.full(8, 512), used))
    assert seen.runs.page.tolist() == [0, 5 * 512, 7 * 512]
    assert seen.referenced is not None
    assert seen.referenced.tolist() == [0, 1024, 3]
    plan = place(seen, Target((1,)), line_host([AMPLE] * 2))
    assert plan.rank is not None
    first = [page for _, page in sorted(zip(plan.rank.tolist(), plan.moves.page.tolist(), strict=True))]
    assert first == [5 * 512, 7 * 512, 0]
    by_address = place(seen, Target((1,), order=Order.ADDRESS), line_host([AMPLE] * 2))
    assert by_address.rank is not None
    assert not by_address.rank.any()


def test_what_we_mapped_ourselves_is_as_much_used_as_by_the_jobs_mappings() -> None:
    snapshot = snapshot_of(
        [(SELF, 7, 100, 0, 0, 0)], verdicts=[Verdict(True, "job-only")], vmas=[(0, 5, 100, 0, 0), (1, 9, 50, 0, 0)]
    )
    seen = by_mapping(snapshot, np.array([100, 50]), np.array([0, 50]))
    assert seen.runs.count.tolist() == [50, 50]
    assert seen.referenced is not None
    assert seen.referenced.tolist() == [25, 0]

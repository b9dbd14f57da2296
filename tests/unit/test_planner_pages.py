"""What must hold of page entries → unique runs, against a simulated memory that knows every page frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry_planner import sharing as planner
from pageferry_planner.maps import parse
from pageferry_planner.model import ANONYMOUS, Ranges, Runs
from pageferry_planner.pages import Entries, Stretches, asked_per_process, doubtful, first_of_each, holes, others, runs
from pageferry_planner.sharing import Sharing, share
from support.jobs import ANON, FILES, PAGE, Mapping, Memory, layouts, memories, text_of

LARGE = 3


@pytest.fixture(autouse=True, scope="module")
def private_mappings_are_large_from_four_pages_on() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "READ_ONLY_PRIVATE_PAGES", LARGE)
        yield


def shared(memory: Memory) -> Sharing:
    return share(parse([text_of(mappings) for mappings in memory.processes]), PAGE)


def read(memory: Memory, sharing: Sharing, *, buffers: int = 1, frames_known: bool = True) -> Runs:
    """Take the steps of a snapshot: what the carriers show, then through others what they did not."""
    seen = _read(memory, sharing, sharing.ranges, buffers, frames_known)
    through_others = others(sharing, holes(sharing, seen))
    entries = memory.entries(through_others, frames_known)
    entries = entries.take(entries.file | entries.exclusive)
    return Runs.concatenate([seen, runs(through_others, first_of_each(through_others, entries))])


def _read(memory: Memory, sharing: Sharing, ranges: Ranges, buffers: int, frames_known: bool) -> Runs:
    parts: list[Runs] = []
    rest: list[Entries] = []
    everything = memory.entries(ranges, frames_known)
    for rows in np.array_split(np.arange(len(everything)), buffers):
        entries = everything.take(rows)
        unsure = doubtful(sharing, ranges, entries)
        parts.append(runs(ranges, entries.take(~unsure)))
        rest.append(entries.take(unsure))
    parts.append(runs(ranges, first_of_each(ranges, Entries.concatenate(rest))))
    return Runs.concatenate(parts)


def pages(found: Runs) -> list[tuple[int, int, int, int, int]]:
    """Each page of the runs, as (process, page, node, backing, index)."""
    return [
        (process, page + step, node, backing, index + step)
        for process, page, count, node, backing, index in zip(*(c.tolist() for c in found.columns()[:6]), strict=True)
        for step in range(count)
    ]


def frames(memory: Memory, found: Runs) -> list[int]:
    """The frame of each page of the runs; fails where a run names a page that its process does not map."""
    return [memory.table[process][page] for process, page, *_ in pages(found)]


@given(memories(), st.integers(1, 4))
@settings(max_examples=500, deadline=None)
def test_every_resident_page_is_found_once_through_a_process_that_maps_it(memory: Memory, buffers: int) -> None:
    found = read(memory, shared(memory), buffers=buffers)
    assert sorted(frames(memory, found)) == sorted(memory.mapped())


@given(memories())
@settings(max_examples=150, deadline=None)
def test_each_page_is_on_its_node(memory: Memory) -> None:
    for process, page, node, *_ in pages(read(memory, shared(memory))):
        assert node == memory.node[memory.table[process][page]]


@given(memories())
@settings(max_examples=150, deadline=None)
def test_each_page_is_told_by_its_place_in_its_file_or_as_memory_of_its_process(memory: Memory) -> None:
    sharing = shared(memory)
    for process, page, _, backing, index in pages(read(memory, sharing)):
        frame = memory.table[process][page]
        if backing == ANONYMOUS:
            assert not memory.is_file(frame)
            assert index == page
        else:
            assert memory.cache[FILES.index(sharing.backings[backing].path), index] == frame


@given(memories(written_then_protected=True))
@settings(max_examples=400, deadline=None)
def test_pages_written_and_then_protected_hide_no_page_of_the_file_and_none_is_found_twice(memory: Memory) -> None:
    found = frames(memory, read(memory, shared(memory)))
    assert len(found) == len(set(found))
    of_files = {frame for frame in memory.mapped() if memory.is_file(frame)}
    assert of_files <= set(found)
    writable = {
        frame
        for process, table in enumerate(memory.table)
        for page, frame in table.items()
        if (mapping := memory.mapping_at(process, page)).writable or mapping.file == ANON or mapping.count <= LARGE
    }
    assert writable <= set(found)


@given(memories(), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_without_page_frames_copy_on_write_memory_counts_as_each_process_s_own(memory: Memory, buffers: int) -> None:
    found = read(memory, shared(memory), buffers=buffers, frames_known=False)
    seen = [(process, page) for process, page, *_ in pages(found)]
    of_files = [memory.table[process][page] for process, page in seen if memory.is_file(memory.table[process][page])]
    own = [(process, page) for process, page in seen if not memory.is_file(memory.table[process][page])]
    assert sorted(of_files) == sorted(frame for frame in memory.mapped() if memory.is_file(frame))
    assert sorted(own) == sorted(
        (process, page)
        for process, table in enumerate(memory.table)
        for page, frame in table.items()
        if not memory.is_file(frame)
    )


def test_without_page_frames_entries_of_no_file_are_all_kept() -> None:
    ranges = share(parse([text_of([Mapping(1, 3)])]), PAGE).ranges
    never = np.zeros(3, bool)
    entries = Entries(
        np.zeros(3, np.int64), np.arange(1, 4), np.zeros(3, np.int64), np.zeros(3, np.int64), never, never
    )
    assert first_of_each(ranges, entries).page.tolist() == [1, 2, 3]


def job(*processes: list[Mapping]) -> Memory:
    return Memory(list(processes), table=[{} for _ in processes])


def test_a_page_that_the_carrier_never_touched_is_found_through_another() -> None:
    random = Random(1)
    ring = Mapping(10, 4, file=2, shared=True)
    memory = job([ring], [replace(ring, page=20)], [replace(ring, page=30)])
    memory.table[0][11] = memory.of_file(random, 2, 1)
    memory.table[1][22] = memory.of_file(random, 2, 2)
    memory.table[2][32] = memory.of_file(random, 2, 2)
    memory.table[2][33] = memory.of_file(random, 2, 3)
    found = read(memory, shared(memory))
    assert sorted((process, page) for process, page, *_ in pages(found)) == [(0, 11), (1, 22), (2, 33)]


def test_a_page_of_a_forked_family_is_found_once_and_its_copies_each() -> None:
    random = Random(1)
    memory = job([Mapping(10, 2)], [Mapping(10, 2)], [Mapping(10, 2)])
    page = memory.frame(random)
    for table in memory.table:
        table[10] = page
    for table in memory.table[:2]:
        table[11] = memory.frame(random)
    found = read(memory, shared(memory))
    assert sorted((process, number) for process, number, *_ in pages(found)) == [(0, 10), (0, 11), (1, 11)]


def test_a_page_shared_with_a_parent_outside_the_job_is_found() -> None:
    random = Random(1)
    memory = job([Mapping(10, 1)])
    memory.table[0][10] = memory.frame(random)
    memory.outside = {1}
    assert read(memory, shared(memory)).pages() == 1


def test_neighbours_on_one_node_are_one_run_and_a_change_of_node_or_a_gap_ends_it() -> None:
    ranges = share(parse([text_of([Mapping(1, 9)])]), PAGE).ranges
    page, node = np.array([1, 2, 3, 5, 6]), np.array([0, 0, 1, 1, 1])
    yes = np.ones(5, bool)
    found = runs(ranges, Entries(np.zeros(5, np.int64), page, node, page, ~yes, yes))
    assert list(zip(found.page.tolist(), found.count.tolist(), found.node.tolist(), strict=True)) == [
        (1, 2, 0),
        (3, 1, 1),
        (5, 2, 1),
    ]


def test_neighbouring_ranges_are_not_joined() -> None:
    text = text_of([Mapping(1, 2), Mapping(3, 2, file=0, shared=True)])
    ranges = share(parse([text]), PAGE).ranges
    row = np.repeat(np.arange(2), 2)
    page = np.concatenate([np.arange(2) + first for first in ranges.page.tolist()])
    nothing = np.zeros(4, np.int64)
    yes = np.ones(4, bool)
    assert len(runs(ranges, Entries(row, page, nothing, page, ranges.backing[row] != ANONYMOUS, yes))) == 2


def stretches_of(entries: Entries, random: Random) -> Stretches:
    """Join entries that follow one another and are alike, as far as chance has it."""
    alike = list(
        zip(entries.row.tolist(), entries.node.tolist(), entries.file.tolist(), entries.exclusive.tolist(), strict=True)
    )
    page = entries.page.tolist()
    begins = [
        number
        for number in range(len(page))
        if number == 0
        or alike[number] != alike[number - 1]
        or page[number] != page[number - 1] + 1
        or random.random() < 0.3
    ]
    first = entries.take(np.array(begins, np.int64))
    lengths = [end - begin for begin, end in pairwise([*begins, len(page)])]
    count = np.array(lengths, np.int64)
    return Stretches(first.row, first.page, count, first.node, first.pfn, first.file, first.exclusive)


@given(memories(), st.integers(0, 1 << 32))
@settings(max_examples=200, deadline=None)
def test_stretches_make_the_runs_that_their_entries_make(memory: Memory, seed: int) -> None:
    sharing = shared(memory)
    ranges = sharing.ranges
    entries = memory.entries(ranges)
    joined = stretches_of(entries, Random(seed))
    expected, found = runs(ranges, entries), runs(ranges, joined)
    assert [c.tolist() for c in found.columns()] == [c.tolist() for c in expected.columns()]
    assert np.repeat(doubtful(sharing, ranges, joined), joined.count).tolist() == (
        doubtful(sharing, ranges, entries).tolist()
    )


@given(layouts(), st.integers(0, 1 << 32))
@settings(max_examples=200, deadline=None)
def test_holes_are_what_no_run_has_shown(layout: list[list[Mapping]], seed: int) -> None:
    random = Random(seed)
    sharing = share(parse([text_of(mappings) for mappings in layout]), PAGE)
    mapped = {
        (extent, int(sharing.extents.backing[extent]), index)
        for extent in range(len(sharing.extents))
        for index in range(
            int(sharing.extents.index[extent]), int(sharing.extents.index[extent] + sharing.extents.count[extent])
        )
    }
    shown = {(backing, index) for _, backing, index in mapped if random.random() < 0.6}
    in_any_order = random.sample(sorted(shown), len(shown))
    rows = np.array([(0, 0, 1, 0, *place) for place in in_any_order], np.int64).reshape(-1, 6)
    missing = holes(sharing, Runs.of_pages(*rows.T.copy()))
    assert all(hole.lo < hole.hi for hole in missing)
    found = [(hole.extent, hole.backing, index) for hole in missing for index in range(hole.lo, hole.hi)]
    assert sorted(found) == sorted(place for place in mapped if place[1:] not in shown)


@given(layouts())
@settings(max_examples=200, deadline=None)
def test_each_page_of_a_hole_is_asked_of_every_other_process_that_may_show_it(layout: list[list[Mapping]]) -> None:
    sharing = share(parse([text_of(mappings) for mappings in layout]), PAGE)
    asked = others(sharing, holes(sharing, Runs.empty()))
    carried = addresses(sharing.extents)
    readable = {
        (process, page)
        for process, mappings in enumerate(layout)
        for m in mappings
        if m.file != ANON and (m.shared or (not m.writable and m.count > LARGE))
        for page in range(m.page, m.end)
    }
    assert sorted(addresses(asked)) == sorted(readable - set(carried))


def addresses(ranges: Ranges) -> list[tuple[int, int]]:
    return [
        (int(ranges.process[row]), int(ranges.page[row]) + step)
        for row in range(len(ranges))
        for step in range(int(ranges.count[row]))
    ]


@given(layouts())
@settings(max_examples=200, deadline=None)
def test_asked_per_process_is_what_every_process_maps_when_all_have_touched_all(layout: list[list[Mapping]]) -> None:
    random = Random(len(layout))
    memory = Memory(layout, table=[{} for _ in layout])
    for process, mappings in enumerate(layout):
        for m in mappings:
            for page in range(m.page, m.end):
                is_file = m.file != ANON
                frame = memory.of_file(random, m.file, m.index_of(page)) if is_file else memory.frame(random)
                memory.table[process][page] = frame
    sharing = shared(memory)
    assert asked_per_process(sharing, read(memory, sharing)) == sum(map(len, memory.table))


@given(layouts(), st.integers(0, 1 << 32))
@settings(max_examples=200, deadline=None)
def test_asked_per_process_counts_a_resident_page_for_every_mapping_of_it(
    layout: list[list[Mapping]], seed: int
) -> None:
    random = Random(seed)
    memory = Memory(layout, table=[{} for _ in layout])
    resident = {(file, index) for file in range(3) for index in range(20) if random.random() < 0.5}
    for process, mappings in enumerate(layout):
        for m in mappings:
            for page in range(m.page, m.end):
                if m.file != ANON and (m.file, m.index_of(page)) in resident:
                    memory.table[process][page] = memory.of_file(random, m.file, m.index_of(page))
    sharing = shared(memory)
    assert asked_per_process(sharing, read(memory, sharing)) == sum(map(len, memory.table))

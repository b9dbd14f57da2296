"""What must hold of extents and carriers, over generated jobs of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings

from pageferry_planner import sharing as planner
from pageferry_planner.maps import parse
from pageferry_planner.model import ANONYMOUS, Ranges
from pageferry_planner.sharing import Sharing, share
from support.jobs import ANON, FILES, PAGE, Mapping, layouts, text_of

LARGE = 3
Layout = list[list[Mapping]]


@pytest.fixture(autouse=True, scope="module")
def private_mappings_are_large_from_four_pages_on() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "READ_ONLY_PRIVATE_PAGES", LARGE)
        yield


def shared(layout: Layout) -> Sharing:
    return share(parse([text_of(mappings) for mappings in layout]), PAGE)


def read_alone(mapping: Mapping) -> bool:
    """Whether pages of the mapping may be its process's alone, so that no other process can stand in for it."""
    return not mapping.shared and (mapping.file == ANON or mapping.writable or mapping.count <= LARGE)


def addresses(ranges: Ranges) -> list[tuple[int, int]]:
    """Each page of each range, as (process, page)."""
    return [
        (int(ranges.process[row]), page)
        for row in range(len(ranges))
        for page in range(int(ranges.page[row]), int(ranges.page[row] + ranges.count[row]))
    ]


def of_files(ranges: Ranges, found: Sharing) -> list[tuple[str, int]]:
    """Each page of each range that lies in a file, as (path, index)."""
    return [
        (found.backings[int(ranges.backing[row])].path, index)
        for row in range(len(ranges))
        if ranges.backing[row] != ANONYMOUS
        for index in range(int(ranges.index[row]), int(ranges.index[row] + ranges.count[row]))
    ]


@given(layouts())
@settings(max_examples=250, deadline=None)
def test_extents_cover_what_the_job_maps_of_each_file_and_no_page_twice(layout: Layout) -> None:
    found = shared(layout)
    mapped = {
        (FILES[mapping.file], mapping.index_of(page))
        for mappings in layout
        for mapping in mappings
        if mapping.file != ANON
        for page in range(mapping.page, mapping.end)
    }
    assert sorted(of_files(found.extents, found)) == sorted(mapped)


@given(layouts(most=3))
@settings(max_examples=250, deadline=None)
def test_no_fewer_requests_cover_a_file(layout: Layout) -> None:
    found = shared(layout)
    for number, backing in enumerate(found.backings):
        spans = {
            frozenset(range(mapping.offset, mapping.offset + mapping.count))
            for mappings in layout
            for mapping in mappings
            if mapping.file != ANON and FILES[mapping.file] == backing.path
        }
        union = frozenset[int]().union(*spans)
        requests = int((found.extents.backing == number).sum())
        for fewer in range(requests):
            assert not any(frozenset[int]().union(*some) == union for some in combinations(spans, fewer))


@given(layouts())
@settings(max_examples=250, deadline=None)
def test_a_carrier_maps_its_extent_at_the_address_that_is_asked(layout: Layout) -> None:
    found = shared(layout)
    for row in range(len(found.extents)):
        process, page = int(found.extents.process[row]), int(found.extents.page[row])
        mapping = next(m for m in layout[process] if m.page <= page < m.end)
        assert page + int(found.extents.count[row]) <= mapping.end
        assert mapping.index_of(page) == found.extents.index[row]
        assert FILES[mapping.file] == found.backings[int(found.extents.backing[row])].path
        assert found.vmas.page[found.carriers[row]] == mapping.page
        assert found.vmas.process[found.carriers[row]] == process


@given(layouts())
@settings(max_examples=250, deadline=None)
def test_private_memory_is_read_whole_in_its_own_process(layout: Layout) -> None:
    found = shared(layout)
    expected = {
        (process, page)
        for process, mappings in enumerate(layout)
        for mapping in mappings
        if read_alone(mapping)
        for page in range(mapping.page, mapping.end)
    }
    read = addresses(found.ranges)
    assert expected <= set(read)
    assert sorted(addresses(found.vmas.take(found.own))) == sorted(expected)


@given(layouts())
@settings(max_examples=250, deadline=None)
def test_nothing_else_is_read_than_extents_and_private_memory_and_nothing_twice(layout: Layout) -> None:
    found = shared(layout)
    read = addresses(found.ranges)
    assert len(read) == len(set(read))
    assert set(read) == set(addresses(found.extents)) | set(addresses(found.vmas.take(found.own)))


@given(layouts())
@settings(max_examples=150, deadline=None)
def test_carriers_are_read_before_others_that_show_the_same_file(layout: Layout) -> None:
    found = shared(layout)
    carrying = set(addresses(found.extents))
    roles = [bool(carrying & set(addresses(found.ranges.take(np.array([row]))))) for row in range(len(found.ranges))]
    assert roles == sorted(roles, reverse=True)


@given(layouts())
@settings(max_examples=150, deadline=None)
def test_a_file_whose_pages_two_ranges_may_show_is_contested(layout: Layout) -> None:
    found = shared(layout)
    shown = of_files(found.ranges, found)
    twice = {path for path, index in shown if shown.count((path, index)) > 1}
    assert twice <= {b.path for b, contested in zip(found.backings, found.contested, strict=False) if contested}
    assert not found.contested[ANONYMOUS]


@given(layouts())
@settings(max_examples=200, deadline=None)
def test_vmas_are_those_of_the_maps(layout: Layout) -> None:
    found = shared(layout)
    expected = sorted(
        (process, m.page, m.count, m.page if m.file == ANON else m.offset, not m.shared)
        for process, mappings in enumerate(layout)
        for m in mappings
    )
    vmas = found.vmas
    columns = (vmas.process, vmas.page, vmas.count, vmas.index, vmas.private)
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == expected


def line(page: int, kind: bytes, device: bytes, inode: int, path: bytes, pages: int = 1) -> bytes:
    return b"%x-%x %s 00000000 %s %d %s\n" % (page * PAGE, (page + pages) * PAGE, kind, device, inode, path)


def test_what_a_driver_maps_is_not_the_jobs_memory_unless_written_to_privately() -> None:
    text = line(1, b"rw-s", b"00:05", 9, b"/dev/gpu0") + line(3, b"rw-p", b"00:05", 8, b"/dev/zero")
    found = share(parse([text]), PAGE, devices={0, 1})
    assert found.backings == ()
    assert found.ranges.page.tolist() == [3]
    assert found.ranges.backing.tolist() == [ANONYMOUS]
    assert found.ranges.index.tolist() == [3]


def test_where_one_inode_is_several_files_what_stat_says_tells_them_apart() -> None:
    text = line(1, b"r--s", b"00:2a", 9, b"/a/x") + line(3, b"r--s", b"00:2a", 9, b"/b/x")
    assert len(share(parse([text]), PAGE).backings) == 1
    maps = parse([text])
    shown = list(maps.shown(lambda region: region.device == "00:2a"))
    assert shown == [(0, 0, PAGE, 2 * PAGE), (1, 0, 3 * PAGE, 4 * PAGE)]
    assert list(maps.shown(lambda region: region.device == "00:2b")) == []
    assert len(share(maps, PAGE, {0: "1:2:9", 1: "1:3:9"}).backings) == 2
    assert len(share(maps, PAGE, {0: "1:2:9", 1: "1:2:9"}).backings) == 1


def test_one_file_by_two_names_is_one_backing_and_one_inode_on_two_devices_is_two() -> None:
    one = line(1, b"r--s", b"08:01", 9, b"/a") + line(3, b"r--s", b"08:01", 9, b"/hard-link")
    two = line(1, b"r--s", b"08:01", 9, b"/a") + line(3, b"r--s", b"08:02", 9, b"/a")
    assert len(share(parse([one]), PAGE).extents) == 1
    assert len(share(parse([two]), PAGE).extents) == 2


def test_large_pages_of_the_host_are_its_pages() -> None:
    found = share(parse([b"10000-50000 r--s 00020000 08:01 9 /a\n"]), 1 << 16)
    assert (found.vmas.page[0], found.vmas.count[0], found.vmas.index[0]) == (1, 4, 2)


TORN = [
    # As /proc/PID/maps of a running process has them (Linux 6.1): two were joined while it was read, ...
    "10000-12000 rw-p 00000000 00:00 0\n10000-14000 rw-p 00000000 00:00 0\n",
    # ... one was told twice, ...
    "10000-14000 rw-p 00000000 00:00 0\n10000-14000 rw-p 00000000 00:00 0\n",
    # ... or cut into three.
    "10000-14000 rw-p 00000000 00:00 0\n11000-12000 r--p 00000000 00:00 0\n12000-14000 rw-p 00000000 00:00 0\n",
]


@pytest.mark.parametrize("text", TORN, ids=["joined", "twice", "cut"])
def test_maps_that_changed_while_they_were_read_show_each_page_once(text: str) -> None:
    found = share(parse([text.encode()]), PAGE)
    assert sorted(addresses(found.ranges)) == [(0, page) for page in range(0x10, 0x14)]

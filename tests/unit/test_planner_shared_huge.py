"""What must hold of huge pages that forked processes share: each is seen once, where one process maps all of it."""

from __future__ import annotations

import numpy as np
import pytest

from pageferry_planner.capacity import HUGE_PAGES as HUGE
from pageferry_planner.columns import Ints
from pageferry_planner.model import ANONYMOUS, Ranges
from pageferry_planner.pages import Entries, first_of_each
from pageferry_planner.shared_huge import Owners, owners, through

FRAME = 8 * HUGE
ALL, REST = np.arange(HUGE), np.arange(1, HUGE)
AT = 4 * HUGE
"""Where each process maps the huge page."""


def entries(*parts: tuple[int, Ints], shift: int = 0) -> Entries:
    """Return entries of (process, which of the huge page's pages)."""
    row = np.concatenate([np.full(len(pages), process) for process, pages in parts])
    page = np.concatenate([pages for _, pages in parts])
    never = np.zeros(len(row), bool)
    return Entries(row, AT + shift + page, row * 0, FRAME + page, never, never)


def ranges(processes: int) -> Ranges:
    """Return one range for each process, which is its number."""
    number = np.arange(processes)
    same = number * 0
    return Ranges(number, same + AT, same + 2 * HUGE, same + ANONYMOUS, same + AT, np.ones(processes, bool))


def of(found: Entries) -> Owners:
    return owners(found.row, found.page, found.pfn)


@pytest.mark.parametrize("processes", [(0, 1, 2), (2, 1, 0)])
def test_the_one_who_maps_all_of_it_is_asked(processes: tuple[int, int, int]) -> None:
    parent, *children = processes
    seen = entries((parent, REST), *((child, ALL) for child in sorted(children)))
    found = of(seen)
    assert found.process.tolist() == [min(children)]
    left = first_of_each(ranges(3), through(ranges(3), seen, found))
    assert (set(left.row.tolist()), left.pfn.tolist()) == ({min(children)}, (FRAME + ALL).tolist())


def test_it_is_asked_also_if_its_entries_were_told_apart_by_the_exclusive_bit() -> None:
    child = of(entries((1, ALL)))
    assert len(through(ranges(2), entries((0, REST)), child)) == 0, "all of them are the first page's: Linux 6.1"
    seen = entries((0, REST), (1, REST))  # each is its own, and that of the first is not here: 6.12
    assert through(ranges(2), seen, child).row.tolist() == [1] * len(REST)


def test_an_owners_own_entries_stay_whatever_was_read_later() -> None:
    seen = entries((0, ALL))
    assert len(through(ranges(1), seen, of(seen))) == HUGE


@pytest.mark.parametrize("seen", [entries((0, REST), (1, REST)), entries((0, ALL), shift=1), Entries.empty()])
def test_what_nobody_maps_whole_at_a_huge_pages_place_is_left_as_it_is(seen: Entries) -> None:
    assert len(of(seen)) == 0
    assert through(ranges(2), seen, of(seen)) is seen


def test_other_huge_pages_and_files_are_left_as_they_are() -> None:
    seen = entries((0, REST))
    other = Entries(seen.row, seen.page, seen.node, seen.pfn + HUGE, seen.file, seen.exclusive)
    file = Entries(seen.row, seen.page, seen.node, seen.pfn, ~seen.file, seen.exclusive)
    for kept in (other, file):
        assert len(through(ranges(2), kept, of(entries((1, ALL))))) == len(REST)


def test_a_huge_page_across_two_mappings_of_a_process_is_whole() -> None:
    row = np.repeat([0, 1], HUGE // 2)
    never = np.zeros(HUGE, bool)
    halves = Entries(row, AT + ALL, row * 0, FRAME + ALL, never, never)
    assert owners(row * 0, halves.page, halves.pfn).block.tolist() == [FRAME // HUGE]

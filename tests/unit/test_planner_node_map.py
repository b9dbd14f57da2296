"""What must hold of the relative map: it is the kernel's own, page for page."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pageferry_planner.strategies import node_map, sources_of
from support.kernel_rule import where_pages_go
from support.plans import anonymous, runs_of

FIVE = range(5)
SUBSETS = [frozenset(some) for size in FIVE for some in combinations(FIVE, size + 1)]


@pytest.mark.parametrize("nodes", SUBSETS, ids=str)
def test_pages_go_where_the_kernel_would_put_them(nodes: frozenset[int]) -> None:
    for sources in SUBSETS:
        assert node_map(sources, nodes) == where_pages_go(sources, nodes), sources


@pytest.mark.parametrize(
    ("sources", "nodes", "expected"),
    [
        ({0, 1}, {2, 3}, {0: 2, 1: 3}),
        ({0, 1}, {1, 2}, {0: 1, 1: 2}),
        ({2, 3}, {1, 2}, {2: 1, 3: 2}),
        ({0, 1, 2}, {1}, {0: 1, 1: 1, 2: 1}),
        ({0, 1, 2, 3}, {4, 5}, {0: 4, 1: 5, 2: 4, 3: 5}),
        ({3}, {0, 1}, {3: 0}),
        ({0, 3}, {0}, {0: 0, 3: 0}),
        ({0, 1, 2}, {2, 3}, {0: 2, 1: 3, 2: 2}),
    ],
)
def test_examples_by_hand(sources: set[int], nodes: set[int], expected: dict[int, int]) -> None:
    assert node_map(frozenset(sources), frozenset(nodes)) == expected


def test_a_node_with_few_stray_pages_is_no_source() -> None:
    rows = [anonymous(0, 0, 1000, 0), anonymous(0, 2000, 1000, 1), anonymous(0, 4000, 30, 2)]
    assert sources_of(runs_of(rows)) == {0, 1}
    rows[2] = anonymous(0, 4000, 200, 2)
    assert sources_of(runs_of(rows)) == {0, 1, 2}


def test_no_memory_has_no_sources() -> None:
    assert sources_of(runs_of([])) == frozenset()
    assert np.array_equal(runs_of([]).count, np.zeros(0, np.int64))

"""What must hold of the CPUs that a job is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.cpus.assign import mapping

CPUS = st.frozensets(st.integers(0, 511), min_size=1, max_size=64)


@given(CPUS, CPUS)
def test_every_old_cpu_becomes_one_of_the_new(old: frozenset[int], new: frozenset[int]) -> None:
    place = mapping(old, new)
    assert place.keys() == old
    assert set(place.values()) <= new


@given(CPUS, CPUS)
def test_order_is_kept_and_no_two_cpus_become_one_while_there_are_enough(
    old: frozenset[int], new: frozenset[int]
) -> None:
    place = mapping(old, new)
    if len(new) >= len(old):
        images = [place[cpu] for cpu in sorted(old)]
        assert images == sorted(set(images))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [([0, 1], [4, 5], {0: 4, 1: 5}), ([0, 2, 4], [1, 3], {0: 1, 2: 3, 4: 1}), ([7], [0, 1], {7: 0})],
)
def test_the_ith_cpu_becomes_the_ith_and_round_again(old: list[int], new: list[int], expected: dict[int, int]) -> None:
    assert mapping(old, new) == expected

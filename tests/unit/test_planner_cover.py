"""What must hold of the interval cover: the union exactly, nothing twice, and no fewer spans would do."""

from __future__ import annotations

from itertools import combinations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pageferry_planner.sharing import Span, cover

Interval = tuple[int, int]
intervals = st.tuples(st.integers(0, 14), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))
few_intervals = st.lists(intervals, max_size=7)
many_intervals = st.lists(intervals, max_size=40)


def pages(spans: list[Interval]) -> set[int]:
    return {page for lo, hi in spans for page in range(lo, hi)}


def chosen(spans: list[Interval]) -> list[Span]:
    return cover([(lo, hi, number) for number, (lo, hi) in enumerate(spans)])


def fewest_by_trying_all(spans: list[Interval]) -> int:
    union = pages(spans)
    for size in range(len(spans) + 1):
        if any(pages(list(some)) == union for some in combinations(spans, size)):
            return size
    raise AssertionError("all of them cover the union")


@given(many_intervals)
@settings(max_examples=1000, deadline=None)
def test_the_union_is_covered_exactly_and_no_page_twice(spans: list[Interval]) -> None:
    found = [page for span in chosen(spans) for page in range(span.lo, span.hi)]
    assert sorted(found) == sorted(pages(spans))


@given(many_intervals)
@settings(max_examples=1000, deadline=None)
def test_each_span_is_a_part_of_its_owner_and_none_is_empty(spans: list[Interval]) -> None:
    for span in chosen(spans):
        lo, hi = spans[span.owner]
        assert lo <= span.lo < span.hi <= hi


@given(few_intervals)
@example([(0, 10), (0, 4), (4, 10)])
@example([(0, 4), (2, 6), (4, 8)])
@example([(0, 3), (3, 6), (1, 5)])
@settings(max_examples=2500, deadline=None)
def test_no_fewer_spans_cover_the_union(spans: list[Interval]) -> None:
    assert len(chosen(spans)) == fewest_by_trying_all(spans)


@given(few_intervals)
@settings(max_examples=300, deadline=None)
def test_the_order_in_which_spans_are_given_does_not_matter(spans: list[Interval]) -> None:
    numbered = [(lo, hi, number) for number, (lo, hi) in enumerate(spans)]
    assert cover(numbered) == cover(reversed(numbered)) == cover(sorted(numbered, key=lambda span: span[1]))


def test_of_equal_spans_the_lowest_owner_carries() -> None:
    assert cover([(0, 9, 5), (0, 9, 2), (0, 9, 7)]) == [Span(0, 9, 2)]

"""What must hold of the text format: Prometheus' own parser reads from it what was put in, whatever that was."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pageferry.exposition import Family, Histogram, Kind, Sample, text_of

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))
VALUES = st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False)


@given(TEXT, VALUES)
def test_a_hostile_label_and_any_number_come_back_as_they_were(label: str, value: float) -> None:
    (family,) = text_string_to_metric_families(
        text_of([Family("a_total", Kind.COUNTER, "help", (Sample(value, {"x": label, "y": "1"}),))])
    )
    (sample,) = family.samples
    assert (sample.name, sample.labels, sample.value) == ("a_total", {"x": label, "y": "1"}, value)


@given(TEXT)
def test_a_hostile_help_stays_on_its_line(text: str) -> None:
    lines = text_of([Family("a", Kind.GAUGE, text, (Sample(1),))]).split("\n")
    assert len(lines) == 4
    assert lines[1:] == ["# TYPE a gauge", "a 1", ""]


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf")])
def test_what_is_no_number_is_written_as_prometheus_reads_it(value: float, text: str) -> None:
    assert text_of([Family("a", Kind.GAUGE, "", (Sample(value),))]).endswith(f"a {text}\n")


def test_a_family_without_samples_is_left_out() -> None:
    assert text_of([Family("a", Kind.GAUGE, "help", ())]) == ""


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100), unique=True, max_size=8).map(sorted))
def test_each_bucket_counts_what_is_at_most_its_bound(values: list[float], bounds: list[float]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    (family,) = text_string_to_metric_families(
        text_of([Family("a_seconds", Kind.HISTOGRAM, "help", histogram.samples())])
    )
    assert family.type == "histogram"
    *buckets, total, count = family.samples
    assert [float(bucket.labels["le"]) for bucket in buckets] == [*bounds, math.inf]
    for bucket in buckets:
        assert bucket.value == sum(value <= float(bucket.labels["le"]) for value in values)
    assert (total.name, count.name, count.value) == ("a_seconds_sum", "a_seconds_count", len(values))
    assert total.value == pytest.approx(sum(values))

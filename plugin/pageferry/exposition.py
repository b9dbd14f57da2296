"""Prometheus' text format, as the textfile collector reads it and a scrape gets it: families of samples → text.

Only what the agent needs of it, in place of a library that costs the agent more memory than all else that it counts
with (docs/adr/0010-metrics.md). What there is to count is left to the agent; promtool judges the result in the tests.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = _IN_HELP | str.maketrans({'"': r"\""})


class Kind(Enum):
    """What a family's numbers mean."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of a family; `suffix` is what a histogram's parts add to its name."""

    value: float
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """All numbers of one name: `name` as in the text, without the parts' suffixes."""

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]


class Histogram:
    """How often a value was at most each of `bounds` (ascending), how often in all, and the sum of the values."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Take note of a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> tuple[Sample, ...]:
        """Return its parts: the buckets, each with those below it, the sum and the count."""
        total = 0
        found = []
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            found.append(Sample(total, {"le": _number(float(bound))}, "_bucket"))
        return (*found, Sample(self._sum, suffix="_sum"), Sample(total, suffix="_count"))


def text_of(families: Iterable[Family]) -> str:
    """Return families in the text format, each with its help and type; one without samples is left out."""
    return "".join(f"{line}\n" for family in families if family.samples for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help.translate(_IN_HELP)}"
    yield f"# TYPE {family.name} {family.kind.value}"
    for sample in family.samples:
        labels = ",".join(f'{name}="{value.translate(_IN_LABEL)}"' for name, value in sample.labels.items())
        yield f"{family.name}{sample.suffix}{f'{{{labels}}}' if labels else ''} {_number(sample.value)}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else "+Inf" if value > 0 else "-Inf"

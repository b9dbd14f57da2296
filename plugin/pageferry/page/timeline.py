"""The moments of a stop as a picture: time goes down, and a lane for each thing that lasts is filled while it does.

A stop may have a second next to an hour; so an interval is drawn as long as the logarithm of it, and says its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_MOMENTS = {
    "suspended": "{scheduler} suspends the job",
    "held": "pageferry holds it as well",
    "copying": "its memory begins to move, while it runs",
    "copied": "what can move while it runs has moved",
    "moving": "its memory begins to move",
    "moved": "the move has ended",
    "resumed": "{scheduler} resumes it",
    "released": "pageferry lets it go on",
}
_ALONE = {"held": "pageferry holds the job"}
"""Said instead, where no scheduler has it suspended."""

_LANES = (
    ("suspended", "suspended by {scheduler}", (("suspended", "resumed"),)),
    ("held", "held by pageferry", (("held", "released"),)),
    ("moves", "memory moves", (("copying", "copied"), ("moving", "moved"))),
)
_TOP = 16
_LEAST, _MOST = 62, 112
"""Of an interval, in pixels: three lines of text have room in the least."""

_LANE = 18


@dataclass(frozen=True, slots=True)
class Moment:
    """What happened, when (seconds since 1970), how long until the next one (None: the last), and where it is drawn."""

    text: str
    at: float
    until_next: float | None
    y: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a lane that is filled. `open`: it is not known when it ended; `waits`: the job stands still for us."""

    lane: str
    x: int
    y: int
    height: int
    open: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class TimeLine:
    """The picture, in pixels; `lanes`: name and text of each that is there. `stops`: the job stood still meanwhile."""

    moments: Sequence[Moment]
    bars: Sequence[Bar]
    lanes: Sequence[tuple[str, str]]
    height: int

    @property
    def stops(self) -> bool:
        """Return whether the job stood still."""
        return any(lane != "moves" for lane, _ in self.lanes)


def time_line(moments: Mapping[str, Any], scheduler: str) -> TimeLine | None:
    """Return the picture of the moments of a stop, as the history has them; None where fewer than two are known."""
    at = {name: float(when) for name, when in moments.items() if name in _MOMENTS and _is_time(when)}
    names = sorted(at, key=lambda name: (at[name], list(_MOMENTS).index(name)))
    if len(names) < 2:
        return None
    y, place = {names[0]: _TOP}, _TOP
    for earlier, later in pairwise(names):
        place += _length(at[later] - at[earlier])
        y[later] = place
    told = []
    for name, after in zip(names, [*names[1:], None], strict=True):
        text = _ALONE.get(name, _MOMENTS[name]) if "suspended" not in at else _MOMENTS[name]
        until = at[after] - at[name] if after is not None else None
        told.append(Moment(text.format(scheduler=scheduler), at[name], until, y[name]))
    bars, lanes = _bars(y, place), []
    for lane, text, _ in _LANES:
        if any(bar.lane == lane for bar in bars):
            lanes.append((lane, text.format(scheduler=scheduler)))
    return TimeLine(told, bars, lanes, place + _TOP + _LANE)


def _bars(y: Mapping[str, int], end: int) -> list[Bar]:
    bars = []
    for number, (lane, _, spans) in enumerate(_LANES):
        for begin, over in spans:
            if begin in y:
                until = y.get(over, end)
                bars.append(Bar(lane, number * _LANE, y[begin], max(2, until - y[begin]), open=over not in y))
    if "held" in y and "released" in y:
        # What a job waits for us: from its resume on, or from the hold on where nobody else had stopped it.
        since = y.get("resumed", y["released"] if "suspended" in y else y["held"])
        if since < y["released"]:
            bars.append(Bar("held", _LANE, since, y["released"] - since, waits=True))
    return bars


def _length(seconds: float) -> int:
    return round(min(_MOST, _LEAST + 6 * math.log10(1 + max(0.0, seconds) * 1000)))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

"""What is measured, and how much faster than whom pageferry is to be: the table of targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bench.job import Shape

SHARED_MIB = 1024
SCATTER_STEP = 100
"""Every hundredth page strays: 1 %."""


class State(StrEnum):
    """Which of a job's pages are on the wrong node when a contender starts."""

    ALL = "all misplaced"
    FEW = "1 % misplaced"
    NONE = "nothing misplaced"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A job and its state; `targets`: for each peer the least ratio of its time to ours."""

    title: str
    shape: Shape
    state: State
    targets: Mapping[str, float] = field(default_factory=dict)


def _targets(kernel: float, **others: float) -> dict[str, float]:
    """Return targets; the kernel's holds for both of its writes, from all nodes and from two."""
    names = {"migratepages": "migratepages", "per_process": "move_pages per process"}
    writes = {"cpuset.mems write": kernel, "cpuset.mems write, two nodes": kernel}
    return writes | {names[name]: ratio for name, ratio in others.items()}


_FULL = _targets(1.0, migratepages=1.5, per_process=2.2)
_FEW = _targets(1.5, migratepages=10.0)
_NONE = _targets(4.0, migratepages=20.0)


def _shared(state: State, processes: int, targets: Mapping[str, float]) -> Scenario:
    title = f"{state} of 1 GiB shared by {processes} processes"
    return Scenario(title, Shape(processes, 1, SHARED_MIB, 0), state, targets)


SCENARIOS = (
    Scenario("full move, 64 processes, 64 MiB shared + 2 MiB private each", Shape(64, 1, 64, 2), State.ALL, _FULL),
    Scenario(
        "full move, one process, 64 threads, 256 MiB private",
        Shape(1, 64, 0, 256),
        State.ALL,
        _targets(1.5),
    ),
    *(_shared(state, processes, {}) for processes in (4, 16) for state in (State.FEW, State.NONE)),
    _shared(State.FEW, 64, _FEW),
    _shared(State.NONE, 64, _NONE),
)

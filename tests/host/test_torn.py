"""A job is looked at while its mappings change: each page that is there throughout is counted, and once."""

from __future__ import annotations

import numpy as np
import pytest

from guest import rights
from guest.ranks import job
from pageferry import ferry
from pageferry_planner.policy import Rules

PAGES = 4000
LOOKS = 60


def times_counted(pids: tuple[int, ...], first: int, looks: int) -> list[tuple[int, int]]:
    """Look at a process so often; return how often the page counted least, and the one counted most, was counted."""
    found = []
    for _ in range(looks):
        runs = ferry.survey(pids, Rules())[0].runs
        lo, hi = (np.clip(edge - first, 0, PAGES) for edge in (runs.page, runs.page + runs.count))
        edges = np.bincount(lo, minlength=PAGES + 1) - np.bincount(hi, minlength=PAGES + 1)
        counted = np.cumsum(edges)[:PAGES]
        found.append((int(counted.min()), int(counted.max())))
    return found


@pytest.mark.parametrize("whose", ["unit", "root"])
def test_each_page_that_is_there_throughout_is_counted_once_in_every_look(
    whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rights.VARIABLE, whose)
    with job() as made:
        memory = made.first.map(PAGES).write()
        made.first.ask("flicker", memory.address, PAGES, 8, 4)
        assert set(rights.call(times_counted, made.pids, memory.address // 4096, LOOKS)) == {(1, 1)}

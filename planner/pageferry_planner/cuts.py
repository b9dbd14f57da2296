"""Cuts runs into parts, at places inside them or at edges of what they map, and never inside a folio."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pageferry_planner.columns import Ints
from pageferry_planner.model import Runs


def cut(runs: Runs, row: Ints, offset: Ints) -> tuple[Runs, Ints]:
    """Cut runs at places inside them; return the parts in order, and which run each is of.

    A place inside a folio cuts where that begins. A place may be given several times.
    """
    at = offset // (steps := runs.steps()[row]) * steps
    of, at = np.concatenate([np.arange(len(runs)), row]), np.concatenate([np.zeros(len(runs), np.int64), at])
    order = np.lexsort((at, of))
    of, at = of[order], at[order]
    new = np.append(True, (of[1:] != of[:-1]) | (at[1:] != at[:-1]))[: len(of)]
    of, at = of[new], at[new]
    end = runs.count[of]
    goes_on = np.flatnonzero(of[1:] == of[:-1])
    end[goes_on] = at[goes_on + 1]
    parts = runs.take(of)
    return replace(parts, page=parts.page + at, count=end - at, index=parts.index + at), of


def edges_inside(begin: Ints, count: Ints, edges: Ints) -> tuple[Ints, Ints]:
    """Return where the sorted `edges` are inside stretches: the row of the stretch, and how far it is into it."""
    first = np.searchsorted(edges, begin, "right")
    number = np.maximum(np.searchsorted(edges, begin + count) - first, 0)
    which = np.arange(number.sum()) + np.repeat(first - np.cumsum(number) + number, number)
    row = np.repeat(np.arange(len(begin)), number)
    return row, edges[which] - begin[row]

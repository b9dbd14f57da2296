"""What is said of pools of hugetlb pages: those that a plan needs, and all of the host before and after a move.

    {"hugetlb_pools": {"before": {"0": {"2097152": {"pages": 3, "free": 0}}, ...}, "after": {...}}}

By node and size in bytes; where there are none, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pageferry.kernel.hugetlb import Pools
from pageferry_planner.model import Plan

_KEY = "hugetlb_pools"


def needed(plan: Plan, node: int) -> dict[str, Any]:
    """Return how many hugetlb pages are to come to a node, and how many its pools have free."""
    sizes = {
        str(unit * plan.page_bytes): {"need": pages, "free": plan.pools.get((node, unit), 0)}
        for (there, unit), pages in sorted(plan.pool_need.items())
        if there == node
    }
    return {"hugetlb": sizes} if sizes else {}


def before_and_after(before: Pools, after: Pools) -> dict[str, Any]:
    """Return the pools for a program."""
    return {_KEY: {"before": _plain(before), "after": _plain(after)}} if before or after else {}


def joined(first: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pools before the first of two moves, and after the second."""
    if _KEY not in first or _KEY not in again:
        return {}
    return {_KEY: {"before": first[_KEY]["before"], "after": again[_KEY]["after"]}}


def changed(outcome: Mapping[str, Any], size: Callable[[float], str]) -> list[str]:
    """Return a line for each pool that the move has changed; `size` words bytes for people."""
    if _KEY not in outcome:
        return []
    before, after = outcome[_KEY]["before"], outcome[_KEY]["after"]
    lines = []
    for node in sorted({*before, *after}, key=int):
        for pages in sorted({*before.get(node, {}), *after.get(node, {})}, key=int):
            was, stands = (of.get(node, {}).get(pages, {"pages": 0, "free": 0}) for of in (before, after))
            if was != stands:
                free, old = (f"{pool['free']} of {pool['pages']}" for pool in (stands, was))
                lines.append(f"node {node}: {free} hugetlb pages of {size(int(pages))} are free; before the move {old}")
    return lines


def _plain(pools: Pools) -> dict[str, Any]:
    return {
        str(node): {str(size): {"pages": pool.pages, "free": pool.free} for size, pool in sorted(sizes.items())}
        for node, sizes in sorted(pools.items())
    }

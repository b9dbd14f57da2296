"""Migrations as the agent answers them to `history`, with words in them that would like to be more than words."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from pageferry.history.store import Migration
from pageferry_planner.model import Bucket

BEGAN = 1_764_000_000.5
PAGE = 4096
HOSTILE = (
    "</title><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    "'\"{{7*7}}\u202egnp.exe\r\n\x1b[2J"
)
"""Markup, quotes, a template, a direction override, line ends and a terminal's escape."""

_FLOWS: tuple[tuple[str, list[tuple[int, int, str, int]]], ...] = (
    (
        "private memory",
        [(0, 2, "moved", 260_000), (1, 3, "moved", 131_000), (1, -1, "vanished", 20), (1, 1, "pinned", 31)],
    ),
    ("/dev/shm/segment", [(0, 2, "moved", 90_000), (2, 2, "in_place", 9_000), (0, 0, "no_room", 4_000)]),
    ("/usr/lib/x86_64-linux-gnu/libc.so.6", [(0, 0, "reference-count", 420), (1, 1, "reference-count", 12)]),
)


def row(number: int = 17, words: str = "", **changes: Any) -> dict[str, Any]:
    """Return a migration that moved most of a job's memory while it was suspended; `words` go wherever words are."""
    backings = [{"what": words + what, "flows": [list(flow) for flow in flows]} for what, flows in _FLOWS]
    pages: Counter[str] = Counter()
    for _, flows in _FLOWS:
        for _, _, why, count in flows:
            pages[why if why in set(Bucket) else "excluded"] += count
    migration = Migration(
        job=4711,
        uid=1000,
        host=words or "node07",
        event="suspend",
        rule=words,
        began=BEGAN,
        seconds=4.5,
        seconds_stopped=0.25,
        nodes_from="0-1",
        nodes_to="2-3",
        outcome="partial",
        pages={bucket.value: pages[bucket] for bucket in Bucket},
        requested=485_000,
        calls=31,
        bytes=pages["moved"] * PAGE,
        error=words,
        asked_per_process=3_000_000,
        details={
            "request": words or "pageferry:nodes=2-3",
            "name": words or "wing",
            "excluded": {"reference-count": 432},
        },
        moments={
            "suspended": BEGAN - 0.02,
            "held": BEGAN - 0.01,
            "moving": BEGAN + 0.2,
            "resumed": BEGAN + 4,
            "moved": BEGAN + 4.2,
            "released": BEGAN + 4.25,
        },
        ledger={"page_bytes": PAGE, "backings": backings, "rest": {"backings": 3, "flows": [[0, 2, "moved", 0]]}},
        id=number,
    )
    return asdict(migration) | {"requests_saved": migration.requests_saved} | changes

"""`pageferry status --watch`: how the host stands, again and again, until Ctrl-C.

On a terminal the picture is kept; elsewhere each frame is printed, one after another. What is shown is `overview`'s.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pageferry.cli.tables import table_of
from pageferry.kernel.lists import format_list
from pageferry.overview import HappenedNow, JobNow, NodeNow, Overview
from pageferry.report import safe, size

_WIDTH = 200  # where there is no terminal
_LEAST_JOBS = 5
_OTHER_LINES = 8  # headings, and blank lines between the tables
_BAR = 20
_STANDS = frozenset({"held", "parked", "waits", "suspended"})


def watch(look: Callable[[], Overview], seconds: float, *, as_json: bool = False) -> int:
    """Show what `look` sees, every so many seconds; return 0 at Ctrl-C. Raises what `look` does."""
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        if as_json:
            _repeat(seconds, lambda: print(json.dumps(look().as_dict()), flush=True))  # noqa: T201
        elif not console.is_terminal:
            console = Console(highlight=False, markup=False, emoji=False, width=_WIDTH)
            _repeat(seconds, lambda: _print(console, look()))
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the terminal is given back
            first = frame(look(), console.height)
            with Live(first, console=console, screen=True, auto_refresh=False) as live:
                time.sleep(seconds)
                _repeat(seconds, lambda: live.update(frame(look(), console.height), refresh=True))
    except KeyboardInterrupt:
        return 0


def _repeat(seconds: float, show: Callable[[], None]) -> NoReturn:
    while True:
        began = time.monotonic()
        show()
        time.sleep(max(0.0, began + seconds - time.monotonic()))


def _print(console: Console, overview: Overview) -> None:
    console.print(frame(overview))
    console.print()
    console.file.flush()


def frame(overview: Overview, height: int | None = None) -> RenderableType:
    """Return the picture of a host, cut to the lines of a terminal; the jobs with something to see come first."""
    when = time.strftime("%H:%M:%S", time.localtime(overview.at))
    parts: list[RenderableType] = [Text(f"{safe(overview.host)}, {when}: {len(overview.jobs)} jobs", style="bold")]
    if overview.agent is not None:
        parts.append(Text(f"without an agent's word: {safe(overview.agent)}", style="yellow"))
    parts += [_nodes(overview.nodes), Text()]
    others = len(overview.nodes) + len(overview.events) + _OTHER_LINES
    rows = None if height is None else max(_LEAST_JOBS, height - others)
    parts.append(_jobs(overview.jobs, rows, special=any(node.special for node in overview.nodes)))
    if overview.events:
        parts += [Text(), _events(overview.events)]
    return Group(*parts)


def _nodes(nodes: Sequence[NodeNow]) -> RenderableType:
    table = table_of("node", "CPUs", "memory", "free", "used")
    for node in nodes:
        used = 1 - node.free_bytes / max(node.total_bytes, 1)
        bar = Text("█" * round(_BAR * used) if node.total_bytes else "", style="cyan")
        table.add_row(
            str(node.number),
            "special" if node.special else "yes" if node.has_cpus else "-",
            size(node.total_bytes),
            size(node.free_bytes),
            bar,
        )
    return table


def _jobs(jobs: Sequence[JobNow], rows: int | None, *, special: bool) -> RenderableType:
    columns = ("mapped", "remote", *(("special",) if special else ()), "move")
    table = table_of("job", "state", "CPUs", "on nodes", "home", *columns)
    ordered = sorted(jobs, key=_order)
    for job in ordered[:rows]:
        remote = Text(_size(job.remote_bytes), style="yellow" if job.remote_bytes else "")
        state = Text(job.state or "-", style="yellow" if job.state in _STANDS else "")
        table.add_row(
            Text(safe(job.id)),
            state,
            job.cpus or "any",
            format_list(job.cpu_nodes) or "any",
            format_list(job.home_nodes) or "-",
            _size(sum(job.bytes.values()) if job.bytes else None),
            remote,
            *((_size(job.special_bytes),) if special else ()),
            Text(_move(job)),
        )
    if len(ordered) > len(table.rows):
        table.add_row(f"and {len(ordered) - len(table.rows)} more")
    return table if ordered else Text("no batch job to be seen on this host")


def _order(job: JobNow) -> tuple[bool, int, int, str]:
    """Who moves or stands still comes first, then who has the most memory away, then by ID."""
    return not (job.move or job.state in _STANDS), -(job.remote_bytes or 0), len(job.id), job.id


def _move(job: JobNow) -> str:
    if job.move is None:
        return job.stage or ""
    words = [job.stage or "", f"to {format_list(job.move['nodes'])}" if job.move["nodes"] else ""]
    words += [f"({job.move['event']}, {job.move['seconds']:.0f} s)"]
    if job.move["of_bytes"]:
        done, of = job.move["done_bytes"], job.move["of_bytes"]
        words.append(f"{size(done)} of {size(of)}, {done * 100 // of} %")
    return " ".join(filter(None, words))


def _events(events: Sequence[HappenedNow]) -> RenderableType:
    table = table_of("when", "job", "what happened")
    for event in events:
        when = time.strftime("%H:%M:%S", time.localtime(event.at))
        table.add_row(when, Text(safe(event.job or "-")), Text(safe(event.text)))
    return table


def _size(count: Any) -> str:
    return "-" if count is None else size(count)

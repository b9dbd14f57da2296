"""What was measured, as JSON → docs/benchmarks.md. `python -m bench.report GUEST PLANNING RESUME NEWCOMER PRECOPY`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, OURS
from bench.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parent.parent
PLANNING_RATIO, PLANNING_MB = 1.5, 200
RESUME_MS = 50
NEWCOMER_MS = 100
PRECOPY_RATIO = 0.10

_HEAD = """# Benchmarks

Made by `make bench` (`python -m bench.run`); do not edit. What is said by hand is copied from `bench/notes.md`.

Guest: Linux {kernel}, four NUMA nodes, {cpus} emulated CPUs, accelerator {accelerator}, {rounds} rounds.
The host had {host_cpus} CPUs, and a load of {load} when this was made.

## Who is how much faster

A ratio is a contender's time divided by pageferry's in the same round, so 2.0 is twice as fast as the contender; given
are the median of the rounds and, in brackets, the least and the most. Contenders take turns within a round and the
order shifts from round to round. pageferry's time is all of it: snapshot, plan, move and tally, in a process that is
warm, as a daemon's is. No time is given by itself: those of an emulated machine say nothing about a real one, and
what an emulated CPU finds dear (starting programs, Python) is not what a real one does.
"""

_ASKED = """
## What was asked of the kernel

Base pages, medians. Requests are the addresses given to move_pages(2), retries counted; of what walks page tables in
the kernel, the present entries that it walked: once per process, and by cpuset.mems once per thread for each node that
is no longer allowed.
"""

_GROWTH = """
## How the cost grows with the number of processes

Each contender's median time, its own with four processes being 1.
"""

_PLANNING = """
## Planning

Natively, on real processes. Reading is reading their maps files once; planning is parse, share and place, all pages
taken as resident. The ratio does not count the reading itself.
"""

_RESUME = """
## What a hold costs a resume

From Slurm's own thaw of a job to the job's next step, on a real Slurm in the guest, in milliseconds: half of the
resumes with no agent on the host, half with one. Nothing is left to move, since it was looked at while the job was
suspended. The clock of whoever watches the thaw starts a little late on an emulated CPU, alike in both ways.
"""

_NEWCOMER = """
## How soon a newcomer is on its own CPUs

From the first instruction of a job that Slurm started on CPUs which another job was moved to, until it may run on none
of them, on a real Slurm in the guest, in milliseconds.
"""

_PRECOPY = """
## How long a running job stands still

When it is given other CPUs and its memory follows: all of it while it is held, against `--precopy`, which holds it for
its CPUs alone, and for the rest if the cgroup's counters say that it is more than next to nothing. The job itself notes
the longest time between two of its steps; it writes to its memory and takes more all the while. Both ways in turns,
there and back; each time all of its memory has to be there in the end.
"""


def ratios(runs: Mapping[str, Sequence[Mapping[str, float]]], peer: str, us: str) -> list[float]:
    """Return the peer's time divided by ours, for each round that both took part in."""
    return [theirs["seconds"] / mine["seconds"] for theirs, mine in zip(runs[peer], runs[us], strict=False)]


def comparison(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return the table of ratios and targets."""
    yield f"| scenario | contender | {OURS[0]} | {OURS[1]} | target | met |"
    yield "|---|---|---|---|---|---|"
    targets = {scenario.title: scenario.targets for scenario in SCENARIOS}
    for result in results:
        for peer in CONTENDERS:
            if peer in OURS:
                continue
            found = [ratios(result["runs"], peer, us) for us in OURS]
            target = targets[result["title"]].get(peer)
            met = [statistics.median(one) >= target for one in found] if target else []
            yield _row(
                result["title"],
                peer,
                *map(_spread, found),
                f"≥ {target:g}" if target else "",
                _met(met),
            )


def _met(met: Sequence[bool]) -> str:
    if not met:
        return ""
    if all(met):
        return "yes"
    return f"with {'one worker' if met[0] else 'two workers'}" if any(met) else "**no**"


def requests(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return the table of what everybody asked for, with the kernel's own count of moved pages as the witness."""
    yield "| scenario | contender | requests | unique misplaced pages | requests / unique | pgmigrate_success |"
    yield "|---|---|---|---|---|---|"
    for result in results:
        unique = statistics.median(run["misplaced"] for run in result["runs"][OURS[0]])
        for name, runs in result["runs"].items():
            asked, moved = (statistics.median(run[key] for run in runs) for key in ("requests", "migrated"))
            per_page = f"{asked / unique:.2f}" if unique else ("none asked" if not asked else "nothing to move")
            yield _row(result["title"], name, f"{asked:.0f}", f"{unique:.0f}", per_page, f"{moved:.0f}")


def growth(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return how each contender's time grows with the number of processes, its time with four of them being 1."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        state, shared, size = result["title"].partition(" of 1 GiB shared by ")
        if shared and size:
            series.setdefault(state, []).append(result)
    yield "| state | contender | 4 processes | 16 | 64 |"
    yield "|---|---|---|---|---|"
    for state, members in series.items():
        for name in CONTENDERS:
            times = [statistics.median(run["seconds"] for run in member["runs"][name]) for member in members]
            yield _row(state, name, *(f"{time / times[0]:.2f}" for time in times))


def planning(told: Mapping[str, Any]) -> Iterator[str]:
    """Return the table of what planning costs."""
    yield "| 256 processes with 2,100 mappings each | planning / reading | target | met | peak memory | target | met |"
    yield "|---|---|---|---|---|---|---|"
    for kind in ("forked", "exec'd"):
        one = told[kind]
        yield _row(
            kind,
            _spread([one["ratio"], one["least"], one["most"]]),
            f"≤ {PLANNING_RATIO}",
            "yes" if one["ratio"] <= PLANNING_RATIO else "**no**",
            f"{one['peak_mb']:.0f} MB",
            f"< {PLANNING_MB} MB",
            "yes" if one["peak_mb"] < PLANNING_MB else "**no**",
        )


def resumes(told: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Return the table of how long jobs took to run again, in milliseconds."""
    yield "| | resumes | median | 90 % within | most | ratio of medians | added, median (most) | target | met |"
    yield "|---|---|---|---|---|---|---|---|---|"
    alone = told["slurm"]
    for way, name in (("slurm", "Slurm alone"), ("pageferry", "with pageferry's agent")):
        delays = sorted(told[way])
        median = statistics.median(delays)
        added = (median - statistics.median(alone), max(delays) - statistics.median(alone))
        last = ("", "", "", "")
        if way == "pageferry":
            ratio = f"{median / statistics.median(alone):.2f}"
            base = statistics.median(alone)
            within = sum(delay - base <= RESUME_MS for delay in delays)
            met = "yes" if within == len(delays) else f"**{within} of {len(delays)}**"
            last = (ratio, f"{added[0]:.1f} ({added[1]:.1f})", f"≤ {RESUME_MS}", met)
        yield _row(name, str(len(delays)), *_distribution(delays), *last)


def newcomers(told: Sequence[float]) -> Iterator[str]:
    """Return the table of how long newcomers ran on CPUs of others, in milliseconds."""
    yield "| newcomers | median | 90 % within | most | target | met |"
    yield "|---|---|---|---|---|---|"
    delays = sorted(told)
    within = sum(delay <= NEWCOMER_MS for delay in delays)
    met = "yes" if within == len(delays) else f"**{within} of {len(delays)}**"
    yield _row(str(len(delays)), *_distribution(delays), f"≤ {NEWCOMER_MS}", met)


def precopies(told: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Return the table of how long a running job stood still, as ratios to a move of the whole."""
    yield "| | rounds | ratio of the longest stop, median (least–most) | target | met |"
    yield "|---|---|---|---|---|"
    whole = told["stopped"]
    shares = [ours / theirs for ours, theirs in zip(told["precopied"], whole, strict=True)]
    met = "yes" if statistics.median(shares) <= PRECOPY_RATIO else "**no**"
    yield _row("all of it while held", str(len(whole)), "1", "", "")
    yield _row("moved ahead", str(len(shares)), _spread(shares), f"≤ {PRECOPY_RATIO}", met)


def page(
    guest: Mapping[str, Any],
    native: Mapping[str, Any],
    resumed: Mapping[str, Sequence[float]],
    arrived: Sequence[float],
    copied: Mapping[str, Sequence[float]],
    notes: str,
) -> str:
    """Return docs/benchmarks.md."""
    results = guest["scenarios"]
    facts = {key: guest[key] for key in ("kernel", "cpus", "rounds", "accelerator", "load")}
    parts = [
        _HEAD.format(**facts, host_cpus=native["cpus"]),
        *comparison(results),
        _ASKED,
        *requests(results),
        _GROWTH,
        *growth(results),
        _PLANNING,
        *planning(native),
        _RESUME,
        *resumes(resumed),
        _NEWCOMER,
        *newcomers(arrived),
        _PRECOPY,
        *precopies(copied),
    ]
    return "\n".join(parts) + "\n" + (f"\n{notes.strip()}\n" if notes else "")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _distribution(ascending: Sequence[float]) -> tuple[str, str, str]:
    """Return the median, what 90 % are within, and the most."""
    values = (statistics.median(ascending), ascending[len(ascending) * 9 // 10 - 1], ascending[-1])
    return tuple(f"{value:.1f}" for value in values)  # type: ignore[return-value]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(*files: str) -> None:
    """Write docs/benchmarks.md from the five files."""
    notes = ROOT / "bench" / "notes.md"
    guest, native, resumed, arrived, copied = (json.loads(Path(file).read_text()) for file in files)
    text = page(guest, native, resumed, arrived, copied, notes.read_text() if notes.exists() else "")
    (ROOT / "docs" / "benchmarks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The part that needs NUMA nodes: runs every scenario, in the guest, and writes what it measured as JSON.

Contenders take turns, one run each per round, and the order shifts by one from round to round: what disturbs the host
disturbs all of them, and each moves there in one round and back in the next.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, OURS, Run
from bench.job import Job, standing
from bench.scenarios import SCATTER_STEP, SCENARIOS, Scenario, State

HOME, AWAY = 1, 2
"""The two nodes; node 0 holds what the guest itself needs."""

ROUNDS = 5

WARM_UP = ("migratepages", *OURS)
"""Who runs once before the first round: programs and modules are then in the page cache, as on any host in use."""

SELDOM = ("move_pages per process",)
"""Who takes part in the first round only where there is little to move: it takes a hundred times as long as others."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, by default everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose title has this text")
    arguments = parser.parse_args(argv)
    chosen = [scenario for scenario in SCENARIOS if arguments.only in scenario.title]
    results: list[dict[str, Any]] = []
    told = {"kernel": platform.release(), "cpus": os.cpu_count(), "rounds": arguments.rounds, "scenarios": results}
    for shape, scenarios in groupby(chosen, key=lambda scenario: scenario.shape):
        with standing(shape, HOME) as job:
            for scenario in scenarios:
                results.append(measured(scenario, job, arguments.rounds))
                Path(os.environ["PAGEFERRY_RESULTS"], "bench.json").write_text(json.dumps(told, indent=1) + "\n")


def measured(scenario: Scenario, job: Job, rounds: int) -> dict[str, Any]:
    """Run a scenario and return its title and, for each contender, its runs in the order of the rounds."""
    names = list(CONTENDERS)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    at = HOME
    for number in range(-1, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift] if number >= 0 else WARM_UP:
            if name in SELDOM and scenario.state is not State.ALL and number > 0:
                continue
            source, target = (at, HOME + AWAY - at) if scenario.state is State.ALL else (AWAY, at)
            if scenario.state is State.FEW:
                job.scatter(AWAY, SCATTER_STEP)
            before = _migrated()
            run = CONTENDERS[name](job, source, target)
            migrated = _migrated() - before
            at = target
            if number >= 0:
                runs[name].append(asdict(run) | {"migrated": migrated})
                _say(scenario, name, run, migrated)
    return {"title": scenario.title, "runs": runs}


def _say(scenario: Scenario, name: str, run: Run, migrated: int) -> None:
    print(
        f"{scenario.title}: {name}: {run.seconds:.4f} s ({run.planning:.4f} before the first page), "
        f"{run.requests} requests, {migrated} migrated",
        flush=True,
    )


def _migrated() -> int:
    counters: Mapping[str, str] = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters["pgmigrate_success"])


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s in all")

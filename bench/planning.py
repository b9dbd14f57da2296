"""What planning costs, on this host and without a guest: 256 processes with 2,100 mappings each.

`python -m bench.planning [FILE]` prints, and writes as JSON, how long planning took against reading the maps files
once, and the most memory that the process needed. Reading is measured on real processes: forked ones, whose maps are
alike, and ones that were exec'd, whose addresses all differ.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from bench.programs import program
from pageferry.kernel.procfs import read_maps
from pageferry_planner.maps import parse
from pageferry_planner.model import Host, Process, Runs, Snapshot, Target, Verdict
from pageferry_planner.pages import asked_per_process, holes
from pageferry_planner.placement import place
from pageferry_planner.sharing import share

PROCESSES, MAPPINGS, ROUNDS = 256, 2100, 5
PAGE_BYTES = 4096
_HOST = Host({0: 1 << 30, 1: 1 << 30}, {0: (1,), 1: (0,)})


def plan(texts: Sequence[bytes]) -> int:
    """Plan a move of all that the maps show, taking every page for resident on node 0; return the pages to move."""
    sharing = share(parse(texts), PAGE_BYTES)
    extents = sharing.extents
    seen = Runs.of_pages(
        extents.process, extents.page, extents.count, np.zeros_like(extents.page), extents.backing, extents.index
    )
    assert not holes(sharing, seen)
    processes = [Process(number, 0, "", frozenset({0}), frozenset({0, 1})) for number in range(len(texts))]
    snapshot = Snapshot(
        page_bytes=PAGE_BYTES,
        processes=tuple(processes),
        backings=sharing.backings,
        verdicts=(Verdict(True, "job-only"),) * len(sharing.backings),
        vmas=sharing.vmas,
        runs=seen,
        asked_per_process=asked_per_process(sharing, seen),
    )
    return place(snapshot, Target((1,)), _HOST).moves.pages()


def measured(pids: Sequence[int]) -> dict[str, float]:
    """Read and plan in turns; return the medians, their ratio pair by pair, and the peak memory in MB."""
    reading, planning = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        texts = [read_maps(pid) for pid in pids]
        read = time.perf_counter()
        plan(texts)
        planning.append(time.perf_counter() - read)
        reading.append(read - began)
        lines = sum(text.count(b"\n") for text in texts)
        del texts
        gc.collect()
    ratios = [one / other for one, other in zip(planning, reading, strict=True)]
    return {
        "lines": lines,
        "reading": statistics.median(reading),
        "planning": statistics.median(planning),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "peak_mb": _peak_mb(),
    }


@contextmanager
def processes(*, forked: bool) -> Iterator[list[int]]:
    """Start the processes and return their ids; end them when the context is left."""
    commands, each = (1, PROCESSES) if forked else (PROCESSES, 1)
    with tempfile.NamedTemporaryFile() as file, ExitStack() as stack:
        file.truncate(MAPPINGS * 2 * PAGE_BYTES)
        pids: list[int] = []
        for _ in range(commands):
            command = [str(program("mappings")), file.name, str(MAPPINGS), str(each)]
            first = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(first.kill)
            if not first.stdout or first.stdout.readline() != "ready\n":
                raise RuntimeError("the processes did not start")
            children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
            pids += [first.pid, *map(int, children)]
        yield pids


def _peak_mb() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def _apart(name: str, *, forked: bool) -> dict[str, float]:
    """Measure in a process of its own, so that its peak memory is its own."""
    with processes(forked=forked) as pids:
        command = [sys.executable, "-m", "bench.planning", "--pids", *map(str, pids)]
        found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(
        f"{name}: planning {found['ratio']:.2f} x reading ({found['least']:.2f}-{found['most']:.2f}; "
        f"{found['planning']:.3f} s, {found['reading']:.3f} s), peak {found['peak_mb']:.0f} MB",
        flush=True,
    )
    return found


def main() -> None:
    """Measure both kinds of processes; with --pids, those given."""
    if sys.argv[1:2] == ["--pids"]:
        print(json.dumps(measured([int(pid) for pid in sys.argv[2:]])))
        return
    told = {"forked": _apart("forked", forked=True), "exec'd": _apart("exec'd", forked=False), "cpus": os.cpu_count()}
    for path in sys.argv[1:]:
        Path(path).write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What one look at a job costs, on this host and without a guest, against the kernel's own walks of the same memory.

`make look [AGAINST=REV]` prints a table. A look is `ferry.survey` in a process that is warm, as a daemon's is; nothing
has to move. The peers: mbind(2) with MPOL_MF_STRICT over all of it in each process, which is the walk of the kernel's
migration (mm/mempolicy.c queue_pages_range()), and one read of each process's numa_maps. `--against` is an earlier
commit of this repository, whose look takes turns with this one's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from guest.ranks import HUGE, MADV_HUGEPAGE, MADV_POPULATE_WRITE, SHARED, Job, Memory, job

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("planner", "plugin")
ANONYMOUS = 0x20
GIB = 1 << 18
"""In pages."""

LOOKER = """
import sys, time
from pageferry import ferry
from pageferry_planner.policy import Rules
for line in sys.stdin:
    pids = [int(word) for word in line.split()]
    began = time.perf_counter()
    snapshot, _ = ferry.survey(pids, Rules())
    print(time.perf_counter() - began, snapshot.runs.pages(), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A job of so many processes, with `pages` that all of them map, or that one has; in huge pages or not."""

    processes: int
    pages: int
    huge: bool = False

    def make(self, made: Job) -> list[Memory]:
        """Give a job of one process its memory and its other processes; return what each maps of it."""
        shared = self.processes > 1
        flags = SHARED | ANONYMOUS if shared else 0x02
        memory = made.first.map(self.pages, flags=flags, align=HUGE if self.huge else 1)
        if self.huge:
            memory.tell("madvise", MADV_HUGEPAGE)
        everybody = [memory, *(memory.of(rank) for rank in made.fork(self.processes - 1))]
        for mine in everybody:
            mine.tell("madvise", MADV_POPULATE_WRITE)
        return everybody


SCENARIOS: Mapping[str, Scenario] = {
    "shared-4": Scenario(4, GIB),
    "shared-16": Scenario(16, GIB),
    "shared-64": Scenario(64, GIB),
    "one-4k": Scenario(1, 4 * GIB),
    "one-huge": Scenario(1, GIB + GIB // 2, huge=True),
}


class Looker:
    """A warm process with the pageferry below a folder, that looks when it is told to."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        paths = os.pathsep.join(str(folder / name) for name in PRODUCT)
        environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOKER], stdin=pipe, stdout=pipe, text=True, env=environment
        )
        stack.enter_context(self._process)
        stack.callback(self._process.kill)

    def look(self, pids: Sequence[int]) -> tuple[float, int]:
        """Return the seconds that a look at processes took, and the pages that it found."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{' '.join(map(str, pids))}\n")
        self._process.stdin.flush()
        seconds, pages = self._process.stdout.readline().split()
        return float(seconds), int(pages)


@contextmanager
def commit(revision: str) -> Iterator[Path]:
    """Return a folder with the product as an earlier commit has it."""
    with tempfile.TemporaryDirectory(prefix="look-") as folder:
        archive = subprocess.run(["git", "archive", revision, *PRODUCT], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
        yield Path(folder)


def walked(memories: Sequence[Memory]) -> float:
    """Return the seconds that the kernel's walk of the memory takes, for all processes one after another."""
    seconds: list[float] = [memory.rank.ask("walk", memory.address, memory.pages) for memory in memories]
    return sum(seconds)


def read(pids: Sequence[int]) -> float:
    """Return the seconds that reading each process's numa_maps takes."""
    began = time.perf_counter()
    for pid in pids:
        Path(f"/proc/{pid}/numa_maps").read_bytes()
    return time.perf_counter() - began


def median(ratios: Sequence[float]) -> str:
    """Return the median of ratios, with the least and the most."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def measure(scenario: Scenario, rounds: int, ours: Looker, theirs: Looker | None) -> dict[str, str]:
    """Let all take turns, and return what each took, our look's time being 1; and our look's milliseconds."""
    with job() as made:
        memories = scenario.make(made)
        contenders: dict[str, Callable[[], float]] = {
            "pageferry": lambda: ours.look(made.pids)[0],
            "mbind STRICT x processes": lambda: walked(memories),
            "numa_maps of each": lambda: read(made.pids),
        }
        if theirs is not None:
            before = theirs
            contenders["pageferry before"] = lambda: before.look(made.pids)[0]
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(-1, rounds):
            names = list(contenders)[:: 1 if number % 2 else -1]
            for name in names:
                seconds = contenders[name]()
                if number >= 0:  # the first round warms up
                    times[name].append(seconds)
        _, pages = ours.look(made.pids)
        assert pages >= scenario.pages
    mine = times.pop("pageferry")
    found = {"milliseconds": f"{statistics.median(mine) * 1e3:.1f}"}
    for name, others in times.items():
        found[name] = median([other / own for own, other in zip(mine, others, strict=True)])
    return found


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.look", description=__doc__)
    parser.add_argument("--against", metavar="REV", help="an earlier commit, whose look takes turns with this one's")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(SCENARIOS)}; all")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        ours, theirs = Looker(ROOT, stack), None
        if arguments.against:
            theirs = Looker(stack.enter_context(commit(arguments.against)), stack)
        for name in arguments.scenarios or SCENARIOS:
            found = measure(SCENARIOS[name], arguments.rounds, ours, theirs)
            print(f"{name:10} look {found.pop('milliseconds'):>8} ms; times of it:", flush=True)
            for other, ratio in found.items():
                print(f"{'':10} {other:26} {ratio}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The account of a job whose processes do with their memory whatever a seed says.

What a seed does is the same each time as long as the job stands still between its moves. One that has failed is tried
again by `pytest tests/guest/test_fuzz_account.py --fuzz-seed N -k kept`, in the guest that it failed in.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest import ranks
from guest.fuzz_round import frozen, requested, running, small_batches
from guest.fuzz_tree import Tree, tree
from pageferry import mover

pytestmark = pytest.mark.fuzz

KEPT = (4, 5, 6, 8)
"""Three by which a job stands still when it is moved, and one by which it runs; add those that find something."""

MOVES, STEPS = 4, 24
KSM = Path("/sys/kernel/mm/ksm")
GROUPS = Path("/sys/fs/cgroup")
FILE_BYTES = 256 * 4096


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try the seeds of the command line instead of those that are kept."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", metafunc.config.getoption("--fuzz-seed") or KEPT)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a tree lives: its files, of shared memory and of a disk in turn, and its cgroups."""

    folder: Path
    files: tuple[Path, ...]
    job: Path
    other: Path


@pytest.fixture
def ground(scratch: Path) -> Iterator[Ground]:
    """A disk with files and swap, files of shared memory, hugetlb pages on each node, and cgroups."""
    swap = scratch / "swap"
    with swap.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 << 20)
    swap.chmod(0o600)
    folder = Path("/dev/shm/fuzz")
    made = Ground(
        folder,
        (folder / "even", folder / "odd", scratch / "even", scratch / "odd"),
        GROUPS / "fuzz-job",
        GROUPS / "fuzz-other",
    )
    sizes = [
        Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages") for node in ranks.nodes()
    ]
    with ExitStack() as stack:
        for path in (folder, made.job, made.other):
            path.mkdir()
            stack.callback(path.rmdir)
        for path in made.files:
            stack.callback(path.unlink)
        subprocess.run(["mkswap", swap], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", swap], check=True)
        stack.callback(lambda: subprocess.run(["swapoff", swap], check=True))
        for path in sizes:
            stack.callback(path.write_text, "0")
            path.write_text("4")
        stack.callback((KSM / "run").write_text, "2")
        (KSM / "pages_to_scan").write_text("5000")
        yield made


def move_group(group: Path, pid: int) -> None:
    """Put a process into a cgroup."""
    (group / "cgroup.procs").write_text(str(pid))


def merge_alike() -> None:
    """Have KSM look at all that it may merge, and then stand still."""
    scans = int((KSM / "full_scans").read_text())
    (KSM / "run").write_text("1")
    deadline = time.monotonic() + 5
    while int((KSM / "full_scans").read_text()) < scans + 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    (KSM / "run").write_text("0")


def fuzz(seed: int, ground: Ground, patch: pytest.MonkeyPatch) -> None:
    """Move a tree that does what a seed says, several times, and assert what holds each time."""
    chance = random.Random(seed)
    nodes = ranks.nodes()
    for path in ground.files:
        path.write_bytes(b"")
        os.truncate(path, FILE_BYTES)
    with ExitStack() as stack:
        outside: list[int] = []
        if chance.random() < 0.5:
            visitor = stack.enter_context(ranks.job(node=1)).first
            visitor.map(64).write()
            visitor.map(256, ground.files[chance.randrange(4)], flags=ranks.SHARED).read(0, 100)
            outside.append(visitor.pid)
        made = stack.enter_context(tree(seed, ground.files, nodes, ground.folder))
        move_group(ground.job, made.members[0].pid)
        stack.callback((ground.folder / "orders").unlink)
        try:
            live = chance.random() < 0.3
            for _ in range(MOVES):
                one_move(chance, made, ground, outside, patch, live=live)
        except BaseException as error:
            error.add_note(f"seed {seed}; what its processes did last:\n{made.said()}")
            raise


def one_move(
    chance: random.Random, made: Tree, ground: Ground, outside: list[int], patch: pytest.MonkeyPatch, *, live: bool
) -> None:
    """Let the tree do something, move it, and assert what holds."""
    made.step(STEPS)
    if chance.random() < 0.3:
        merge_alike()
    for name, value in small_batches(chance).items():
        patch.setattr(mover, name, value)
    request = requested(chance, ranks.nodes())
    made.log.append(f"moves, {'live' if live else 'frozen'}: {request}")
    if live:
        if chance.random() < 0.5:
            (KSM / "run").write_text("1")
        running(made, request, ground.job / "cgroup.procs", outside)
        (KSM / "run").write_text("0")
    else:
        apart = {chance.choice(made.pids)} if len(made.pids) > 1 and chance.random() < 0.3 else set()
        for pid in apart:
            move_group(ground.other, pid)
        made.apart = frozenset(apart)
        made.log.append(f"apart: {apart}")
        frozen(made, request, ground.files, [*outside, *apart])
        made.apart = frozenset()
        for pid in apart:
            move_group(ground.job, pid)
    assert made.wrong() == []


def test_the_account_of_kept_seeds_is_the_census(seed: int, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(seed, ground, monkeypatch)


def test_the_account_of_fresh_seeds_is_the_census(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    end, tried = time.monotonic() + pytestconfig.getoption("--fuzz-seconds"), 0
    while time.monotonic() < end:
        fuzz(random.SystemRandom().randrange(1 << 30), ground, monkeypatch)
        tried += 1
    print(f"{tried} seeds")

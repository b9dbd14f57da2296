"""Jobs of ranks that count and keep a diary, and what can be read of them from outside."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guest.vm.jobs import Slurm, wait_until

PROGRAM = Path(__file__).with_name("steady_rank.py")


def stood_still(entry: dict[str, Any], count: int) -> bool:
    """Say whether a rank that noted a gap had made no step since it was seen, from outside, to have counted so far."""
    return entry["count"] - count in ({0, 1} if entry["under_way"] else {0})


@dataclass(frozen=True, slots=True)
class Steady:
    """A Slurm job of steady ranks: its id, its folder, and how many ranks it has."""

    slurm: Slurm
    id: int
    folder: Path
    ranks: int

    def counts(self) -> list[int]:
        """Return how far each rank has counted."""
        return [struct.unpack_from("<Q", (self.folder / f"{rank}.count").read_bytes())[0] for rank in range(self.ranks)]

    def diary(self, rank: int = 0) -> list[dict[str, Any]]:
        """Return what a rank has noted."""
        return [json.loads(line) for line in (self.folder / f"{rank}.diary").read_text().splitlines()]

    def entries(self, number: int) -> list[dict[str, Any]]:
        """Wait until each rank has its entry `number` (0 is the start's), and return them."""
        return self.first_after([number] * self.ranks)

    def noted(self) -> list[int]:
        """Return how many entries each rank has by now; a slow machine makes gaps, too."""
        return [len(self.diary(rank)) for rank in range(self.ranks)]

    def first_after(self, noted: Sequence[int]) -> list[dict[str, Any]]:
        """Wait until each rank has one more entry than were `noted`, and return these."""
        ranks = list(enumerate(noted))
        wait_until(lambda: all(len(self.diary(rank)) > number for rank, number in ranks), f"diary entries {noted}")
        return [self.diary(rank)[number] for rank, number in ranks]

    def runs(self) -> bool:
        """Say whether every rank goes on counting, waiting for it a little."""
        before = self.counts()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if all(now > then for now, then in zip(self.counts(), before, strict=True)):
                return True
            time.sleep(0.05)
        return False

    def end(self) -> None:
        """Cancel the job; its memory is free when this returns."""
        self.slurm.cancel(self.id)
        wait_until(lambda: not self.slurm.pids(self.id), f"job {self.id} is gone")
        shutil.rmtree(self.folder, ignore_errors=True)


def submit(
    slurm: Slurm,
    *options: str,
    mib: int = 8,
    shared_mib: int = 0,
    ranks: int = 1,
    srun: str = "",
    limit_mib: int = 400,
) -> Steady:
    """Submit a job and wait until every rank has begun; several ranks (or `srun` options) are started by srun."""
    folder = Path("/dev/shm") / f"steady-{time.monotonic_ns()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    if shared_mib:
        with (folder / "segment").open("wb") as file:
            file.truncate(shared_mib << 20)
        (folder / "segment").chmod(0o666)
    program = f"{sys.executable} -I -S {PROGRAM} {folder} {mib} {shared_mib or ''}"
    launcher = f"srun --overcommit -n{ranks} {srun} " if ranks > 1 or srun else ""
    job = slurm.submit(f"exec {launcher}{program}", *(options or ("-n1",)), f"--mem={limit_mib}")
    begun = Steady(slurm, job, folder, ranks)
    wait_until(
        lambda: all((folder / f"{rank}.diary").exists() and begun.diary(rank) for rank in range(ranks)),
        f"job {job} has begun: {slurm.output(job)!r}",
        90,
    )
    return begun

"""The main job, end to end, on a real Slurm: a job of 8 ranks is suspended, given other nodes, and resumed.

Run by `make demo`; it fails if anything is not as it says. The commands are those that an operator types.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from guest.demo_rank import SHARED_BYTES
from guest.vm import slurm as daemons
from guest.vm.jobs import Slurm, wait_until

RANKS = 8
BEGAN = time.monotonic()
FOLDER = Path("/dev/shm/demo")
SCRIPT = """#!/bin/sh
exec srun --overcommit -n{ranks} {python} {rank} {folder}
"""


def main() -> int:
    """Show the main job; return the exit code."""
    slurm = daemons.start()
    prepare()
    job = submit(slurm)
    say(f"Slurm job {job}: {RANKS} ranks, {SHARED_BYTES >> 20} MiB shared, private memory and a library of its own")
    before = status(job)
    assert before["cpu_nodes"] == [0, 1], before
    nodes, cpus = "2-3", "4-7"
    shown("pageferry", "status", str(job))

    shown("scontrol", "suspend", str(job))
    wait_until(lambda: slurm.frozen(job), "the job is frozen")
    shown("pageferry", "plan", str(job), "--to", nodes)
    plan = asked("pageferry", "plan", str(job), "--to", nodes, "--json")
    assert any(move["what"].endswith("libjob.so") for move in plan["moves"]), "the job's own library moves"
    assert any("libc.so" in stay["what"] for stay in plan["stays"]), "the host's library stays"
    shown("pageferry", "move", str(job), "--to", nodes, "--cpus", cpus)
    assert slurm.frozen(job), "the job moved while it stood still"
    shown("pageferry", "status", str(job))
    after = status(job)
    assert after["remote_bytes"] == 0, after
    assert after["cpu_nodes"] == [2, 3], after

    shown("scontrol", "resume", str(job))
    slurm.wait_state(job, "RUNNING")
    (FOLDER / "stop").touch()
    slurm.wait_state(job, "COMPLETED", timeout_s=120)
    say("the job ran on, and ended:")
    print(slurm.output(job), flush=True)
    right = slurm.output(job).count("checksums right")
    assert right == RANKS, f"{right} of {RANKS} ranks had the right checksums"
    there = slurm.output(job).count("now on CPUs 4,5,6,7\n")
    assert there == RANKS, f"{there} of {RANKS} ranks are on CPUs {cpus}"
    say("every checksum is right, every rank is on its new CPUs, and its memory is there")
    return 0


def prepare() -> None:
    """Lay out the job's files, on node 0: the shared segment, and a library that nobody else maps."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(mode=0o755)
    with (FOLDER / "segment").open("wb") as file:
        file.truncate(SHARED_BYTES)
    shutil.copy("/usr/lib/x86_64-linux-gnu/libm.so.6", FOLDER / "libjob.so")
    os.sched_setaffinity(0, ours)


def submit(slurm: Slurm) -> int:
    """Submit the job and wait until every rank has touched its memory."""
    words = {"python": sys.executable, "rank": Path(__file__).with_name("demo_rank.py"), "folder": FOLDER}
    job = slurm.submit(SCRIPT.format(**words, ranks=RANKS), "-n4", "--distribution=block:block", "--mem=1024")
    wait_until(lambda: len(list(FOLDER.glob("ready.*"))) == RANKS, f"{RANKS} ranks ready: {slurm.output(job)}", 90)
    return job


def status(job: int) -> dict[str, Any]:
    """Return what `pageferry status` says of the one job."""
    (one,) = asked("pageferry", "status", str(job), "--json")
    answer: dict[str, Any] = one
    return answer


def asked(*command: str) -> Any:
    """Return the answer of a command as a program reads it."""
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)


def shown(*command: str) -> None:
    """Run a command as an operator would see it."""
    print(f"\n[{time.monotonic() - BEGAN:.0f} s] # {' '.join(command)}", flush=True)
    subprocess.run(command, check=True, timeout=120)


def say(text: str) -> None:
    """Print a remark of our own."""
    print(f"\n[{time.monotonic() - BEGAN:.0f} s] === {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

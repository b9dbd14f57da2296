"""The main job, end to end, on a real Slurm: the operator uses scontrol, and the agent does the rest by itself.

A job of 8 ranks is given other nodes while it is suspended, and finds its memory there in its first instruction. Then
a neighbour ends, and memory that had spilled because of it comes home. Run by `make demo`; it fails if anything is not
as it says. The commands are those that an operator types.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from guest import agents, nursery
from guest.demo_rank import SHARED_BYTES
from guest.steady import Steady
from guest.steady import submit as submit_steady
from guest.vm import slurm as daemons
from guest.vm.jobs import Slurm, wait_until
from pageferry.render import SlurmOptions, render_slurm, shipped

RANKS = 8
# Beside what the neighbour leaves, the kernel may give up some tens of MiB of page cache while the job comes.
SPILLED_MIB = 160
BEGAN = time.monotonic()
FOLDER = Path("/dev/shm/demo")
RENDERED = frozenset({"ProctrackType", "TaskPlugin", "ConstrainCores"})
SCRIPT = """#!/bin/sh
exec srun --overcommit -n{ranks} {python} {rank} {folder}
"""
HERE = Path(__file__).parent


def main() -> int:
    """Show the main job; return the exit code."""
    slurm = start_site()
    log = daemons.log_folder() / "agent.log"
    with agents.agent(log, loads=True):
        say("Slurm runs with the files of `pageferry render slurm`, and `pageferry agent` beside it")
        prepare()
        job = submit(slurm)
        reassigned(slurm, job)
        spilled(slurm)
        finish(slurm, job)
        shown("pageferry", "history")
        shown("pageferry", "cpus")
    print(f"\n--- the agent's log\n{log.read_text()}", flush=True)
    daemons.stop()
    return 0


def start_site() -> Slurm:
    """Start Slurm as a site does that has read contrib/slurm.conf.d/README.md."""
    render_slurm(daemons.CONF, SlurmOptions(shipped("hooks") / "slurm"))
    shutil.copy(shipped("hooks") / "slurm/job_submit.lua", daemons.CONF)
    return daemons.start(extra="Include pageferry.conf", cgroup_extra="Include pageferry-cgroup.conf", without=RENDERED)


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
    words = {"python": sys.executable, "rank": HERE / "demo_rank.py", "folder": FOLDER}
    job = slurm.submit(SCRIPT.format(**words, ranks=RANKS), "-n4", "--distribution=block:block", "--mem=1024")
    wait_until(lambda: len(list(FOLDER.glob("ready.*"))) == RANKS, f"{RANKS} ranks ready: {slurm.output(job)}", 90)
    return job


def reassigned(slurm: Slurm, job: int) -> None:
    """Have the operator give the job other nodes, by scontrol alone."""
    say(f"job {job}: {RANKS} ranks, {SHARED_BYTES >> 20} MiB shared, private memory and a library of its own")
    before = status(job)
    assert before["cpu_nodes"] == [0, 1], before
    shown("pageferry", "status", str(job))
    shown("scontrol", "update", f"JobId={job}", "AdminComment=pageferry:nodes=2-x", fails=True)
    shown("scontrol", "update", f"JobId={job}", "AdminComment=pageferry:nodes=2-3")
    shown("scontrol", "suspend", str(job))
    wait_until(lambda: slurm.frozen(job), "the job is frozen")
    wait_until(lambda: bool(history(job)), "the agent has moved it")
    say("the agent saw Slurm freeze the job, read the request, gave it CPUs on nodes 2-3 and moved its memory there")
    shown("scontrol", "resume", str(job))
    slurm.wait_state(job, "RUNNING")
    wait_until(lambda: len(list(FOLDER.glob("found.*"))) == RANKS, "every rank has said what it found")
    shown("pageferry", "status", str(job))
    shown("pageferry", "cpus")
    after = status(job)
    assert after["remote_bytes"] == 0, after
    assert after["cpu_nodes"] == [2, 3], after
    for found in FOLDER.glob("found.*"):
        cpus, nodes = found.read_text().split(";")
        assert cpus == "4,5,6,7", f"{found.name}: on CPUs {cpus}"
        assert set(nodes.split(",")) <= {"2", "3"}, f"{found.name}: memory on nodes {nodes}"
    wait_until(lambda: "moved" in comment(job), "the outcome is in the job's comment")
    say(f"the ranks' first instructions found everything in place; AdminComment={comment(job)!r}")


def spilled(slurm: Slurm) -> None:
    """Have a neighbour end whose memory was in another job's way."""
    node = 0
    say("a neighbour takes the memory of node 0; a job that starts beside it finds no room there")
    neighbour = slurm.submit(
        f"exec {sys.executable} {HERE / 'demo_neighbour.py'} {node} 40 {FOLDER}", "-n1", "--mem=2000"
    )
    wait_until((FOLDER / "filled").exists, f"the neighbour has filled node {node}: {slurm.output(neighbour)}", 90)
    job = submit_steady(slurm, mib=SPILLED_MIB)
    shown("pageferry", "cpus")
    shown("pageferry", "status", str(job.id))
    away = status(job.id)["remote_bytes"]
    assert status(job.id)["cpu_nodes"] == [node], "the job got the CPUs that the first one left"
    assert away > SPILLED_MIB << 18, f"{away} bytes spilled"
    shown("scancel", str(neighbour))
    wait_until(lambda: came_home(job), "its memory comes home")
    shown("pageferry", "status", str(job.id))
    assert status(job.id)["remote_bytes"] < away / 4
    assert job.runs(), "it was never stopped"
    assert max(entry["gap"] for entry in job.diary()) < 5, "it was never stopped"
    say("the neighbour's end brought it home: live, and nobody asked for it")
    job.end()


def finish(slurm: Slurm, job: int) -> None:
    """Let the job end, and look at its sums."""
    (FOLDER / "stop").touch()
    slurm.wait_state(job, "COMPLETED", timeout_s=120)
    say("the job ran on, and ended:")
    print(slurm.output(job), flush=True)
    right = slurm.output(job).count("checksums right")
    assert right == RANKS, f"{right} of {RANKS} ranks had the right checksums"


def came_home(job: Steady) -> bool:
    """Say whether the agent has brought a job's memory home."""
    return any(row["event"] == "spill" for row in history(job.id))


def history(job: int) -> list[dict[str, Any]]:
    """Return what the agent has recorded of a job."""
    rows: list[dict[str, Any]] = asked("history", str(job))["migrations"]
    return rows


def comment(job: int) -> str:
    """Return the job's AdminComment as scontrol shows it."""
    shown_job = subprocess.run(["scontrol", "show", "job", str(job)], stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in shown_job.stdout.splitlines() if "AdminComment=" in line]
    return lines[0].partition("AdminComment=")[2].strip() if lines else ""


def status(job: int) -> dict[str, Any]:
    """Return what `pageferry status` says of the one job."""
    (one,) = asked("status", str(job))
    answer: dict[str, Any] = one
    return answer


def asked(*words: str) -> Any:
    """Return the answer of one of our commands as a program reads it."""
    return json.loads(nursery.run(*words, "--json").stdout)


def shown(*command: str, fails: bool = False) -> None:
    """Run a command as an operator would see it."""
    print(f"\n[{time.monotonic() - BEGAN:.0f} s] # {' '.join(command)}", flush=True)
    code = subprocess.run(command, check=False, timeout=120).returncode
    assert (code != 0) == fails, f"{' '.join(command)}: exit code {code}"


def say(text: str) -> None:
    """Print a remark of our own."""
    print(f"\n[{time.monotonic() - BEGAN:.0f} s] === {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

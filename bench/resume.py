"""What a hold costs a resume: the time from Slurm's own thaw to the job's next step, with and without an agent.

On a real Slurm in the guest. Nothing is left to move when the jobs are resumed, since it was looked at while they were
suspended. Half of the rounds without an agent come before those with one, half after. Slurm's thaw is the moment when
the watch reports the write to `cgroup.freeze`; the next step is the one that the job's rank notes down itself, on the
same clock.
"""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from guest import agents
from guest.steady import Steady, submit
from guest.vm import slurm as daemons
from guest.vm.jobs import wait_until
from pageferry.agent.watch import Watch
from pageferry.schedulers.slurm_cgroups import slurm_job_suspension
from pageferry.schedulers.slurm_tree import Kind

JOBS = 5
ROUNDS = 10


def main(output: Path) -> int:
    """Measure JOBS x ROUNDS resumes each way, and write the milliseconds down."""
    slurm = daemons.start()
    jobs = [submit(slurm, mib=2) for _ in range(JOBS)]
    told: dict[str, list[float]] = {"slurm": [], "pageferry": []}
    for block, way in enumerate(("slurm", "pageferry", "pageferry", "slurm")):
        log = Path(f"/run/results/bench-agent-{block}.log")
        with agents.agent(log) if way == "pageferry" else nullcontext() as agent:
            for _ in range(ROUNDS // 2):
                told[way] += resumes(jobs, agent)
                print(f"{way}: {len(told[way])} resumes, {[round(ms) for ms in told[way][-JOBS:]]} ms", flush=True)
    for job in jobs:
        job.end()
    daemons.stop()
    output.write_text(json.dumps(told) + "\n")
    for way, delays in told.items():
        print(
            f"{way}: median {statistics.median(delays):.1f} ms, most {max(delays):.1f} ms of {len(delays)}", flush=True
        )
    return 0


def resumes(jobs: list[Steady], agent: agents.Agent | None) -> list[float]:
    """Suspend all jobs, and resume them one after another; return the delay of each in milliseconds."""
    if agent is not None:
        wait_until(lambda: all(agent.phase(job.id) for job in jobs), "the agent knows all jobs")
    entries = {job.id: len(job.diary()) for job in jobs}
    for job in jobs:
        subprocess.run(["scontrol", "suspend", str(job.id)], check=True)
    wait_until(lambda: all(job.slurm.frozen(job.id) for job in jobs), "all jobs are frozen")
    if agent is not None:
        asked = agent
        wait_until(lambda: all(is_ready(asked, job.id) for job in jobs), "nothing is left to do for any job", 120)
    delays = []
    for job in jobs:
        with thaw_of(job.id) as thawed:
            subprocess.run(["scontrol", "resume", str(job.id)], check=True)
            (entry,) = job.entries(entries[job.id])
        delays.append((entry["at"] - thawed[0]) * 1000)
    return delays


def is_ready(agent: agents.Agent, job: int) -> bool:
    """Say whether a job is held and its memory in place."""
    state = agent.ask("status")["jobs"][str(job)]
    return state["phase"] == "held" and state["stage"] is None


@contextmanager
def thaw_of(job: int) -> Iterator[list[float]]:
    """Note when Slurm has thawed a job: the list has the time once it has."""
    moments: list[float] = []
    done = threading.Event()
    watch = Watch()

    def wait() -> None:
        while not done.is_set():
            if select.select([watch.fileno()], [], [], 0.5)[0]:
                now = time.monotonic()
                events = [event for event in watch.events() if event.job == job and event.kind is Kind.FREEZER]
                if events and not slurm_job_suspension(job).asked:
                    moments.append(now)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield moments
    finally:
        done.set()
        thread.join()
        watch.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Jobs come and go, are suspended, resumed, moved and cancelled at random, while the agent is killed again and again.

`python -m guest.soak`, in the guest, with Slurm running. First the agent is left alone and its memory is watched, then
it is killed at random moments, each time to be started again. At the end no job may be left held, each must have ended
as it was told to, and must have run on after each of its suspensions.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from guest import agents, freezing
from guest.agents import RUN, Agent
from guest.steady import Steady, submit
from guest.vm import slurm as daemons
from guest.vm.jobs import ENDED, Slurm, wait_until

SETTINGS = "[agent]\nmax_hold_seconds = 10\n"
AT_ONCE = 6
MAY_GROW = 1.05
"""The agent's resident memory in the last quarter, over that in the first."""

SAMPLE_SECONDS = 2.0
REQUESTS = (
    "nodes={a}",
    "nodes={a}",
    "nodes={a},{b}",
    "nodes={a},strategy=pack",
    "nodes={a},{b},strategy=interleave",
    "nodes={a},{b},strategy=weighted",
    "nodes=99",
)


@dataclass
class Soak:
    """One run: what is wanted of it, and what has happened so far."""

    slurm: Slurm
    wanted: argparse.Namespace
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def job_seconds(self) -> float:
        """How long a job lives, so that enough of them fit; starting and ending takes as long again."""
        return float(min(30.0, self.wanted.seconds * AT_ONCE / self.wanted.jobs / 2))

    def work(self, seed: int) -> None:
        """Have one job after another, until all is over."""
        chance = random.Random(seed)
        while not self.over.is_set():
            try:
                self.one_job(chance)
            except Exception as error:  # noqa: BLE001 - a fault of the run, said at its end
                self.faults.append(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}")
                self.counts["faults"] += 1

    def one_job(self, chance: random.Random) -> None:
        """Have a job, suspend and resume it a number of times, and see it end as it is told to."""
        job = submit(self.slurm, "-n1", mib=chance.choice((1, 2, 4)))
        self.counts["jobs"] += 1
        until = time.monotonic() + chance.uniform(0.3, 1) * self.job_seconds()
        while time.monotonic() < until:
            self.cycle(job, chance)
            assert job.runs(), f"job {job.id} does not run on; Slurm says {self.slurm.state(job.id)}"
            self.counts["ran on"] += 1
        assert all(entry["intact"] for entry in job.diary()), f"job {job.id} has lost content"
        if chance.random() < 0.5:
            self.completes(job)
        else:
            self.is_cancelled(job, chance)
        wait_until(lambda: not self.slurm.step_freezers(job.id), f"no group of job {job.id} is left")
        shutil.rmtree(job.folder)

    def cycle(self, job: Steady, chance: random.Random) -> None:
        """Suspend and resume a job once: by Slurm, or by writing what slurmd writes, which is faster."""
        if chance.random() < 0.4:
            nodes = chance.sample(range(4), 2)
            request = "pageferry:" + chance.choice(REQUESTS).format(a=nodes[0], b=nodes[1])
            subprocess.run(["scontrol", "update", f"JobId={job.id}", f"AdminComment={request}"], check=True)
            self.counts["requests"] += 1
        real = chance.random() < 0.3
        self.counts["cycles of Slurm" if real else "cycles of written freezers"] += 1
        if real:
            self.slurm.suspend(job.id)
        else:
            freezing.write(self.slurm, job.id, True)
        time.sleep(chance.choice((0, 0.01, chance.uniform(0, 4))))
        if real:
            self.slurm.resume(job.id)
        else:
            freezing.write(self.slurm, job.id, False)

    def completes(self, job: Steady) -> None:
        """Have a job end by itself."""
        (job.folder / "stop").touch()
        wait_until(lambda: self.slurm.state(job.id) in ENDED, f"job {job.id} ends by itself")
        assert (state := self.slurm.state(job.id)) == "COMPLETED", f"job {job.id} is {state}"
        self.counts["completed"] += 1

    def is_cancelled(self, job: Steady, chance: random.Random) -> None:
        """Cancel a job, perhaps one that is suspended or on its way back."""
        if (way := chance.randrange(3)) != 0:
            self.slurm.suspend(job.id)
        if way == 2:
            subprocess.run(["scontrol", "resume", str(job.id)], check=True)
        self.slurm.cancel(job.id)
        assert (state := self.slurm.state(job.id)) == "CANCELLED", f"job {job.id} is {state}"
        self.counts["cancelled"] += 1

    def watch_memory(self, agent: Agent) -> list[int]:
        """Return the agent's resident memory, in KiB, sampled for the first half of the time."""
        assert agent.process is not None
        until = time.monotonic() + self.wanted.seconds / 2
        samples = []
        while time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)
            samples.append(int(Path(f"/proc/{agent.process.pid}/status").read_text().split("VmRSS:")[1].split()[0]))
        return samples

    def kill(self, agent: Agent) -> None:
        """Kill the agent at random moments, all over the second half of the time, and have it start again."""
        chance = random.Random(self.wanted.seed)
        began = time.monotonic()
        for number in range(self.wanted.kills):
            due = began + self.wanted.seconds / 2 * (number + chance.random()) / self.wanted.kills
            time.sleep(max(0.0, due - time.monotonic(), chance.uniform(0, 0.3)))
            agent.kill()
            self.counts["kills"] += 1
            agent.start()
        time.sleep(max(0.0, began + self.wanted.seconds / 2 - time.monotonic()))

    def settle(self, agent: Agent) -> None:
        """See at the end that nothing is left: no job, no hold, no record of one."""
        wait_until(lambda: not agent.ask("status")["jobs"], "the agent has forgotten all jobs")
        wait_until(lambda: not list((RUN / "holds").glob("*.hold")), "no hold is on record")
        left = [str(path) for path in (RUN / "holds").glob("*.undone")]
        assert not left, f"something was not released: {left}"
        queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
        assert not queue.strip(), f"jobs are left:\n{queue}"

    def report(self, samples: list[int]) -> None:
        """Print what happened; memory that grew is a fault."""
        quarter = max(1, len(samples) // 4)
        first, last = statistics.median(samples[:quarter]), statistics.median(samples[-quarter:])
        if last > first * MAY_GROW:
            self.faults.append(f"the agent's memory grew from {first:.0f} to {last:.0f} KiB")
        for name, number in sorted(self.counts.items()):
            print(f"{name:28} {number:6}")
        print(f"agent's RSS, KiB: {' '.join(map(str, samples[:: max(1, len(samples) // 20)]))}")
        print(f"median of the first quarter {first:.0f}, of the last {last:.0f}")
        for fault in self.faults:
            print(f"FAULT: {fault}")


def run(soak: Soak, agent: Agent) -> list[int]:
    """Do all of it; return the samples of the agent's memory. What goes wrong is noted, so that the rest is seen."""
    workers = [threading.Thread(target=soak.work, args=(soak.wanted.seed + number,)) for number in range(AT_ONCE)]
    for worker in workers:
        worker.start()
    samples: list[int] = []
    try:
        samples = soak.watch_memory(agent)
        soak.counts |= Counter({f"agent, unkilled: {name}": n for name, n in agent.ask("status")["counts"].items()})
        soak.kill(agent)
        wait_until(lambda: soak.counts["jobs"] >= soak.wanted.jobs, "enough jobs", soak.wanted.seconds)
    except Exception as error:  # noqa: BLE001 - said at the end
        soak.faults.append(f"{type(error).__name__}: {error}")
    soak.over.set()
    for worker in workers:
        worker.join()
    try:
        soak.settle(agent)
    except Exception as error:  # noqa: BLE001 - said at the end
        soak.faults.append(f"{type(error).__name__}: {error}")
    return samples


def main() -> int:
    """Soak; 1 if there was any fault."""
    parser = argparse.ArgumentParser(prog="python -m guest.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="half of it without kills [%(default)s]")
    parser.add_argument("--jobs", type=int, default=50, help="at least so many [%(default)s]")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=3)
    soak = Soak(daemons.start(), parser.parse_args())
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    with agents.agent(Path(os.environ["PAGEFERRY_RESULTS"]) / "agent-soak.log", *agents.own(folder, SETTINGS)) as agent:
        samples = run(soak, agent)
    soak.report(samples)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""How soon a newcomer leaves CPUs that Slurm gave it and that another job was moved to, on a real Slurm in the guest.

Measured is the time from its first instruction to its being mapped. The newcomer is the interpreter of its own batch
script (newcomer.c), so that nothing of it runs before it looks.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench.programs import program
from guest import agents
from guest.steady import submit
from guest.vm import slurm as daemons
from guest.vm.jobs import wait_until

NEWCOMERS = 20
TAKEN = "6-7"
"""The CPUs of node 3, which a job of two CPUs is moved to."""

REST = 6


def main(output: Path) -> int:
    """Measure NEWCOMERS jobs one after another, and write the milliseconds down."""
    slurm = daemons.start()
    moved = submit(slurm, "-n1", "--cpus-per-task=2", mib=2)
    with agents.agent(Path("/run/results/bench-newcomer.log")) as agent:
        wait_until(lambda: agent.phase(moved.id) is not None, "the agent knows the job")
        agent.ask("move", 60, job=moved.id, nodes="3", cpus=TAKEN, strategy="relative", hold=False)
        told = [newcomer(number) for number in range(NEWCOMERS)]
    moved.end()
    daemons.stop()
    output.write_text(json.dumps(told) + "\n")
    print(f"mapped: median {statistics.median(told):.1f} ms, most {max(told):.1f} ms of {len(told)}", flush=True)
    return 0


def newcomer(number: int) -> float:
    """Have a job on all CPUs but those that the moved one has by Slurm's books; return its milliseconds."""
    said = Path(f"/dev/shm/newcomer-{number}")
    script = f"#!{program('newcomer')} {TAKEN}\n"
    words = ["sbatch", "--wait", "-n1", f"--cpus-per-task={REST}", "--mem=32", f"--output={said}"]
    subprocess.run(words, input=script, text=True, check=True, capture_output=True)
    milliseconds = float(said.read_text())
    assert milliseconds >= 0, "it was never mapped"
    return milliseconds


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

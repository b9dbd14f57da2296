"""cpuset.mems narrowed on a real Slurm: what a job allocates stays where it was moved, and nothing else ever moves."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guest import agents, nursery
from guest.agents import Agent
from guest.vm.jobs import Slurm, wait_until
from guest.witness import vmstat
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups, slurm_job_cpusets

pytestmark = pytest.mark.v1

PROGRAM = Path(__file__).with_name("narrow_rank.py")
RULES = """
[[rule]]
name = "narrowed"
narrow_mems = true
reference_count = false
libraries = "/dev/shm/narrow-*/kept"
match.job_name = "narrow"
"""
"""What others map moves, too, so that it is known where each page is: libraries lie wherever they were read first."""


@dataclass(frozen=True)
class Asked:
    """A job that runs `narrow_rank`."""

    slurm: Slurm
    id: int
    folder: Path

    def answer(self, number: int) -> dict[str, Any]:
        """Ask it, and return what it says."""
        (self.folder / f"ask.{number}").touch()
        file = self.folder / f"answer.{number}"
        wait_until(file.exists, f"job {self.id} answers: {self.slurm.output(self.id)!r}", 90)
        answer: dict[str, Any] = json.loads(file.read_text())
        return answer

    def mems(self) -> set[str]:
        """Return cpuset.mems of the groups that decide for it."""
        return {(group / "cpuset.mems").read_text().strip() for group in slurm_job_cpusets(self.id)[1]}

    def texts(self) -> dict[Path, str]:
        """Return each cpuset.mems of Slurm's groups of it."""
        files = [file for group in slurm_job_cgroups(self.id) for file in group.rglob("cpuset.mems")]
        assert files
        return {file: file.read_text() for file in files}


@pytest.fixture(scope="module")
def agent(slurm: Slurm, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    words = agents.own(tmp_path_factory.mktemp("narrow"), RULES)
    with agents.agent(results / "agent-narrow.log", *words) as made:
        yield made


@pytest.fixture
def job(slurm: Slurm, agent: Agent) -> Iterator[Asked]:
    with running(slurm, Path("/dev/shm") / f"narrow-{time.monotonic_ns()}") as made:
        yield made


@contextmanager
def running(slurm: Slurm, folder: Path, *words: str) -> Iterator[Asked]:
    folder.mkdir()
    script = f"exec {sys.executable} -I -S {PROGRAM} {folder} {' '.join(words)}"
    made = Asked(slurm, slurm.submit(script, "-n1", "--mem=200", "--job-name=narrow"), folder)
    try:
        yield made
    finally:
        slurm.cancel(made.id)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_narrowed_job_allocates_where_it_was_moved_and_gets_slurms_mems_back_in_the_end(
    slurm: Slurm, agent: Agent, job: Asked
) -> None:
    began = job.answer(0)
    (home,) = began["kept"]
    assert (began["errno"], began["fresh"], began["own"]) == (0, [3], [home])
    assert home == 0
    slurms = job.texts()

    subprocess.run(["scontrol", "update", f"JobId={job.id}", "AdminComment=pageferry:nodes=2"], check=True)
    counters = vmstat()
    slurm.suspend(job.id)
    wait_until(lambda: agent.count("narrowed") == 1, f"it is narrowed: {agent.said()}")
    counters = vmstat() - counters
    (migration,) = agent.migrations(job.id)
    assert (migration["outcome"], migration["rule"]) == ("complete", "narrowed")
    assert counters["pgmigrate_success"] == migration["pages"]["moved"] >= 1024, "narrowing moves nothing"
    assert migration["pages"]["excluded"] >= 256
    assert job.mems() == {"0,2" if slurm.cgroup == "v2" else "2"}, "without node 0 version 2 would move what is kept"
    slurm.resume(job.id)
    told = job.answer(1)
    assert told == {"errno": errno.EINVAL, "fresh": [2], "own": [2], "kept": [home]}

    agent.kill()
    agent.start()
    command = [sys.executable, "-m", "pageferry"]
    by_hand = [*command, "move", str(job.id), "--to", "3", "--stay", "*/kept"]
    subprocess.run(by_hand, check=False, capture_output=True)
    assert (job.texts(), job.mems()) == (slurms, {"0-3"}), "widened, for it to be moved; no rule is asked"
    assert job.answer(2) == {"errno": 0, "fresh": [3], "own": [3], "kept": [home]}

    counters = vmstat()
    agent.ask("move", job=job.id, nodes="1", hold=True, timeout=120)
    counters = vmstat() - counters
    assert counters["pgmigrate_success"] == agent.migrations(job.id)[-1]["pages"]["moved"] >= 1024
    assert job.mems() == {"0-1" if slurm.cgroup == "v2" else "1"}
    assert job.answer(3) == {"errno": errno.EINVAL, "fresh": [1], "own": [1], "kept": [home]}

    counters = vmstat()
    agent.stop()
    release = [*command, "release", "--force", "--cpus"]
    said = subprocess.run(release, check=True, capture_output=True, text=True).stdout
    assert f"job {job.id}: may allocate on all of Slurm's nodes again\n" in said
    assert job.texts() == slurms
    assert (vmstat() - counters)["pgmigrate_success"] == 0
    assert job.answer(4) == {"errno": 0, "fresh": [3], "own": [1], "kept": [home]}


@pytest.mark.long
def test_a_policy_that_names_the_old_node_follows_a_job_that_is_narrowed(slurm: Slurm, agent: Agent) -> None:
    if agent.process is None or agent.process.poll() is not None:  # the test before has stopped it
        agent.start()
    with running(slurm, Path("/dev/shm") / f"bound-{time.monotonic_ns()}", "bound") as job:
        assert job.answer(0)["fresh"] == [0]
        subprocess.run(["scontrol", "update", f"JobId={job.id}", "AdminComment=pageferry:nodes=2"], check=True)
        narrowed = agent.count("narrowed")
        slurm.suspend(job.id)
        wait_until(lambda: agent.count("narrowed") > narrowed, f"it is narrowed: {agent.said()}")
        assert job.mems() == {"2"}, "nothing of it stays on node 0"
        slurm.resume(job.id)
        told = job.answer(1)
        assert (told["fresh"], told["own"]) == ([2], [2])
        said = json.loads(nursery.run("explain", job.id, "--json").stdout)
        ranks = [row for row in said["policies"] if row["mode"] == "bind"]
        assert [(row["nodes"], row["processes"], row["stays_behind"]) for row in ranks] == [([2], 1, False)]

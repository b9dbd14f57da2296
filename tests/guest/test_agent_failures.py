"""What the agent needs fails it: its disk, Slurm's controller, its planner, an errand. Each time the job runs on.

That it is killed itself is in test_agent_killed, its guardian in test_agent_guardian.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest import agents, freezing, nursery
from guest.agents import Agent
from guest.freezing import happens, held, stopped_errand
from guest.ranks import cpus_of
from guest.steady import Steady, submit
from guest.vm import slurmconf
from guest.vm.jobs import Slurm, wait_until
from pageferry.kernel.cgroup import read_hierarchies

pytestmark = pytest.mark.v1

MAX_HOLD = 6
SETTINGS = f"[agent]\nmax_hold_seconds = {MAX_HOLD}\n[spill]\nenabled = false\n"
FAR = 3


@pytest.fixture(scope="module")
def agent(slurm: Slurm, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent for all tests that need nothing special of it."""
    words = agents.own(tmp_path_factory.mktemp("agent"), SETTINGS)
    with agents.agent(results / "agent-failures.log", *words) as made:
        yield made


@pytest.fixture(scope="module")
def steady(slurm: Slurm) -> Iterator[Steady]:
    """A job for all tests of this file, on node 0."""
    begun = submit(slurm, "-n1", mib=4)
    assert set(begun.diary()[0]["cpus"]) <= set(cpus_of(0))
    yield begun
    begun.end()


@pytest.fixture
def job(steady: Steady) -> Iterator[Steady]:
    """The job, running; and running at the end."""
    assert steady.runs()
    yield steady
    freezing.write(steady.slurm, steady.id, False)
    wait_until(lambda: not held(steady.slurm, steady.id), "released at the end")
    assert steady.runs()


@contextmanager
def tiny(folder: Path) -> Iterator[Path]:
    """Mount a file system of some pages."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no room in a file system; return the file that has it all."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return ballast
    raise AssertionError("it is not tiny")


def settled(agent: Agent, job: Steady) -> bool:
    state = agent.ask("status")["jobs"].get(str(job.id), {})
    return state.get("phase") == "runs" and state.get("stage") is None


def suspended(agent: Agent, job: Steady) -> None:
    """Suspend the job as slurmd does, and wait until its memory has been looked at."""
    wait_until(lambda: settled(agent, job), "the agent knows the job and has nothing to do")
    number = len(agent.migrations(job.id))
    freezing.write(job.slurm, job.id, True)
    wait_until(lambda: len(agent.migrations(job.id)) > number, f"its memory was looked at:\n{agent.said()[-2000:]}")


def resumed(job: Steady) -> None:
    """Resume it as slurmd does, and see it run soon."""
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: not held(job.slurm, job.id), "released", MAX_HOLD + 10)
    assert job.runs()


def events(agent: Agent, job: Steady, kind: str) -> list[str]:
    return [event["text"] for event in agent.ask("history", job=job.id)["events"] if event["kind"] == kind]


def ask_for(job: Steady, text: str) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job.id}", f"AdminComment={text}"], check=True)


def admin_comment(job: Steady) -> str:
    shown = subprocess.run(["scontrol", "show", "job", str(job.id)], capture_output=True, text=True, check=True).stdout
    return next((line for line in shown.splitlines() if "AdminComment=" in line), "")


def rank_pid(job: Steady) -> int:
    """Return the process of the job's only rank."""
    (pid, *_) = (pid for pid in job.slurm.pids(job.id) if b"steady_rank" in freezing.command(pid))
    return pid


def spread(job: Steady) -> None:
    """Put the job's memory where its CPUs are not."""
    subprocess.run(["migratepages", str(rank_pid(job)), "0", str(FAR)], check=True)


def far(job: Steady) -> int:
    """Return how many of its anonymous pages are where `spread` puts them, as the kernel counts them."""
    lines = Path(f"/proc/{rank_pid(job)}/numa_maps").read_text().splitlines()
    return sum(
        int(word[3:])
        for line in lines
        if "anon=" in line and "file=" not in line
        for word in line.split()
        if word.startswith(f"N{FAR}=")
    )


def test_an_errand_that_never_ends_costs_the_job_no_more_than_max_hold(agent: Agent, job: Steady) -> None:
    wait_until(lambda: settled(agent, job), "the agent knows the job")
    number = len(agent.migrations(job.id))
    spread(job)
    freezing.write(job.slurm, job.id, True)
    errand = stopped_errand(agent, after=_past(agent, stopped_errand(agent)))
    assert far(job) > 900
    freezing.write(job.slurm, job.id, False)
    began = time.monotonic()
    wait_until(lambda: agent.phase(job.id) == "waits", "it waits")
    assert not happens(lambda: not held(job.slurm, job.id), MAX_HOLD / 2), "it waits for its memory"
    wait_until(lambda: not held(job.slurm, job.id), "max_hold is used up", MAX_HOLD)
    assert time.monotonic() - began > MAX_HOLD - 1
    assert job.runs()
    assert "max_hold is used up" in events(agent, job, "released")[0]
    os.kill(errand, signal.SIGCONT)
    wait_until(lambda: len(agent.migrations(job.id)) > number, "the errand goes on while the job runs")
    migration = agent.migrations(job.id)[number]
    assert migration["outcome"] == "complete"
    assert migration["seconds_stopped"] >= MAX_HOLD - 1
    assert far(job) == 0


def _past(agent: Agent, asking: int) -> int:
    os.kill(asking, signal.SIGCONT)
    return asking


@pytest.mark.long
def test_a_freeze_that_is_not_ours_outlasts_us(agent: Agent, job: Steady) -> None:
    wait_until(lambda: settled(agent, job), "the agent knows the job")
    theirs = administrators(job)
    theirs.freeze()
    count = job.counts()
    suspended(agent, job)
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: settled(agent, job), "released what is ours")
    assert theirs.stands(), "after a release"
    suspended(agent, job)
    agent.kill()
    agent.start()
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: settled(agent, job), "released what is ours")
    assert nursery.run("release", "--force").returncode == 0
    assert theirs.stands(), "after an agent's death, and pageferry release"
    assert job.counts() == count
    theirs.thaw()
    assert job.runs()


class administrators:  # noqa: N801 - reads as a genitive
    """An administrator's freeze of a job: of one of its tasks (v2), or of the group above its steps (v1)."""

    def __init__(self, job: Steady) -> None:
        (step, *_) = job.slurm.step_freezers(job.id)
        legacy = job.slurm.cgroup == "v1"
        self.file = step.parent / "freezer.state" if legacy else step / "task_0" / "cgroup.freeze"
        self.words = ("THAWED", "FROZEN") if legacy else ("0", "1")

    def freeze(self) -> None:
        self.file.write_text(self.words[1])
        wait_until(self.stands, "the administrator's freeze")

    def thaw(self) -> None:
        self.file.write_text(self.words[0])

    def stands(self) -> bool:
        return self.file.read_text().strip() == self.words[1]


@pytest.mark.parametrize("text", ["pageferry:nodes=99", "pageferry:nodes=2-x"])
def test_a_request_that_makes_no_sense_is_answered_and_the_job_comes_back_as_it_was(
    agent: Agent, job: Steady, text: str
) -> None:
    ask_for(job, text)
    suspended(agent, job)
    resumed(job)
    wait_until(lambda: "failed" in admin_comment(job), "the operator is told")
    migration = next(row for row in agent.migrations(job.id) if row["details"]["request"] == text)
    assert migration["error"]
    assert migration["outcome"] in {"failed", "in place"}
    assert os.sched_getaffinity(rank_pid(job)) <= set(cpus_of(0))
    assert far(job) == 0


def test_a_job_that_is_resumed_before_it_could_be_held_is_served_while_it_runs(agent: Agent, job: Steady) -> None:
    wait_until(lambda: settled(agent, job), "the agent knows the job")
    beaten, number = agent.count("beaten"), len(agent.migrations(job.id))
    assert agent.process is not None
    agent.signal(signal.SIGSTOP)
    assert freezing.stands_still(agent.process.pid)
    freezing.write(job.slurm, job.id, True)
    freezing.write(job.slurm, job.id, False)
    agent.signal(signal.SIGCONT)
    assert job.runs()
    wait_until(lambda: len(agent.migrations(job.id)) > number, "its memory is looked at")
    assert agent.count("beaten") == beaten + 1
    assert agent.migrations(job.id)[number]["event"] == "resume-beat-hold"
    assert agent.migrations(job.id)[number]["error"] == ""


@pytest.mark.long
def test_an_agent_that_is_stopped_holds_nothing_and_holds_again_when_started(agent: Agent, job: Steady) -> None:
    suspended(agent, job)
    assert held(job.slurm, job.id)
    count = job.counts()
    assert agent.stop() == 0
    assert not held(job.slurm, job.id)
    agent.start()
    wait_until(lambda: held(job.slurm, job.id), "the next agent holds it")
    assert job.counts() == count
    resumed(job)


@pytest.mark.long
def test_without_slurms_controller_the_memory_goes_to_the_jobs_cpus(agent: Agent, job: Steady) -> None:
    wait_until(lambda: settled(agent, job), "the agent knows the job")
    number, gaps = len(agent.migrations(job.id)), len(job.diary())
    spread(job)
    controller = int((slurmconf.RUN / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        freezing.write(job.slurm, job.id, True)
        wait_until(lambda: len(agent.migrations(job.id)) > number, "its memory moves all the same")
    finally:
        os.kill(controller, signal.SIGCONT)
    assert agent.migrations(job.id)[number]["outcome"] == "complete"
    assert "did not answer" in events(agent, job, "not asked")[0]
    assert agent.phase(job.id) == "held"
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: not held(job.slurm, job.id), "released")
    assert job.runs()
    assert set(job.entries(gaps)[0]["nodes"]) == {"0"}


def test_a_release_that_the_kernel_refuses_is_tried_again(agent: Agent, job: Steady) -> None:
    wait_until(lambda: settled(agent, job), "the agent knows the job")
    freezing.write(job.slurm, job.id, True)
    errand = stopped_errand(agent)
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: agent.phase(job.id) == "waits", "it waits for its memory")
    mount = read_hierarchies().unified
    assert mount is not None
    subprocess.run(["mount", "-o", "remount,bind,ro", str(mount)], check=True)
    try:
        os.kill(errand, signal.SIGCONT)
        wait_until(lambda: agent.count("not released") > 0, "the kernel refuses")
        assert held(job.slurm, job.id)
    finally:
        subprocess.run(["mount", "-o", "remount,bind,rw", str(mount)], check=True)
    wait_until(lambda: not held(job.slurm, job.id), "released when the kernel lets us", MAX_HOLD)
    assert job.runs()
    wait_until(lambda: settled(agent, job), "all is as ever")


@pytest.mark.long
def test_a_full_disk_loses_history_and_nothing_else(agent: Agent, job: Steady, results: Path, tmp_path: Path) -> None:
    assert agent.stop() == 0
    with tiny(tmp_path / "state") as folder:
        words = agents.own(folder, SETTINGS)
        ballast = fill(folder)
        with agents.agent(results / "agent-full.log", *words) as unheard:
            wait_until(lambda: settled(unheard, job), "it knows the job")
            freezing.write(job.slurm, job.id, True)
            wait_until(lambda: unheard.count("held") == 1, "held")
            wait_until(lambda: unheard.ask("status")["jobs"][str(job.id)]["stage"] is None, "its memory is looked at")
            assert held(job.slurm, job.id)
            resumed(job)
            wait_until(lambda: settled(unheard, job), "all is done")
            status = unheard.ask("status")
            assert status["counts"]["released"] == 1
            assert status["history_lost"] >= 4, "started, held, the migration, released"
            ballast.unlink()
            suspended(unheard, job)
            resumed(job)
            assert unheard.migrations(job.id), "with room, it is written again"
    agent.start()


@pytest.mark.long
def test_where_no_hold_can_be_recorded_none_is_set_and_the_memory_moves_live(
    agent: Agent, job: Steady, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agent.stop() == 0
    with tiny(tmp_path / "run") as folder, monkeypatch.context() as patch:
        patch.setattr(agents, "SOCKET", folder / "agent.sock")
        words = agents.own(tmp_path, SETTINGS)
        with agents.agent(results / "agent-unrecorded.log", *words, "--run-folder", str(folder)) as unheld:
            wait_until(lambda: settled(unheld, job), "it knows the job")
            ballast = fill(folder)
            spread(job)
            suspended(unheld, job)
            assert not held(job.slurm, job.id)
            assert unheld.migrations(job.id)[-1]["outcome"] == "complete"
            assert unheld.count("not held") == 1
            freezing.write(job.slurm, job.id, False)
            assert job.runs()
            ballast.unlink()
            suspended(unheld, job)
            assert held(job.slurm, job.id), "with room, it is held again"
            resumed(job)
    agent.start()


@pytest.mark.long
def test_a_planner_that_raises_is_recorded_and_the_job_is_released_at_its_resume(
    agent: Agent, job: Steady, results: Path, tmp_path: Path
) -> None:
    assert agent.stop() == 0
    (tmp_path / "sitecustomize.py").write_text(
        "from pageferry_planner import placement\n"
        "def place(*_words, **_named):\n    raise ZeroDivisionError('a planner of the test')\n"
        "placement.place = place\n"
    )
    words = agents.own(tmp_path, SETTINGS)
    environment = {"PYTHONPATH": str(tmp_path)}
    with agents.agent(results / "agent-planless.log", *words, environment=environment, loads=True) as planless:
        spread(job)
        suspended(planless, job)
        assert held(job.slurm, job.id)
        resumed(job)
        (migration, *_) = planless.migrations(job.id)
        assert migration["outcome"] == "failed"
        assert migration["error"] == "ZeroDivisionError: a planner of the test"
    agent.start()

"""Requests to a running agent, by a comment or a command line: at once, or with the next suspension."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from guest import agents, freezing
from guest.agents import Agent
from guest.nursery import run as pageferry
from guest.ranks import cpus_of
from guest.steady import Steady, submit
from guest.test_capacity import LEFT_PAGES, ballast
from guest.vm.jobs import Slurm, wait_until
from guest.witness import node_vector, vmas, vmstat
from pageferry.kernel.inotify import IN_MODIFY, Inotify
from pageferry.schedulers import slurm_api

NOBODY = 65534


@pytest.fixture(scope="module")
def agent(slurm: Slurm, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for all tests of this file."""
    history = tmp_path_factory.mktemp("agent") / "history.sqlite3"
    with agents.agent(results / "agent-requests.log", "--history-file", str(history)) as made:
        yield made


@pytest.fixture
def job(slurm: Slurm, agent: Agent) -> Iterator[Steady]:
    """A job on the two CPUs of node 0, with private and shared memory; without srun, which takes its time to start."""
    begun = submit(slurm, "-n2", "-mblock:block", mib=4, shared_mib=4)
    wait_until(lambda: agent.phase(begun.id) == "runs", "the agent knows the job")
    assert agent.ask("cpus")["jobs"][str(begun.id)]["real"] == "0-1"
    yield begun
    begun.end()
    wait_until(lambda: agent.phase(begun.id) is None, "the agent has forgotten the job")


def ask_for(job: Steady, text: str) -> None:
    """Type a request as an operator does."""
    subprocess.run(["scontrol", "update", f"JobId={job.id}", f"AdminComment={text}"], check=True)


def admin_comment(job: Steady) -> str:
    """Return what the operator finds."""
    return slurm_api.choose().job(job.id).admin_comment


def outcome(job: Steady) -> str:
    """Wait until the operator finds an outcome, and return it."""
    wait_until(lambda: "[pageferry]" in admin_comment(job), "the outcome is where the operator looks", 30)
    return admin_comment(job)


def poke(agent: Agent) -> None:
    """Have the agent look at its jobs' comments, as the health check's hook does, until it has done all of it."""
    agent.ask("poke")
    wait_until(lambda: not freezing.errands(agent), "the agent's errands have ended", 30)


def seen_of(job: Steady) -> Counter[int]:
    """Return how many pages of the rank's own and shared memory are on which node, as page tables tell."""
    nodes: Counter[int] = Counter()
    for pid in job.slurm.pids(job.id):
        found = [vma for vma in vmas(pid) if vma.path == f"{job.folder}/segment"]
        if not found:
            continue
        private = (vma for vma in vmas(pid) if not vma.path and vma.permissions == "rw-p")
        found.append(max(private, key=lambda vma: vma.end - vma.start))
        for vma in found:
            nodes.update(node for node in node_vector(pid, vma.start, vma.end) if node >= 0)
    return nodes


def nodes_of(job: Steady) -> Counter[int]:
    """Return the same, of memory that is all there: what is being moved is nowhere."""
    nodes = seen_of(job)
    assert nodes.total() >= 4 * 256
    return nodes


def suspended_and_resumed(job: Steady, agent: Agent) -> None:
    """Have a job suspended and resumed by its operator, and wait until it runs."""
    job.slurm.suspend(job.id)
    wait_until(lambda: agent.phase(job.id) == "held", "the agent holds it")
    job.slurm.resume(job.id)
    wait_until(lambda: agent.phase(job.id) == "runs", "it was let go")


# At once


def test_a_request_for_now_is_served_while_the_job_runs_and_only_once(agent: Agent, job: Steady) -> None:
    held = agent.count("held")
    with closing(Inotify()) as inotify:
        for step in job.slurm.step_freezers(job.id):
            for name in ("cgroup.freeze", "cgroup.events", "freezer.state"):
                for path in step.rglob(name):
                    inotify.watch(path, IN_MODIFY)
        before = job.counts()
        ask_for(job, "pageferry:nodes=2,now")
        poke(agent)
        assert "moved" in outcome(job)
        assert job.runs()
        assert all(now > then for now, then in zip(job.counts(), before, strict=True))
        assert not inotify.read(), "nobody froze it for a moment"
    assert agent.count("held") == held
    assert set(nodes_of(job)) == {2}
    (migration,) = agent.migrations(job.id)
    assert (migration["event"], migration["outcome"], migration["seconds_stopped"]) == ("request", "complete", 0)
    said = admin_comment(job)
    poke(agent)
    assert len(agent.migrations(job.id)) == 1
    assert admin_comment(job) == said


@pytest.mark.long
def test_the_same_request_typed_again_is_served_again(agent: Agent, job: Steady) -> None:
    for number in (1, 2):
        ask_for(job, "pageferry:nodes=2,now")
        poke(agent)
        assert "moved" in outcome(job)
        assert len(agent.migrations(job.id)) == number
        assert set(nodes_of(job)) == {2}
        if number == 1:  # somebody else takes its memory away
            pids = [f"--pid={pid}" for pid in job.slurm.pids(job.id)]
            said = pageferry("move", *pids, "--to", "1", "--no-reference-count")
            assert said.returncode == 0, said.stderr
            assert set(nodes_of(job)) == {1}


@pytest.mark.long
def test_a_request_without_now_waits_for_the_suspension(agent: Agent, job: Steady) -> None:
    ask_for(job, "pageferry:nodes=2")
    poke(agent)
    assert not agent.migrations(job.id)
    assert admin_comment(job) == "pageferry:nodes=2"
    assert set(nodes_of(job)) == {0}
    suspended_and_resumed(job, agent)
    assert "to node 2" in outcome(job)
    assert set(nodes_of(job)) == {2}


@pytest.mark.long
def test_a_request_typed_while_the_job_is_suspended_is_served_when_it_runs_again(agent: Agent, job: Steady) -> None:
    job.slurm.suspend(job.id)
    wait_until(lambda: bool(agent.migrations(job.id)), "what there was to do for the suspension is done")
    ask_for(job, "pageferry:nodes=2")
    job.slurm.resume(job.id)
    assert "moved" in outcome(job)
    assert set(nodes_of(job)) == {2}
    assert [row["event"] for row in agent.migrations(job.id)] == ["suspend", "resume"]
    assert job.runs()


# What can be asked for


def test_the_cpus_that_are_asked_for_are_exactly_those_that_the_job_gets(agent: Agent, job: Steady) -> None:
    ask_for(job, "pageferry:nodes=3,cpus=6-7")
    suspended_and_resumed(job, agent)
    assert "moved" in outcome(job)
    assert agent.ask("cpus")["jobs"][str(job.id)]["real"] == "6-7"
    for entry in job.entries(1):
        assert set(entry["cpus"]) <= {6, 7}
        assert set(entry["nodes"]) == {"3"}
    ask_for(job, "pageferry:nodes=0,now")
    poke(agent)
    wait_until(lambda: set(seen_of(job)) == {0}, "a second request brings it back")
    assert agent.ask("cpus")["jobs"][str(job.id)]["real"] == "0-1"
    assert job.runs()


@pytest.mark.long
def test_each_strategy_puts_the_memory_where_it_says(agent: Agent, job: Steady) -> None:
    for nodes, strategy in (((1, 2), "interleave"), ((2, 3), "weighted")):  # nobody gives weights: all are 1
        ask_for(job, f"pageferry:nodes={nodes[0]}-{nodes[1]},strategy={strategy},now")
        poke(agent)
        outcome(job)
        spread = nodes_of(job)
        assert set(spread) == set(nodes)
        assert abs(spread[nodes[0]] - spread[nodes[1]]) <= spread.total() // 16
    ask_for(job, "pageferry:nodes=3,cpus=6-7,strategy=local,now")
    poke(agent)
    assert "to node 3" in outcome(job)
    assert set(nodes_of(job)) == {3}


@pytest.mark.long
def test_what_cannot_be_done_is_said_where_it_was_asked_and_the_job_stays(agent: Agent, job: Steady) -> None:
    for asked, said in (
        ("nodes=7", "no such node"),
        ("nodes=2,cpus=0-6", "has 2 CPUs"),
        ("nodes=2,cpus=90-91", "cannot have"),
    ):
        ask_for(job, f"pageferry:{asked},now")
        poke(agent)
        words = outcome(job)
        assert "failed: " in words
        assert said in words
        assert set(nodes_of(job)) == {0}
        assert agent.ask("cpus")["jobs"][str(job.id)]["real"] == "0-1"
        assert job.runs()


@pytest.mark.long
def test_what_cannot_be_done_for_a_suspended_job_does_not_keep_it(agent: Agent, job: Steady) -> None:
    ask_for(job, "pageferry:nodes=7")
    suspended_and_resumed(job, agent)
    assert "failed: " in outcome(job)
    assert job.runs()


@pytest.mark.long
def test_of_what_does_not_fit_a_part_moves_and_the_operator_is_told_what_stayed(slurm: Slurm, agent: Agent) -> None:
    begun = submit(slurm, "-n1", mib=96)
    try:
        with ballast(3, LEFT_PAGES):
            ask_for(begun, "pageferry:nodes=3,now")
            poke(agent)
            said = outcome(begun)
            assert "moved" in said
            assert "stayed (no_room)" in said
            assert begun.runs()
        (migration,) = agent.migrations(begun.id)
        assert migration["outcome"] == "partial"
        assert migration["pages"]["moved"] > 0
        assert migration["pages"]["no_room"] > 0
    finally:
        begun.end()


# The command line


def test_a_move_with_cpus_goes_through_the_agent_and_the_tables_show_it(agent: Agent, job: Steady) -> None:
    there = ",".join(map(str, cpus_of(2)))
    said = pageferry("move", job.id, "--to", "2", "--cpus", there)
    assert said.returncode == 0, said.stderr
    assert set(nodes_of(job)) == {2}
    assert job.runs()
    (row,) = [line.split() for line in pageferry("cpus").stdout.splitlines() if line.startswith(f"{job.id} ")]
    assert row == [str(job.id), "0-1", "4-5", "moved"]
    assert json.loads(pageferry("cpus", "--json").stdout)["jobs"][str(job.id)]["real"] == "4-5"
    lines = pageferry("history", job.id).stdout.splitlines()
    assert lines[0].split()[:5] == ["id", "when", "job", "why", "from"]
    assert len(lines) == 2
    row = lines[1].split()
    assert row[2:7] == [str(job.id), "request", "0", "2", "complete"]
    assert row[8] == "MiB"
    for words, complaint in (
        (("--cpus", "4"), "has 2 CPUs"),
        (("--cpus", "4-5", "--budget", "3"), "--budget: not through the agent"),
    ):
        said = pageferry("move", job.id, "--to", "2", *words)
        assert said.returncode == 2
        assert complaint in said.stderr
        assert said.stderr.count("\n") == 1


def test_a_job_is_held_for_a_move_that_is_to_freeze_it_and_let_go(agent: Agent, job: Steady) -> None:
    answer = agent.ask("move", job=job.id, nodes="2", hold=True)
    assert answer["outcome"]["complete"]
    wait_until(lambda: agent.phase(job.id) == "runs", "it was let go")
    assert job.runs()
    assert set(nodes_of(job)) == {2}
    assert agent.migrations(job.id)[0]["seconds_stopped"] > 0


def test_a_job_that_is_moved_ahead_is_held_for_its_cpus_and_the_rest_alone(agent: Agent, job: Steady) -> None:
    counters = vmstat()
    cpus = ",".join(map(str, cpus_of(2)))
    said = pageferry("move", job.id, "--to", "2", "--cpus", cpus, "--precopy", "--json")
    assert said.returncode == 0, said.stderr
    moved = vmstat() - counters
    outcome = json.loads(said.stdout)
    assert outcome["complete"]
    assert outcome["precopied_bytes"] >= 8 << 20, "its memory went while it ran"
    assert outcome["requested_pages"] == outcome["pages"]["moved"] == moved["pgmigrate_success"]
    assert outcome["seconds_stopped"] > 0
    wait_until(lambda: agent.phase(job.id) == "runs", "it was let go")
    assert set(nodes_of(job)) == {2}
    assert agent.ask("cpus")["jobs"][str(job.id)]["real"] == "4-5"
    assert job.runs()


@pytest.mark.long
def test_a_user_sees_their_own_history_and_may_move_nothing(agent: Agent, job: Steady) -> None:
    agent.ask("move", job=job.id, nodes="2")
    assert len(json.loads(pageferry("history", "--json").stdout)["migrations"]) > 0
    theirs = pageferry("history", "--json", user=NOBODY)
    assert json.loads(theirs.stdout) == {"migrations": [], "events": []}
    page = pageferry("report", job.id, "--html", "-").stdout
    assert f"Job {job.id}" in page
    assert page.rstrip().endswith("</html>")
    theirs = pageferry("report", job.id, "--html", "-", user=NOBODY)
    assert (theirs.returncode, theirs.stdout) == (2, "")
    assert theirs.stderr == f"pageferry: no migration of job {job.id} on this host\n"
    said = pageferry("cpus", user=NOBODY)
    assert said.returncode == 4
    assert said.stderr.startswith("pageferry: cpus: for root and SlurmUser")

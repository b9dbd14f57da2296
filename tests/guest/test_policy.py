"""Policies on a real Slurm: which jobs are held and moved, and how, is what the site's rules say, reloads included."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest import agents, nursery
from guest.agents import Agent
from guest.steady import Steady, submit
from guest.vm.jobs import Slurm, wait_until
from pageferry.schedulers.slurm_commands import SlurmCommands

RULES = """
[[rule]]
name = "left alone"
mode = "off"
match.job_name = "alone*"
[[rule]]
name = "watched"
mode = "observe"
match.job_name = "watched*"
[[rule]]
name = "moved"
workers = 1
owners_may_ask = true
[rule.match]
partition = "main"
user = "root"
scheduler = "slurm"
max_nodes = 1
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the settings of the agent of this file are."""
    return tmp_path_factory.mktemp("policy") / "pageferry.toml"


@pytest.fixture(scope="module")
def agent(slurm: Slurm, results: Path, settings: Path) -> Iterator[Agent]:
    """One agent for all tests of this file."""
    with agents.agent(results / "agent-policy.log", *agents.own(settings.parent, RULES)) as made:
        yield made


@pytest.fixture
def named(slurm: Slurm, agent: Agent) -> Iterator[Any]:
    """A way to submit a job by name; all end with the test."""
    begun: list[Steady] = []

    def submitted(name: str) -> Steady:
        begun.append(submit(slurm, "-n2", "-mblock:block", f"--job-name={name}", mib=4))
        wait_until(lambda: agent.phase(begun[-1].id) == "runs", "the agent knows the job")
        return begun[-1]

    yield submitted
    for job in begun:
        job.end()


def suspended(job: Steady, agent: Agent, kind: str) -> dict[str, Any]:
    """Ask for node 2, suspend a job, wait for an event of it, and return that."""
    subprocess.run(["scontrol", "update", f"JobId={job.id}", "AdminComment=pageferry:nodes=2"], check=True)
    job.slurm.suspend(job.id)

    def found() -> list[dict[str, Any]]:
        return [event for event in agent.ask("history", job=job.id)["events"] if event["kind"] == kind]

    wait_until(lambda: bool(found()), f"{kind} of job {job.id}: {agent.said()}")
    return found()[0]


def nodes(job: Steady) -> set[str]:
    """Return the nodes that a job's rank has found its memory on, at its latest entry."""
    return {node for entry in job.entries(1) for node in entry["nodes"]}


@pytest.mark.long
@pytest.mark.v1
def test_a_job_that_is_left_alone_is_let_go_while_slurm_has_it_suspended_and_is_not_moved(
    agent: Agent, named: Any
) -> None:
    job = named("alone-1")
    assert "left alone" in suspended(job, agent, "released")["text"]
    assert agent.phase(job.id) == "runs"
    (migration,) = agent.migrations(job.id)
    assert (migration["rule"], migration["outcome"]) == ("left alone", "failed")
    job.slurm.resume(job.id)
    assert nodes(job) <= {"0"}
    assert job.runs()
    before = agent.count("held")
    job.slurm.suspend(job.id)
    wait_until(lambda: agent.count("left alone") > 0, "the agent has seen its second suspension")
    assert agent.count("held") == before, "what Slurm said of it before holds"
    job.slurm.resume(job.id)
    assert job.runs()


def test_what_is_observed_is_recorded_with_what_would_have_moved(agent: Agent, named: Any) -> None:
    job = named("watched-1")
    suspended(job, agent, "released")
    wait_until(lambda: bool(agent.migrations(job.id)), "it is recorded")
    (migration,) = agent.migrations(job.id)
    assert (migration["rule"], migration["outcome"], migration["bytes"]) == ("watched", "observed", 0)
    assert migration["details"]["would_move_bytes"] >= 4 << 20
    assert migration["nodes_to"] == "2"
    job.slurm.resume(job.id)
    assert nodes(job) <= {"0"}


def test_a_job_is_moved_by_the_rule_that_knows_it_and_explain_says_which(
    agent: Agent, named: Any, settings: Path
) -> None:
    job = named("other")
    facts = SlurmCommands().job(job.id).facts(None)
    assert (facts.partition, facts.user, facts.job_name, facts.nodes, facts.cpus) == ("main", "root", "other", 1, 2)
    suspended(job, agent, "held")
    wait_until(lambda: bool(agent.migrations(job.id)), "the memory moves while the job is suspended")
    job.slurm.resume(job.id)
    assert nodes(job) <= {"2"}
    assert agent.migrations(job.id)[0]["rule"] == "moved"
    answer = json.loads(nursery.run("explain", job.id, "--config", settings, "--json").stdout)
    assert answer["rule"] == "moved"
    assert [entry["rule"] for entry in answer["passed_over"]] == ["left alone", "watched"]
    private = next(entry for entry in answer["mappings"] if entry["what"] == "private memory")
    assert private["moves"]
    assert int(private["nodes"]["2"]) >= 4 << 20


def test_what_an_owner_wrote_into_the_comment_is_served_with_the_next_suspension(agent: Agent, named: Any) -> None:
    job = named("owners")
    subprocess.run(["scontrol", "update", f"JobId={job.id}", "Comment=pageferry:nodes=3"], check=True)
    job.slurm.suspend(job.id)
    wait_until(lambda: bool(agent.migrations(job.id)), "the memory moves while the job is suspended")
    job.slurm.resume(job.id)
    assert nodes(job) <= {"3"}
    assert agent.ask("cpus")["jobs"][str(job.id)]["slurm"] == agent.ask("cpus")["jobs"][str(job.id)]["real"]


@pytest.mark.long
def test_settings_are_read_again_at_the_signal_and_wrong_ones_are_not(agent: Agent, named: Any, settings: Path) -> None:
    job = named("other-2")
    folder = settings.parent / "policy.d"
    folder.mkdir(exist_ok=True)
    (folder / "wrong.toml").write_text("[agent]\nworkers = 0\n")
    agent.signal(signal.SIGHUP)
    wait_until(lambda: agent.count("not reloaded") == 1, "the agent has read them")
    assert f"{folder}/wrong.toml:2: agent.workers = 0" in agent.said()
    (folder / "wrong.toml").write_text('[[rule]]\nname = "moved"\nmode = "off"\nmatch.job_name = "other-2"\n')
    agent.signal(signal.SIGHUP)
    wait_until(lambda: agent.count("reloaded") == 1, "the agent has read them")
    try:
        suspended(job, agent, "released")
        job.slurm.resume(job.id)
        assert nodes(job) <= {"0"}
    finally:
        (folder / "wrong.toml").unlink()
        agent.signal(signal.SIGHUP)
        wait_until(lambda: agent.count("reloaded") == 2, "the agent has read them")

"""The agent on a real Slurm: jobs come back with their memory there, and whatever fails, they come back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest import agents, nursery
from guest.agents import Agent
from guest.ranks import cpus_of
from guest.steady import Steady, stood_still, submit
from guest.vm.jobs import Slurm, wait_until
from pageferry.ledger_json import after, before, every_flow
from pageferry.schedulers import slurm_api


@pytest.fixture
def agent(slurm: Slurm, results: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent of this test's own."""
    log = results / f"agent-{request.node.name[:60]}.log"
    with agents.agent(log, "--history-file", str(tmp_path / "history.sqlite3")) as made:
        yield made


@pytest.fixture
def job(slurm: Slurm, agent: Agent) -> Iterator[Steady]:
    """A job of two ranks on the CPUs of node 0, with memory of their own and shared memory."""
    begun = submit(slurm, "-n2", mib=4, shared_mib=4, ranks=2)
    wait_until(lambda: agent.phase(begun.id) == "runs", "the agent knows the job")
    yield begun
    begun.end()


def ask_for(job: Steady, text: str) -> None:
    """Type a request as an operator does."""
    subprocess.run(["scontrol", "update", f"JobId={job.id}", f"AdminComment={text}"], check=True)


def admin_comment(job: Steady) -> str:
    """Return what the operator finds."""
    return slurm_api.choose().job(job.id).admin_comment


@pytest.mark.v1
def test_a_job_comes_back_on_the_cpus_that_were_asked_for_and_finds_its_memory_there(agent: Agent, job: Steady) -> None:
    ask_for(job, "pageferry:nodes=2-3")
    job.slurm.suspend(job.id)
    wait_until(lambda: bool(agent.migrations(job.id)), "the memory moves while the job is suspended")
    assert agent.phase(job.id) == "held"
    still, noted = job.counts(), job.noted()
    job.slurm.resume(job.id)
    for entry, count in zip(job.first_after(noted), still, strict=True):
        assert set(entry["nodes"]) <= {"2", "3"}, "each page is there at the first instruction"
        assert set(entry["cpus"]) <= {*cpus_of(2), *cpus_of(3)}
        assert entry["intact"]
        assert stood_still(entry, count), "not one step between Slurm's suspend and our release"
    (migration, *_) = agent.migrations(job.id)
    assert migration["event"] == "suspend"
    assert migration["outcome"] == "complete"
    assert migration["bytes"] >= 12 << 20
    wait_until(lambda: "moved" in admin_comment(job), "the outcome is where the operator looks")
    assert agent.count("beaten") == 0
    wait_until(lambda: "released" in agent.migrations(job.id)[0]["moments"], "its record is completed at the release")
    moments = agent.migrations(job.id)[0]["moments"]
    in_order = ["suspended", "held", "moving", "moved", "resumed", "released"]
    assert sorted(moments, key=moments.__getitem__) == in_order
    (whole,) = agent.ask("history", migration=migration["id"])["migrations"]
    flows = every_flow(whole["ledger"])
    assert sum(before(flows).values()) == sum(whole["pages"].values())
    assert sum(after(flows).values()) == sum(whole["pages"].values()) - whole["pages"]["vanished"]


@pytest.mark.long
def test_an_agent_at_debug_level_keeps_what_gives_the_plan_again(slurm: Slurm, results: Path, tmp_path: Path) -> None:
    log = results / "agent-debug.log"
    words = (*agents.own(tmp_path), "--log-level", "debug")
    with agents.agent(log, *words) as agent:
        job = submit(slurm, "-n2", mib=4, shared_mib=4, ranks=2)
        try:
            wait_until(lambda: agent.phase(job.id) == "runs", "the agent knows the job")
            ask_for(job, "pageferry:nodes=2-3")
            slurm.suspend(job.id)
            wait_until(lambda: bool(agent.migrations(job.id)), "the memory moves while the job is suspended")
            slurm.resume(job.id)
            migration = agent.migrations(job.id)[0]
        finally:
            job.end()
    path = min((tmp_path / "snapshots").iterdir())
    assert f"job {job.id}: snapshot: {path}" in log.read_text()
    plan = json.loads(nursery.run("plan", "--from-snapshot", path, "--json").stdout)
    assert plan["move_bytes"] == migration["bytes"] > 0


@pytest.mark.long
def test_a_job_is_watched_before_it_moves_if_its_rule_says_so_and_it_runs(
    slurm: Slurm, results: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "snapshots"
    words = (*agents.own(tmp_path, '[[rule]]\nname = "hot"\nhot_seconds = 1\n'), "--log-level", "debug")
    with agents.agent(results / "agent-hot.log", *words) as agent:
        job = submit(slurm, "-n2", mib=4, shared_mib=4, ranks=2)
        try:
            wait_until(lambda: agent.phase(job.id) == "runs", "the agent knows the job")
            agent.ask("move", job=job.id, nodes="2")
            (live,) = kept.glob("*.jsonl")
            slurm.suspend(job.id)
            wait_until(lambda: len(list(kept.glob("*.jsonl"))) == 2, "its memory is looked at while it is suspended")
            slurm.resume(job.id)
        finally:
            job.end()
    (suspended,) = set(kept.glob("*.jsonl")) - {live}
    assert '"referenced"' in live.read_text()
    assert '"referenced"' not in suspended.read_text(), "what stands still uses nothing"

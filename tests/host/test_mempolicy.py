"""The memory policies of real processes are read, with the unit's rights as with all, and told by the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from guest import rights
from guest.ranks import BIND, INTERLEAVE, Rank, job
from pageferry import ferry, report, targets
from pageferry.cli import main as cli
from pageferry.cli import mempolicy as told
from pageferry.cli import policy as explains
from pageferry.cpus.assign import Cpusets
from pageferry.kernel import cgroup, freezer, mempolicy
from pageferry.kernel.mempolicy import Policies, Policy, read_policies
from pageferry.policy import Facts
from pageferry.schedulers.base import Job
from pageferry.targets import Found
from support.children import child, wait_stopped

LOCAL = 4
LONG = 60.0
"""Seconds that a slow machine may take; what is bounded says so itself."""

whose = pytest.mark.usefixtures("whose")


@pytest.fixture(name="whose", params=["unit", "root"])
def whose_(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rights a look has: those of the agent's unit, or all."""
    monkeypatch.setenv(rights.VARIABLE, request.param)


def read(*pids: int) -> Policies:
    return rights.call(read_policies, pids, LONG)


def found(policies: Policies) -> dict[Policy, tuple[int, ...]]:
    assert policies.unknown == ""
    return {one.policy: one.pids for one in policies.found}


def on_node_0(mode: str) -> Policy:
    return Policy(mode, frozenset({0}))


@whose
def test_the_policies_of_processes_and_of_their_mappings_are_found_by_those_who_have_them() -> None:
    with job(ranks=3) as made:
        plain, bound, also = made.ranks
        for rank in (bound, also):
            rank.ask("set_mempolicy", BIND, [0])
            rank.map(64).write()
        memory = also.map(64)
        memory.tell("mbind", INTERLEAVE, [0])
        memory.write()
        policies = read(*made.pids)
        assert found(policies) == {
            on_node_0("bind"): (bound.pid, also.pid),
            on_node_0("interleave"): (also.pid,),
        }
        assert {one.occupied for one in policies.found} == {frozenset({0})}
        assert policies.found[0].name == Path(f"/proc/{bound.pid}/comm").read_text().strip()
        plain.ask("set_mempolicy", LOCAL, [])
        assert plain.pid not in {pid for one in read(*made.pids).found for pid in one.pids}


@whose
def test_a_thread_has_a_policy_of_its_own_and_one_that_a_process_inherited_is_found(tmp_path: Path) -> None:
    with job() as made:
        made.first.ask("set_mempolicy", BIND, [0])
        made.first.ask("threads", 1, 1, [0])
        made.first.ask("set_mempolicy", 0, [])
        assert found(read(made.first.pid)) == {on_node_0("bind"): (made.first.pid,)}
    with child("numactl", "--preferred=0", "cat") as process:
        wait_exec(process)
        assert found(read(process.pid)) == {on_node_0("prefer"): (process.pid,)}


def wait_exec(process: subprocess.Popen[bytes]) -> None:
    """Wait until numactl has become cat, which gives back what it is given."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"x\n"


@whose
def test_a_process_whose_first_thread_has_ended_has_its_policies() -> None:
    with job() as made:
        made.first.map(1).tell("mbind", BIND, [0])
        made.first.end_first_thread()
        assert found(read(made.first.pid)) == {on_node_0("bind"): (made.first.pid,)}


@whose
def test_what_has_ended_and_what_has_no_memory_has_no_policy() -> None:
    with job() as made:
        pid = made.first.pid
    assert found(read(pid, 2)) == {}


@pytest.fixture
def bound() -> Iterator[Rank]:
    with job() as made:
        made.first.ask("set_mempolicy", BIND, [0])
        yield made.first


@pytest.fixture
def group() -> Iterator[Path]:
    unified = cgroup.read_hierarchies().unified
    assert unified is not None
    path = unified / f"pageferry-mempolicy-{os.getpid()}"
    inner = path / "task"
    inner.mkdir(parents=True)
    yield inner
    freezer.thaw(path)
    inner.rmdir()
    path.rmdir()


@whose
@pytest.mark.parametrize("above", [False, True])
def test_nothing_is_read_of_a_process_that_is_frozen_and_all_once_it_runs(
    bound: Rank, group: Path, above: bool
) -> None:
    (group / "cgroup.procs").write_text(str(bound.pid))
    try:
        asked = group.parent if above else group
        freezer.freeze(asked)
        assert freezer.wait_frozen(group, frozen=True, seconds=LONG)
        assert read(bound.pid) == Policies((), "1 processes: held or suspended")
        freezer.thaw(asked)
        assert on_node_0("bind") in found(read(bound.pid))
    finally:
        (group.parent.parent / "cgroup.procs").write_text(str(bound.pid))


@whose
def test_nothing_is_read_of_a_process_that_is_stopped() -> None:
    with child("numactl", "--membind=0", "sh", "-c", "kill -STOP $$") as process:
        wait_stopped(process)
        assert read(process.pid) == Policies((), "1 processes: held or suspended")


AS_A_USER = """
import os, sys
from pageferry.kernel.mempolicy import read_policies
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(read_policies([int(sys.argv[1])], float(sys.argv[2])).unknown)
"""


def test_a_user_who_may_not_look_is_told_so(bound: Rank) -> None:
    command = [sys.executable, "-c", AS_A_USER, str(bound.pid), str(LONG)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "1 processes: not permitted\n"


def run(*words: str) -> tuple[Any, str]:
    """Return what a command says for programs, and for people."""
    answers = [
        CliRunner().invoke(cli.commands, [*words, *more], standalone_mode=False, catch_exceptions=False)
        for more in (["--json"], [])
    ]
    return json.loads(answers[0].stdout), answers[1].stdout


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands take their time, so that a slow machine finds the same."""
    monkeypatch.setattr(mempolicy, "SECONDS", LONG)


def row(rank: Rank, **others: Any) -> dict[str, Any]:
    name = Path(f"/proc/{rank.pid}/comm").read_text().strip()
    return {"pid": rank.pid, "name": name, "mode": "bind", "nodes": [0], "processes": 1, "stays_behind": False} | others


@pytest.mark.usefixtures("patient")
def test_status_of_one_target_names_the_policies_and_where_a_rule_cannot_narrow_says_nothing_of_it(
    bound: Rank,
) -> None:
    ((answer,), people) = run("status", f"--pid={bound.pid}")
    assert (answer["policies"], answer["policies_unknown"]) == ([row(bound)], None)
    assert f"memory policy of process {bound.pid} ({row(bound)['name']}): bind:0\n" in people
    assert told.NARROWING not in people


@pytest.mark.usefixtures("patient")
def test_status_of_all_jobs_reads_no_policies(bound: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_all", lambda: [Found("job 7", frozenset({bound.pid}), (), Cpusets())])
    monkeypatch.setattr(mempolicy, "read_policies", lambda *_: pytest.fail("read"))
    ((answer,), people) = run("status")
    assert "policies" not in answer
    assert "memory polic" not in people


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_explain_names_the_policies_of_a_job_and_that_a_rule_makes_those_of_slurm_s_follow(
    bound: Rank, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    pids = frozenset({bound.pid})
    monkeypatch.setattr(targets, "scheduled", lambda _job: Job("7", scheduler, (), pids, None, None, None))
    monkeypatch.setattr(targets, "find", lambda *_: Found("job 7", pids, (), Cpusets()))
    monkeypatch.setattr(explains, "_facts", lambda _job: (Facts(scheduler), None))
    answer, people = run("explain", "7", "--config", "/dev/null")
    assert (answer["policies"], answer["policies_unknown"]) == ([row(bound)], None)
    assert (told.NARROWING in people) == (scheduler == "slurm")


def test_what_is_not_known_is_said_for_programs_and_for_people() -> None:
    with child("numactl", "--membind=0", "sh", "-c", "kill -STOP $$") as process:
        wait_stopped(process)
        ((answer,), people) = run("status", f"--pid={process.pid}")
    assert (answer["policies"], answer["policies_unknown"]) == ([], "1 processes: held or suspended")
    assert "memory policies not known: 1 processes: held or suspended\n" in people


MOVED = {
    "complete": True, "lacking_bytes": {}, "page_bytes": 4096, "moved_bytes": 4096, "pages": {}, "excluded": {},
    "total_pages": 1, "requested_pages": 1, "retried_pages": 0, "addresses": 1, "calls": 1,
    "asked_per_process_pages": 1, "seconds": 0.1, "seconds_planning": 0.1,
}  # fmt: skip


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("words", [(), ("--freeze",)])
def test_the_outcome_of_a_move_names_the_policies_that_stay_behind_also_once_a_hold_has_ended(
    bound: Rank, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    outcome = dict(MOVED)
    monkeypatch.setattr(ferry, "check", lambda *_: None)
    monkeypatch.setattr(ferry, "move", lambda *_: None)
    monkeypatch.setattr(report, "outcome_json", lambda _outcome: dict(outcome))
    answer, people = run("move", f"--pid={bound.pid}", "--to", "1", *words)
    assert (answer["policies"], answer["policies_unknown"]) == ([row(bound, stays_behind=True)], None)
    assert "stays behind" in people
    outcome["moved_bytes"] = 0
    answer, people = run("move", f"--pid={bound.pid}", "--to", "1", *words)
    assert "policies" not in answer
    assert "memory polic" not in people

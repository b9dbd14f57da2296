"""Jobs over several hosts, and the login node from which they are moved.

One guest stands for two hosts: two slurmd run on it, which Debian's build allows, each with a scope of its own. Each
"host" is a mount namespace in which the other's scope lies hidden under an empty tmpfs and /run/pageferry is its own;
on the "login node" both are hidden. The product knows nothing of this. Both slurmd believe that all CPUs are theirs,
and so does each agent, so requests name other nodes for each host. Version 2 only: on version 1 there is no one place
to hide.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guest import agents
from guest.agents import Agent
from guest.ranks import cpus_of
from guest.steady import Steady, submit
from guest.vm import slurm as daemons
from guest.vm import slurmconf
from guest.vm.jobs import Slurm, wait_until
from pageferry import wire
from pageferry.comment import parse
from pageferry.schedulers import slurm_api

pytestmark = pytest.mark.long

HOSTS = ("guest0", "guest1")
SLICE = daemons.CGROUP / "system.slice"
CONTROLLER = slurmconf.RUN / "slurmctld.pid"


@dataclass(slots=True)
class HostAgent(Agent):
    """An agent that sees one host; it is reached at its socket in its own mount namespace."""

    host: str = ""

    def start(self) -> None:
        """Start it on its host, and wait until it answers."""
        others = [host for host in HOSTS if host != self.host]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                on_host(others, sys.executable, "-m", "pageferry", "agent", *self.words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self.answers, f"the agent of {self.host} answers:\n{self.said()}", 30)

    def ask(self, verb: str, timeout: float = 30.0, **words: Any) -> dict[str, Any]:
        """Return its answer to a verb."""
        assert self.process is not None
        socket = Path(f"/proc/{self.process.pid}/root{agents.SOCKET}")
        return wire.ask(socket, {"verb": verb, **words}, timeout)


def on_host(hidden: tuple[str, ...] | list[str], *command: object) -> list[str]:
    """Return a command to be run where the scopes of the `hidden` hosts, and other agents' folders, are not seen."""
    places = [agents.RUN, *(SLICE / f"{host}_slurmstepd.scope" for host in hidden)]
    mounts = [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(place))}" for place in places]
    script = " && ".join([*mounts, f"exec {shlex.join(map(str, command))}"])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


def on_login_node(*words: object) -> subprocess.CompletedProcess[str]:
    """Run our command where no job is."""
    command = on_host(HOSTS, sys.executable, "-m", "pageferry", *words)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


@pytest.fixture(scope="module")
def slurm(several_nodes: None) -> Iterator[Slurm]:
    """Slurm with two nodes; one that runs already is stopped."""
    daemons.stop()
    agents.RUN.mkdir(parents=True, exist_ok=True)
    yield daemons.start(nodes=2)
    daemons.stop()


@pytest.fixture(scope="module")
def hosts(slurm: Slurm, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostAgent, ...]]:
    """The agents of both hosts."""
    folder = tmp_path_factory.mktemp("agents")
    wait_until(lambda: all((SLICE / f"{host}_slurmstepd.scope").is_dir() for host in HOSTS), "both scopes are there")
    made = tuple(
        HostAgent(results / f"agent-{host}.log", ("--history-file", str(folder / f"{host}.sqlite3")), host=host)
        for host in HOSTS
    )
    for one in made:
        one.start()
    yield made
    for one in made:
        assert one.stop() == 0, one.said()


@pytest.fixture
def job(slurm: Slurm, hosts: tuple[HostAgent, ...]) -> Iterator[Steady]:
    """A job of two ranks on each host: 0 and 1 on guest0, 2 and 3 on guest1."""
    begun = submit(slurm, "-N2", "--ntasks-per-node=2", mib=4, ranks=4, srun="-N2 --ntasks-per-node=2")
    for one in hosts:
        wait_phase(one, begun, "runs")
    yield begun
    begun.end()


def wait_phase(one: HostAgent, job: Steady, phase: str) -> None:
    """Wait until a job is in a phase on a host."""
    wait_until(lambda: one.phase(job.id) == phase, f"job {job.id} {phase} on {one.host}:\n{one.said()}")


def ask_for(job: Steady, text: str) -> None:
    """Type a request as an operator does."""
    subprocess.run(["scontrol", "update", f"JobId={job.id}", f"AdminComment={text}"], check=True)


def admin_comment(job: Steady) -> str:
    """Return what the operator finds."""
    return slurm_api.choose().job(job.id).admin_comment


def outcome(job: Steady) -> str:
    """Wait until every host has answered, and return what the operator finds."""
    wait_until(lambda: parse(admin_comment(job)) is None, f"every host has answered: {admin_comment(job)}", 45)
    return admin_comment(job)


def nodes(job: Steady, number: int) -> list[set[str]]:
    """Return the nodes that each rank's entry `number` tells of."""
    return [set(entry["nodes"]) for entry in job.entries(number)]


def test_each_host_does_its_part_and_neither_outcome_is_lost(hosts: tuple[HostAgent, ...], job: Steady) -> None:
    requests = (
        ("guest0:nodes=2;guest1:nodes=3", "2", "3"),
        ("nodes=1;guest1:nodes=2", "1", "2"),
    )
    for number, (text, first, second) in enumerate(requests, 1):
        ask_for(job, f"pageferry:{text}")
        job.slurm.suspend(job.id)
        for one in hosts:
            wait_phase(one, job, "held")
        job.slurm.resume(job.id)
        said = outcome(job)
        for host, node in zip(HOSTS, (first, second), strict=True):
            assert re.search(rf"{host}: moved [0-9.]+ MiB to node {node}, ", said), said
            assert f"{host}: moved 0 MiB" not in said
        assert "asked" not in said
        assert nodes(job, number) == [{first}, {first}, {second}, {second}]
        for entry, node in zip(job.entries(number), (first, first, second, second), strict=True):
            assert set(entry["cpus"]) <= set(cpus_of(int(node)))
            assert entry["intact"]
    for one in hosts:
        asked = [row for row in one.migrations(job.id) if row["details"]["request"]]
        assert [row["event"] for row in asked] == ["suspend"] * 2, "each was served once"
        assert {row["host"] for row in asked} == {one.host}


def test_a_request_for_one_host_leaves_the_other_alone(hosts: tuple[HostAgent, ...], job: Steady) -> None:
    before = nodes(job, 0)
    ask_for(job, "pageferry:guest1:nodes=3,now")
    for one in hosts:
        one.ask("poke")
    assert "guest1: moved" in outcome(job)
    assert "guest0" not in admin_comment(job)
    assert not hosts[0].migrations(job.id)
    job.slurm.suspend(job.id)
    job.slurm.resume(job.id)
    assert nodes(job, 1) == [*before[:2], {"3"}, {"3"}]


def test_a_job_is_moved_from_a_login_node(hosts: tuple[HostAgent, ...], job: Steady) -> None:
    said = on_login_node("move", job.id, "--to", "3")
    assert said.returncode == 0, said.stderr
    assert said.stderr == (
        f"pageferry: job {job.id} is not on this host: guest0, guest1 asked, through Slurm's commands\n"
    )
    assert said.stdout.startswith("[pageferry] guest")
    for host in HOSTS:
        assert f"{host}: moved" in said.stdout
    assert said.stdout.count("\n") == 1
    assert nodes(job, 1) == [{"3"}] * 4
    assert job.slurm.state(job.id) == "RUNNING"
    assert job.runs()


def test_what_a_host_could_not_do_is_the_exit_code(hosts: tuple[HostAgent, ...], job: Steady) -> None:
    said = on_login_node("move", job.id, "--to", "9")
    assert said.returncode == 1
    assert said.stdout.count("failed: no such node") == 2
    assert job.runs()


def test_on_a_login_node_a_job_that_cannot_be_moved_gets_one_clear_line(slurm: Slurm, job: Steady) -> None:
    pending = slurm.submit("exec sleep 100", "--hold")
    job.slurm.suspend(job.id)
    for words, complaint in (
        (("4000", "--to", "1"), "job 4000: no such job"),
        ((pending, "--to", "1"), f"job {pending} does not run: it is PENDING"),
        ((job.id, "--to", "1"), f"job {job.id} is suspended: scontrol update JobId={job.id} AdminComment='"),
        ((job.id, "--to", "1", "--workers", "2"), "--workers: not through Slurm"),
        (("7;id", "--to", "1"), "not a Slurm job ID"),
    ):
        said = on_login_node("move", *words)
        assert said.returncode == 2, said
        assert said.stderr.startswith(f"pageferry: {complaint}"), said
        assert said.stderr.count("\n") == 1
        assert not said.stdout
    assert slurm.state(job.id) == "SUSPENDED", "it was left as it was"
    assert not admin_comment(job)
    slurm.cancel(pending)
    slurm.resume(job.id)
    assert job.runs()


def test_without_slurmctld_a_job_comes_back_and_a_login_node_says_what_is_wrong(
    hosts: tuple[HostAgent, ...], job: Steady
) -> None:
    job.slurm.suspend(job.id)
    for one in hosts:
        wait_phase(one, job, "held")
    job.slurm.resume(job.id)
    controller = int(CONTROLLER.read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        job.entries(1)
        assert job.runs()
        said = on_login_node("move", job.id, "--to", "1")
        assert said.returncode == 4
        assert "slurmctld did not answer within 5 s" in said.stderr
        assert said.stderr.count("\n") == 1
    finally:
        os.kill(controller, signal.SIGCONT)
    assert job.runs()

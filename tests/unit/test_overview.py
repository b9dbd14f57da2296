"""What must hold of how a host is seen at a glance: by files that cost little, and by what an agent tells whom."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pageferry import overview
from pageferry.agent.wire_server import Reply, Server
from pageferry.errors import Denied
from pageferry.kernel.topology import Topology, read_topology
from pageferry.overview import Overview, look
from pageferry.wire import Peer
from support.planted_jobs import JOB, MIB, job, plant_host
from support.serving import serving
from support.trees import write

MOVE = {"event": "suspend", "nodes": [1], "seconds": 1.5, "done_bytes": 3 * MIB, "of_bytes": 9 * MIB}
STATES = {
    "7": {"phase": "held", "stage": "moves", "home_nodes": [1], "move": MOVE},
    "8": {"phase": "runs", "stage": None, "home_nodes": None, "move": None},
}
EVENT = {"id": 1, "began": 1000.0, "job": 7, "uid": 0, "kind": "held", "text": "Slurm suspends it"}
MIGRATION = {
    "job": "7",
    "event": "suspend",
    "outcome": "complete",
    "began": 1000.5,
    "seconds": 0.5,
    "seconds_stopped": 0.25,
    "bytes": 3 * MIB,
    "nodes_to": "1",
    "error": "",
}
USER, STRANGER = 1000, 1001


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant_host(tmp_path)


@pytest.fixture
def topology(root: Path) -> Topology:
    return read_topology(root)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wire-") as name:  # a socket's path is short
        yield Path(name)


class Agent:
    """Answers as an agent would; `refuses`: it does not tell us of all jobs."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.asked: list[dict[str, Any]] = []

    def handle(self, _peer: Peer, message: dict[str, Any], _reply: Reply) -> Mapping[str, Any]:
        self.asked.append(message)
        if message["verb"] == "history":
            return {"migrations": [MIGRATION], "events": [EVENT | {"began": 1002.0, "job": 0}, EVENT], "fault": None}
        if "job" in message:
            return {"jobs": {str(message["job"]): STATES[str(message["job"])]}}
        if self.refuses:
            raise Denied("status: for root and SlurmUser, and some of it for a job's owner")
        return {"jobs": STATES, "counts": {}}


@contextmanager
def served(agent: Agent, folder: Path) -> Iterator[Path]:
    path = folder / "agent.sock"
    server = Server(path, agent.handle)
    with serving(server):
        yield path


def jobs_of(seen: Overview) -> dict[str, overview.JobNow]:
    return {one.id: one for one in seen.jobs}


def cpu_of(topology: Topology, node: int) -> str:
    return str(min(topology.node(node).cpus))


def owned(root: Path, number: int, user: int, pid: int) -> None:
    """Have a job of version 2 consist of one process of a user's."""
    write(root, f"{JOB}{number}/step_0/user/cgroup.procs", f"{pid}\n")
    uids = "\t".join([str(user)] * 4)
    rest = "Threads:\t1\nCpus_allowed_list:\t0\nMems_allowed_list:\t0\n"
    status = f"Name:\tx\nState:\tS (sleeping)\nTgid:\t{pid}\nPPid:\t1\nUid:\t{uids}\n{rest}"
    write(root, f"proc/{pid}/status", status)


def test_without_an_agent_nodes_and_jobs_are_seen_by_their_files(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 100, 1: 30, 2: 5})
    write(root, f"{JOB}7/step_0/user/cgroup.freeze", "1\n")
    write(root, f"{JOB}7/step_0/user/cgroup.events", "populated 1\nfrozen 1\n")
    seen = look(path=root / "none.sock", root=root, user=0)
    assert seen.agent is not None
    assert "does not run" in seen.agent
    assert [(node.number, node.total_bytes) for node in seen.nodes] == [
        (node.number, node.total_bytes) for node in topology.nodes
    ]
    (one,) = seen.jobs
    assert (one.id, one.scheduler, one.state, one.stage, one.move) == ("7", "slurm", "suspended", None, None)
    assert (one.cpus, one.cpu_nodes, one.home_nodes) == (cpu_of(topology, 0), (0,), ())
    assert one.bytes == {0: 100 * MIB, 1: 30 * MIB, 2: 5 * MIB}
    assert one.remote_bytes == 35 * MIB
    assert seen.events == ()


def test_memory_on_special_nodes_is_shown_as_such_and_not_as_remote(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 100, 1: 30, 2: 5})
    job(root, 8, f"{cpu_of(topology, 0)},{cpu_of(topology, 1)}", "0-3", {1: 30, 2: 5})
    write(root, f"{JOB}9/memory.numa_stat", f"anon N2={MIB}\nfile_mapped N0=0\n")

    def glance(special: frozenset[int]) -> Overview:
        return look(path=root / "none.sock", root=root, user=0, special_of=lambda _topology: special)

    seen = glance(frozenset({1, 2}))
    assert [node.special for node in seen.nodes] == [False, True, True, False]
    found = {name: (one.remote_bytes, one.special_bytes) for name, one in jobs_of(seen).items()}
    assert found == {"7": (0, 35 * MIB), "8": (0, 5 * MIB), "9": (None, None)}
    found = {name: (one.remote_bytes, one.special_bytes) for name, one in jobs_of(glance(frozenset())).items()}
    assert found == {"7": (35 * MIB, 0), "8": (5 * MIB, 0), "9": (None, None)}


def test_a_job_that_is_not_confined_or_not_counted_has_no_remote_memory_that_anybody_knows(
    root: Path, topology: Topology
) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {1: 30})
    (root / f"{JOB}7/memory.numa_stat").unlink()
    write(root, f"{JOB}8/memory.numa_stat", f"anon N1={MIB}\nfile_mapped N0=0\n")
    seen = jobs_of(look(path=root / "none.sock", root=root, user=0))
    assert (seen["7"].remote_bytes, seen["7"].cpus) == (None, cpu_of(topology, 0))
    assert (seen["8"].remote_bytes, seen["8"].cpus, seen["8"].bytes) == (None, None, {0: 0, 1: MIB})


def test_an_agent_tells_how_jobs_stand_what_moves_and_what_happened(
    root: Path, topology: Topology, folder: Path
) -> None:
    for number in (7, 8, 9):
        job(root, number, cpu_of(topology, 0), "0-3", {0: 1})
    with served(Agent(), folder) as path:
        seen = look(path=path, root=root, user=0)
    assert seen.agent is None
    states = {one.id: (one.state, one.stage, one.home_nodes, one.move) for one in seen.jobs}
    assert states["7"] == ("held", "moves", (1,), MOVE)
    assert states["8"] == ("runs", None, (), None)
    assert states["9"] == ("runs", None, (), None), "the agent does not know it yet"
    assert [(event.at, event.job, event.text) for event in seen.events] == [
        (1002.0, None, "held: Slurm suspends it"),
        (1001.0, "7", "suspend: complete, 3 MiB to 1 in 0.50 s, stopped 0.25 s"),
        (1000.0, "7", "held: Slurm suspends it"),
    ]


def test_one_job_is_shown_alone(root: Path, topology: Topology, folder: Path) -> None:
    for number in (7, 8):
        job(root, number, cpu_of(topology, 0), "0-3", {0: 1})
    agent = Agent()
    with served(agent, folder) as path:
        assert list(jobs_of(look("8", path=path, root=root, user=0))) == ["8"]
        assert look("9", path=path, root=root, user=0).jobs == (), "it has ended"
    assert {message.get("job") for message in agent.asked if message["verb"] == "history"} == {"8", "9"}


@pytest.mark.parametrize("with_agent", [True, False])
def test_a_user_sees_their_own_jobs_and_no_others(
    root: Path, topology: Topology, folder: Path, with_agent: bool
) -> None:
    for number, user in ((7, USER), (8, STRANGER)):
        job(root, number, cpu_of(topology, 0), "0-3", {0: 1})
        owned(root, number, user, 100 + number)
    agent = Agent(refuses=True)
    with served(agent, folder) as path:
        asked = path if with_agent else root / "none.sock"
        seen = look(path=asked, root=root, user=USER)
        assert [(one.id, one.state) for one in seen.jobs] == [("7", "held" if with_agent else "runs")]
        assert look("7", path=asked, root=root, user=USER).jobs == seen.jobs
        assert look(path=asked, root=root, user=65534).jobs == ()
        with pytest.raises(Denied, match=r"^job 8 is another user's$"):
            look("8", path=asked, root=root, user=USER)
    assert {message.get("job") for message in agent.asked if message["verb"] == "status"} <= {None, 7}


def test_whom_the_agent_tells_of_all_jobs_sees_them_all(root: Path, topology: Topology, folder: Path) -> None:
    for number in (7, 8):
        job(root, number, cpu_of(topology, 0), "0-3", {0: 1})
        owned(root, number, STRANGER, 100 + number)
    with served(Agent(), folder) as path:
        assert list(jobs_of(look(path=path, root=root, user=USER))) == ["7", "8"], "SlurmUser is no root"


def test_an_agent_that_hangs_is_named_and_waited_for_once(
    root: Path, topology: Topology, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "_SECONDS", 0.1)
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 1})
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(folder / "agent.sock"))
        agent.listen()
        seen = look(path=folder / "agent.sock", root=root, user=0)
        agent.setblocking(False)
        agent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            agent.accept()
    assert seen.agent == "the agent did not answer within 0.1 s"
    assert [one.state for one in seen.jobs] == ["runs"]


def test_pbs_jobs_are_seen_by_their_groups(root: Path, topology: Topology) -> None:
    group = "sys/fs/cgroup/pbs_jobs.service/jobid/12.server"
    for name, value in {"cpus": cpu_of(topology, 1), "mems": "0-3"}.items():
        write(root, f"{group}/cpuset.{name}", value)
        write(root, f"{group}/cpuset.{name}.effective", value)
    write(root, f"{group}/memory.numa_stat", f"anon N0={MIB} N1={MIB}\nfile_mapped N0=0\n")
    write(root, f"{group}/cgroup.procs", "")
    (one,) = look(path=root / "none.sock", root=root, user=0).jobs
    assert (one.id, one.scheduler, one.cpu_nodes, one.remote_bytes) == ("12.server", "pbs", (1,), MIB)


def test_a_glance_needs_neither_numpy_nor_page_tables(root: Path, topology: Topology) -> None:
    job(root, 7, cpu_of(topology, 0), "0-3", {0: 1})
    program = (
        "import sys; from pathlib import Path; from pageferry import overview;"
        f"assert overview.look(path=Path('/none'), root=Path({str(root)!r}), user=0).jobs;"
        "print({'numpy', 'ctypes', 'rich'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"

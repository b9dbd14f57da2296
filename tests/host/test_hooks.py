"""What must hold of the hooks: whatever state the agent is in, Slurm's prolog and epilog lose no time and no node."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOOKS = Path(__file__).resolve().parents[2] / "hooks/slurm"
CONTEXTS = {
    "prolog.d": ("prolog_slurmd", "starting"),
    "epilog.d": ("epilog_slurmd", "ended"),
    "healthcheck.d": (None, "poke"),
}
EACH = pytest.mark.parametrize("folder", CONTEXTS)
LITTLE_S = 0.1
"""What a hook may cost: at most 20 ms of it for the agent, the rest for Python's start."""

GENEROUS_S = 1.0
"""No run takes longer, however busy the host."""

RUNS = 5


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens, with room for one who waits, and accepts nothing by itself."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "agent.sock"))
        listening.listen(0)
        yield listening


def run(folder: str, path: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    context = CONTEXTS[folder][0]
    given = {"SLURM_SCRIPT_CONTEXT": context, "SLURM_JOB_ID": "17"} if context else {}
    command = [str(HOOKS / folder / "50-pageferry"), str(path)]
    # As slurmd runs it: no PATH, no HOME.
    return subprocess.run(command, env=given | environment, cwd="/", capture_output=True, check=False, timeout=30)


def costs_little(folder: str, path: object) -> bool:
    """The best of some runs tells what the hook takes, the others what else the host had to do."""
    took = []
    for _ in range(RUNS):
        started = time.monotonic()
        assert silent(run(folder, path))
        took.append(time.monotonic() - started)
    return min(took) < LITTLE_S and max(took) < GENEROUS_S


def heard(agent: socket.socket) -> dict[str, Any]:
    assert waits(agent)
    connection, _ = agent.accept()
    with connection, connection.makefile() as lines:
        (line,) = lines.readlines()  # and then its end
    said: dict[str, Any] = json.loads(line)
    return said


def waits(agent: socket.socket) -> bool:
    return bool(select.select([agent], [], [], 0)[0])


def fill(agent: socket.socket) -> list[socket.socket]:
    """Fill the queue of a socket, as it is when an agent that is stopped has been called a few times."""
    callers = []
    while True:
        caller = socket.socket(socket.AF_UNIX)
        caller.setblocking(False)
        callers.append(caller)
        try:
            caller.connect(agent.getsockname())
        except BlockingIOError:
            return callers


def silent(answer: subprocess.CompletedProcess[bytes]) -> bool:
    return (answer.returncode, answer.stdout, answer.stderr) == (0, b"", b"")


@EACH
def test_the_agent_is_told_which_job_and_what_of_it(folder: str, agent: socket.socket) -> None:
    assert silent(run(folder, agent.getsockname()))
    verb = CONTEXTS[folder][1]
    assert heard(agent) == ({"verb": verb} if verb == "poke" else {"verb": verb, "job": 17})


@EACH
def test_an_agent_that_is_up_costs_little(folder: str, agent: socket.socket) -> None:
    agent.listen(RUNS)
    assert costs_little(folder, agent.getsockname())
    assert [heard(agent)["verb"] for _ in range(RUNS)] == [CONTEXTS[folder][1]] * RUNS


@EACH
def test_a_hung_agent_costs_little_and_no_error(folder: str, agent: socket.socket) -> None:
    callers = fill(agent)
    assert costs_little(folder, agent.getsockname())
    for caller in callers:
        caller.close()


def test_a_queue_that_is_full_for_a_moment_is_waited_for(agent: socket.socket, tmp_path: Path) -> None:
    text = (HOOKS / "epilog.d/50-pageferry").read_text()
    assert text.count("0, 20000") == 1
    patient = tmp_path / "patient"
    patient.write_text(text.replace("0, 20000", "30, 0"))
    patient.chmod(0o755)
    callers = fill(agent)
    given = {"SLURM_SCRIPT_CONTEXT": "epilog_slurmd", "SLURM_JOB_ID": "18"}
    with subprocess.Popen([str(patient), agent.getsockname()], env=given) as process:
        while not any(in_connect(pid) for pid in children(process.pid)):
            assert process.poll() is None
        for caller in callers[:-1]:
            agent.accept()[0].close()
            caller.close()
    callers[-1].close()
    assert heard(agent) == {"verb": "ended", "job": 18}


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def in_connect(pid: str) -> bool:
    try:
        return "unix_wait_for_peer" in Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return False


@EACH
@pytest.mark.parametrize("state", ["absent", "dead", "no socket", "no folder", "too long"])
def test_an_agent_that_is_down_costs_little_and_no_error(folder: str, state: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    if state == "dead":  # the socket is left, and nobody behind it
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    elif state == "no socket":
        path.write_text("")
    elif state == "no folder":
        path = path / "agent.sock"
    elif state == "too long":
        path = tmp_path / ("a" * 200)
    assert costs_little(folder, path)


@pytest.mark.parametrize("job", ["", "12;id", "-1", "1\n", "0x1", "\u0661\u0662", "99999999999", '1, "a": 1'])
def test_a_job_id_that_is_none_is_not_passed_on(job: str, agent: socket.socket) -> None:
    assert silent(run("epilog.d", agent.getsockname(), SLURM_JOB_ID=job))
    assert not waits(agent)


def test_a_hook_without_a_job_says_nothing(agent: socket.socket) -> None:
    command = [str(HOOKS / "prolog.d/50-pageferry"), agent.getsockname()]
    given = {"SLURM_SCRIPT_CONTEXT": "prolog_slurmd"}
    assert silent(subprocess.run(command, env=given, capture_output=True, check=False))
    assert not waits(agent)


def test_python_of_others_is_not_run(agent: socket.socket, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("socket", "json", "sitecustomize", "usercustomize"):
        (evil / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    command = [str(HOOKS / "prolog.d/50-pageferry"), agent.getsockname()]
    given = {"SLURM_SCRIPT_CONTEXT": "prolog_slurmd", "SLURM_JOB_ID": "17"}
    given |= {"PYTHONPATH": str(evil), "PYTHONHOME": str(evil), "PYTHONSTARTUP": str(evil / "json.py")}
    assert silent(subprocess.run(command, env=given, cwd=evil, capture_output=True, check=False))
    assert heard(agent) == {"verb": "starting", "job": 17}
    assert not (tmp_path / "ran").exists()


def test_without_python_the_node_is_not_drained(tmp_path: Path) -> None:
    text = (HOOKS / "epilog.d/50-pageferry").read_text()
    assert text.count("/usr/bin/python3") == 1
    copy = tmp_path / "50-pageferry"
    copy.write_text(text.replace("/usr/bin/python3", str(tmp_path / "python3")))
    copy.chmod(0o755)
    assert silent(subprocess.run([str(copy)], env={}, capture_output=True, check=False))


@EACH
def test_slurm_can_run_all_that_lies_in_a_folder(folder: str) -> None:
    # A glob that matches a README or a folder fails, and drains the node.
    entries = list((HOOKS / folder).iterdir())
    assert [entry.name for entry in entries] == ["50-pageferry"]
    assert all(entry.is_file() and os.access(entry, os.R_OK | os.X_OK) for entry in entries)

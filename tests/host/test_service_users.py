"""What must hold of the agent's verbs over its real socket, asked by real users about jobs with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pageferry import wire
from pageferry.agent.wire_server import Server
from pageferry.errors import Denied
from pageferry.history.store import Store
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups, slurm_job_owner
from support.children import child
from support.service_agent import SLURM_USER, VERBS, Told, made
from support.serving import serving
from support.slurm_groups import slurm_job

STRANGER = 1001
NOBODY = 65534


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history.sqlite3")


@contextmanager
def served(told: Told, store: Store, folder: Path) -> Iterator[Path]:
    """Serve the verbs on a socket in a thread, as the agent's loop does."""
    path = folder / "agent.sock"
    one = made(told, store)
    server = Server(path, one.handle, trusted=lambda: one.trusted)
    with serving(server):
        yield path


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wire-") as name:  # a socket's path is short
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


# It becomes another user by itself, who may not be allowed to read the interpreter.
CLIENT = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[2])
    for line in sys.argv[3:]:
        client.sendall(line.encode() + b"\\n")
        print(client.makefile().readline(), end="", flush=True)
"""


def said_to(uid: int, path: Path, *messages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a process of another user is answered."""
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CLIENT, str(uid), str(path), *map(json.dumps, messages)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in said.stdout.splitlines()]


@contextmanager
def job_of(uid: int) -> Iterator[int]:
    """A job with a process of this user, in groups as Slurm makes them."""
    with slurm_job("v2", tasks=1) as job, child("setpriv", f"--reuid={uid}", "--clear-groups", "cat") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b".")
        process.stdin.flush()
        assert process.stdout.read(1) == b".", "it is that user's by now"
        (job.tasks[0] / "cgroup.procs").write_text(str(process.pid))
        (root_process,) = job.processes
        root_process.kill()
        root_process.wait()
        yield job.number


def test_the_kernel_says_who_asks_and_the_jobs_processes_whose_it_is(told: Told, store: Store, folder: Path) -> None:
    with served(told, store, folder) as path, job_of(NOBODY) as job:
        assert slurm_job_owner(job) == NOBODY
        status = {"verb": "status", "job": job}
        owners, strangers, root = (said_to(uid, path, status)[0] for uid in (NOBODY, STRANGER, 0))
        assert owners == {"ok": True, "jobs": {}}
        assert strangers["code"] == Denied.exit_code
        assert "for root and SlurmUser" in strangers["error"]
        assert root["ok"]
        poke = {"verb": "poke", "job": job}
        answers = said_to(NOBODY, path, poke, {"verb": "move", "job": job, "nodes": "0"}, {"verb": "poke"})
        assert [answer.get("code") for answer in answers] == [None, Denied.exit_code, Denied.exit_code]
        assert told.calls == [("poke", (job,))]
        assert slurm_job_owner(job + 1) is None


def test_nobody_owns_a_job_with_processes_of_several_users(told: Told, store: Store, folder: Path) -> None:
    with job_of(NOBODY) as job, child() as ours:
        (group,) = slurm_job_cgroups(job)
        (group / "step_0/user/task_0/cgroup.procs").write_text(str(ours.pid))
        assert slurm_job_owner(job) is None
        with served(told, store, folder) as path:
            assert "error" in said_to(NOBODY, path, {"verb": "status", "job": job})[0]


def test_slurm_user_may_do_everything_over_the_socket(told: Told, store: Store, folder: Path) -> None:
    with served(told, store, folder) as path:
        messages = [{"verb": verb, **words} for verb, words in VERBS.items()]
        assert all(answer["ok"] for answer in said_to(SLURM_USER, path, *messages))


def test_hostile_lines_are_answered_and_the_next_is_served(told: Told, store: Store, folder: Path) -> None:
    with served(told, store, folder) as path:
        messages: Collection[Any] = [[], "text", 7, None, {"verb": "poke", "job": "\x1b[2J"}, {"verb": "\x1b[2J"}]
        for uid in (NOBODY, 0):
            answers = said_to(uid, path, *messages, {"verb": "history"})
            assert [answer.get("code") for answer in answers] == [2] * 6 + [None]
            assert all(answer["error"].isprintable() for answer in answers[:-1])
        assert wire.ask(path, {"verb": "status"}, 10)["ok"]

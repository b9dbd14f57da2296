"""What must hold of the agent's verbs: who may ask for what, and that no message harms the agent."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from pageferry import service, wire
from pageferry.assignments import Assignments
from pageferry.chronicle import Chronicle
from pageferry.comment import Wish
from pageferry.config import Agent as AgentSettings
from pageferry.config import Settings
from pageferry.errors import ConfigError, Denied, UsageError
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups
from pageferry.service import Service, owner_of, slurm_user
from pageferry.store import Migration, Store
from pageferry.tending import Tending
from pageferry.wire import Peer
from pageferry.wire_server import Reply, Server
from pageferry_planner.model import Strategy
from support.children import child
from support.slurm_groups import slurm_job

SLURM_USER, OWNER, STRANGER = 1, 1000, 1001
SETTINGS = Settings(agent=AgentSettings(slurm_user="daemon"))
NOBODY = 65534
JOB, OTHERS_JOB = 7, 8
VERBS: dict[str, dict[str, Any]] = {
    "starting": {"job": JOB},
    "ended": {"job": JOB},
    "poke": {"job": JOB},
    "status": {"job": JOB},
    "cpus": {},
    "history": {"job": JOB},
    "move": {"job": JOB, "nodes": "0"},
}


@dataclass
class Told:
    """Stands in for what does the work: it notes what it is told."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def known(self) -> tuple[int, ...]:
        return (JOB, OTHERS_JOB)

    def status(self) -> dict[str, Any]:
        return {str(job): {"phase": "runs"} for job in self.known()}

    def view(self) -> dict[str, Any]:
        return {"map": {}, "jobs": {}}

    def ended(self) -> None:
        self.calls.append(("ended",))

    def rescan(self) -> None:
        self.calls.append(("rescan",))

    def poke(self, jobs: Iterable[int]) -> None:
        self.calls.append(("poke", tuple(jobs)))

    def request(self, job: int, wish: Wish, hold: bool, reply: Reply) -> None:
        self.calls.append(("request", job, wish, hold))
        reply({"outcome": {}})


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history.sqlite3")


@pytest.fixture
def verbs(told: Told, store: Store, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The verbs, where job 7 is `OWNER`'s and nobody knows whose the others are."""
    monkeypatch.setattr(service, "owner_of", {JOB: OWNER}.get)
    return made(told, store)


def made(told: Told, store: Store) -> Service:
    one = Service(SETTINGS, cast(Assignments, told), Chronicle(store), told.rescan)
    one.tending = cast(Tending, told)
    return one


def ask(verbs: Service, uid: int, message: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the answer, at once or later, to a user's message."""
    later: list[Mapping[str, Any]] = []
    answer = verbs.handle(Peer(1, uid, uid), dict(message), later.append)
    return answer if answer is not None else later[0]


# Who may ask


@pytest.mark.parametrize("uid", [0, SLURM_USER])
@pytest.mark.parametrize("verb", VERBS)
def test_root_and_slurm_user_may_ask_for_everything(verbs: Service, verb: str, uid: int) -> None:
    assert ask(verbs, uid, {"verb": verb, **VERBS[verb]}) is not None
    assert verbs.trusted == {0, SLURM_USER}


@pytest.mark.parametrize("verb", VERBS)
def test_an_owner_may_read_of_their_job_and_have_it_looked_at(verbs: Service, told: Told, verb: str) -> None:
    message = {"verb": verb, **VERBS[verb]}
    if verb in {"poke", "status", "history"}:
        assert ask(verbs, OWNER, message) is not None
    else:
        with pytest.raises(Denied, match=f"^{verb}: for root and SlurmUser"):
            ask(verbs, OWNER, message)
        assert not told.calls


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("job", [None, JOB, OTHERS_JOB])
def test_a_stranger_may_ask_for_nothing_but_their_own_history(
    verbs: Service, told: Told, verb: str, job: int | None
) -> None:
    message = {"verb": verb, **VERBS[verb]}
    message = message | {"job": job} if job else {key: value for key, value in message.items() if key != "job"}
    if verb == "history":
        assert ask(verbs, STRANGER, message) == {"migrations": [], "events": [], "fault": None}
    else:
        with pytest.raises(Denied):
            ask(verbs, STRANGER, message)
    assert not told.calls


def test_an_owner_is_not_shown_all_jobs_where_they_name_none(verbs: Service, told: Told) -> None:
    for verb in ("status", "poke"):
        with pytest.raises(Denied):
            ask(verbs, OWNER, {"verb": verb})
    answer = ask(verbs, OWNER, {"verb": "status", "job": JOB})
    assert answer == {"jobs": {"7": {"phase": "runs"}}}, "nor the agent's counts"
    assert not told.calls


def test_everyone_sees_their_own_rows_of_the_history_and_root_sees_all(verbs: Service, store: Store) -> None:
    for job, uid in ((JOB, OWNER), (OTHERS_JOB, STRANGER), (9, OWNER)):
        store.record_event(job, uid, "held", "")
        store.record_migration(Migration(job, uid, "n1", "suspend", "", 0.0, 0.0, 0.0, "0", "1", "complete"))
    store.record_event(0, -1, "started", "")

    def jobs(uid: int, **words: Any) -> list[tuple[int, ...]]:
        answer = ask(verbs, uid, {"verb": "history", **words})
        assert answer is not None
        return [tuple(row["job"] for row in answer[table]) for table in ("migrations", "events")]

    assert jobs(OWNER) == [(9, JOB), (9, JOB)]
    assert jobs(STRANGER) == [(OTHERS_JOB,), (OTHERS_JOB,)]
    assert jobs(STRANGER, job=JOB) == [(), ()]
    assert jobs(NOBODY) == [(), ()]
    assert jobs(0) == [(9, OTHERS_JOB, JOB), (0, 9, OTHERS_JOB, JOB)]
    assert jobs(SLURM_USER, job=JOB) == [(JOB,), (JOB,)]
    assert jobs(OWNER, limit=1) == [(9,), (9,)]


# What is asked for


def test_a_request_is_handed_on_as_it_was_meant(verbs: Service, told: Told) -> None:
    words = {"verb": "move", "job": JOB, "nodes": "2-3", "cpus": "4,6", "strategy": "local", "hold": True}
    assert ask(verbs, 0, words) == {"outcome": {}}
    assert ask(verbs, 0, {"verb": "move", "job": JOB, "nodes": "1", "cpus": None}) == {"outcome": {}}
    assert told.calls == [
        ("request", JOB, Wish((2, 3), frozenset({4, 6}), Strategy.LOCAL), True),
        ("request", JOB, Wish((1,)), False),
    ]


def test_nodes_keep_the_order_in_which_they_were_asked_for(verbs: Service, told: Told) -> None:
    ask(verbs, 0, {"verb": "move", "job": JOB, "nodes": "3,0-1", "strategy": "pack"})
    assert told.calls[0][2].nodes == (3, 0, 1)


def test_a_poke_without_a_job_is_for_all(verbs: Service, told: Told) -> None:
    ask(verbs, 0, {"verb": "poke"})
    ask(verbs, OWNER, {"verb": "poke", "job": JOB})
    assert told.calls == [("poke", (JOB, OTHERS_JOB)), ("poke", (JOB,))]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"verb": None},
        {"verb": ["poke"]},
        {"verb": "nonsense"},
        {"verb": "__class__"},
        {"verb": "_move", "job": JOB, "nodes": "0"},
        {"verb": "poke\n", "job": JOB},
        {"verb": "x" * 60000},
        {"verb": "poke", "job": -1},
        {"verb": "poke", "job": "7"},
        {"verb": "poke", "job": 7.0},
        {"verb": "poke", "job": True},
        {"verb": "poke", "job": None},
        {"verb": "poke", "job": 1 << 40},
        {"verb": "status", "job": [7]},
        {"verb": "history", "limit": "all"},
        {"verb": "history", "limit": -1},
        {"verb": "move"},
        {"verb": "move", "job": JOB},
        {"verb": "move", "nodes": "0"},
        {"verb": "move", "job": JOB, "nodes": ""},
        {"verb": "move", "job": JOB, "nodes": 3},
        {"verb": "move", "job": JOB, "nodes": [0]},
        {"verb": "move", "job": JOB, "nodes": "0-"},
        {"verb": "move", "job": JOB, "nodes": "3-0"},
        {"verb": "move", "job": JOB, "nodes": "0-99999999999999"},
        {"verb": "move", "job": JOB, "nodes": "0-4294967295"},
        {"verb": "move", "job": JOB, "nodes": "-1"},
        {"verb": "move", "job": JOB, "nodes": "0," * 30000},
        {"verb": "move", "job": JOB, "nodes": "0", "cpus": ""},
        {"verb": "move", "job": JOB, "nodes": "0", "cpus": 3},
        {"verb": "move", "job": JOB, "nodes": "0", "cpus": "0-4294967295"},
        {"verb": "move", "job": JOB, "nodes": "0", "strategy": "scatter"},
        {"verb": "move", "job": JOB, "nodes": "0", "strategy": {}},
    ],
    ids=lambda message: json.dumps(message)[:60],
)
def test_what_makes_no_sense_is_refused_in_one_short_line(verbs: Service, told: Told, message: dict[str, Any]) -> None:
    for uid in (0, OWNER):
        with pytest.raises((UsageError, Denied)) as raised:
            ask(verbs, uid, message)
        said = str(raised.value)
        assert said.isprintable()
        assert len(said) < 300
        assert uid or isinstance(raised.value, UsageError)
    assert not told.calls


def test_the_history_is_never_more_than_a_thousand_rows(
    verbs: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(job: int | None = None, user: int | None = None, limit: int = 100) -> list[Migration]:
        asked.append(limit)
        return []

    monkeypatch.setattr(store, "migrations", note)
    ask(verbs, 0, {"verb": "history", "limit": 100_000})
    ask(verbs, 0, {"verb": "history"})
    assert asked == [1000, 100]


# SlurmUser


def test_slurm_user_is_that_of_the_settings_else_of_slurm_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "slurm.conf"
    monkeypatch.setattr(service, "SLURM_CONF", conf)
    assert slurm_user(Settings()) is None
    for text, uid in (
        ("SlurmUser=daemon\n", 1),
        ("slurmuser=daemon(1)\n", 1),
        ("#SlurmUser=daemon\n", None),
        ("SlurmUser=nobody-here\n", None),
        ("SlurmUser=\n", None),
        ("\0\xff", None),
    ):
        conf.write_bytes(text.encode("latin1"))
        assert slurm_user(Settings()) == uid, text
    assert slurm_user(SETTINGS) == 1
    with pytest.raises(ConfigError, match=r"agent\.slurm_user: no such user: 'nobody-here'"):
        slurm_user(Settings(agent=AgentSettings(slurm_user="nobody-here")))


# A real socket, real users, real jobs


@contextmanager
def served(told: Told, store: Store, folder: Path) -> Iterator[Path]:
    """Serve the verbs on a socket in a thread, as the agent's loop does."""
    path = folder / "agent.sock"
    one = made(told, store)
    server = Server(path, one.handle, trusted=one.trusted)
    stop_read, stop_write = os.pipe()

    def loop() -> None:
        while stop_read not in select.select([server.fileno(), stop_read], [], [])[0]:
            server.serve()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield path
    finally:
        os.write(stop_write, b".")
        thread.join()
        server.close()
        os.close(stop_read)
        os.close(stop_write)


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
        assert owner_of(job) == NOBODY
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
        assert owner_of(job + 1) is None


def test_nobody_owns_a_job_with_processes_of_several_users(told: Told, store: Store, folder: Path) -> None:
    with job_of(NOBODY) as job, child() as ours:
        (group,) = slurm_job_cgroups(job)
        (group / "step_0/user/task_0/cgroup.procs").write_text(str(ours.pid))
        assert owner_of(job) is None
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

"""What must hold of PBS's hook: whatever state pageferry is in, PBS goes on in time, and what was begun is not lost.

The hook file runs under the system's Python, isolated, as MoM's embedded one would run it, with a stand-in for `pbs`
(support/pbs_stand_in.py) and what a real MoM delivered (fixtures/openpbs.json).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guest.vm.jobs import wait_until
from pageferry.pbs import event as events
from support.trees import FIXTURES

HOOK = Path(__file__).resolve().parents[2] / "hooks/pbs/pageferry_hook.py"
MOM = Path(__file__).resolve().parents[1] / "support/pbs_stand_in.py"
RECORDED: dict[str, Any] = json.loads((FIXTURES / "openpbs.json").read_text())
EVENTS = sorted(RECORDED["types"])
EACH = pytest.mark.parametrize("kind", EVENTS)
SOON_S = 3.0
"""A hook that waits for nobody takes no longer, however busy the host."""


@dataclass
class Agent:
    """What listens in the agent's place: notes what it hears, and answers what it is told to; None: nothing at all."""

    path: Path
    answer: dict[str, Any] | str | None = field(default_factory=lambda: {"ok": True})
    heard: list[dict[str, Any]] = field(default_factory=list)

    def serve(self, listening: socket.socket) -> None:
        with ExitStack() as clients:
            while True:
                try:
                    client = clients.enter_context(listening.accept()[0])
                except OSError:
                    return
                with client.makefile() as lines:
                    self.heard.append(json.loads(lines.readline()))
                if self.answer is not None:
                    client.sendall(
                        (self.answer if isinstance(self.answer, str) else json.dumps(self.answer)).encode() + b"\n"
                    )


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with socket.socket(socket.AF_UNIX) as listening:
        made = Agent(tmp_path / "agent.sock")
        listening.bind(str(made.path))
        listening.listen(8)
        thread = threading.Thread(target=made.serve, args=(listening,), daemon=True)
        thread.start()
        yield made
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@dataclass
class Ran:
    """What a hook did: whether it accepted, what it logged as errors, all that it logged, which resources it set."""

    accepted: bool | None
    errors: list[str]
    log: list[str]
    set: dict[str, dict[str, str]]
    seconds: float


def begin(tmp_path: Path, kind: str, config: object, **also: Any) -> subprocess.Popen[bytes]:
    """Start a hook as MoM does: a process group of its own, its descriptors /dev/null."""
    text = config if isinstance(config, str) else json.dumps(config, indent=1)
    (tmp_path / "config.json").write_text(text)
    given = {
        "types": RECORDED["types"],
        "type": RECORDED["types"][kind],
        "event": kind,
        "jobs": RECORDED["jobs"],
        "config_file": str(tmp_path / "config.json"),
        "resources_defined": ["pageferry", "pageferry_outcome"],
    } | also
    if kind != "exechost_periodic":
        given["jobs"] = given["jobs"][:1]
    (tmp_path / "event.json").write_text(json.dumps(given))
    words = [
        "/usr/bin/python3",
        "-I",
        "-S",
        str(MOM),
        str(HOOK),
        str(tmp_path / "event.json"),
        str(tmp_path / "result"),
    ]
    (tmp_path / "result").unlink(missing_ok=True)
    null = subprocess.DEVNULL
    return subprocess.Popen(words, stdin=null, stdout=null, stderr=null, env={}, start_new_session=True)


def run(tmp_path: Path, kind: str, config: object, **also: Any) -> Ran:
    """Run a hook; when it ends, its process group is killed, as MoM kills it."""
    began = time.monotonic()
    hook = begin(tmp_path, kind, config, **also)
    hook.wait(60)
    seconds = time.monotonic() - began
    kill_group(hook.pid)
    result = json.loads((tmp_path / "result").read_text())
    errors = [text for level, text in result["log"] if level == 1]
    return Ran(result["accepted"], errors, [text for _, text in result["log"]], result["set"], seconds)


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def with_comment(text: str | None) -> list[dict[str, Any]]:
    return [RECORDED["jobs"][0] | {"server_comment": text}]


@EACH
def test_the_agent_is_told_of_each_event_and_understands_it(tmp_path: Path, agent: Agent, kind: str) -> None:
    ran = run(tmp_path, kind, {"socket": str(agent.path)})
    assert ran.accepted
    assert ran.errors == []
    (message,) = agent.heard
    event = events.parse(message)
    assert event.event.value == kind
    jobs = RECORDED["jobs"] if kind == "exechost_periodic" else RECORDED["jobs"][:1]
    assert [job.id for job in event.jobs] == [job["id"] for job in jobs]
    for heard, job in zip(event.jobs, jobs, strict=True):
        assert re.findall(r"guest\[\d\]", heard.exec_vnode) == re.findall(r"guest\[\d\]", job["exec_vnode"])
        assert "guestb" not in heard.exec_vnode, "what is other hosts' is left out"
    assert [job.user for job in event.jobs] == [job["euser"] for job in jobs]
    for heard, job in zip(event.jobs, jobs, strict=True):
        assert (heard.name, heard.project) == (job["Job_Name"], job["project"])
        assert (heard.cpus, heard.nodes) == (int(job["Resource_List"]["ncpus"]), 0), "0: MoM did not say"
    assert event.jobs[0].session == int(jobs[0]["session_id"] or 0)
    assert "guest" in event.hosts


def test_an_event_that_is_none_of_ours_is_accepted_and_nobody_is_told(tmp_path: Path, agent: Agent) -> None:
    assert run(tmp_path, "execjob_end", {"socket": str(agent.path)}, type=1 << 30).accepted
    assert agent.heard == []


@EACH
def test_without_an_agent_and_a_command_pbs_goes_on_and_its_log_says_why(tmp_path: Path, kind: str) -> None:
    ran = run(tmp_path, kind, {"socket": str(tmp_path / "nobody"), "command": []})
    assert ran.accepted
    assert ran.seconds < SOON_S
    assert any("no agent listens" in error for error in ran.errors)


@EACH
def test_an_agent_that_hangs_costs_what_the_site_allows_and_no_more(tmp_path: Path, agent: Agent, kind: str) -> None:
    agent.answer = None
    ran = run(tmp_path, kind, {"socket": str(agent.path), "seconds": 0.5, "preresume_seconds": 1})
    assert ran.accepted
    assert ran.seconds < 1 + SOON_S
    assert len(agent.heard) == 1
    assert any("no answer in time" in error for error in ran.errors)


def test_a_hook_never_waits_as_long_as_its_alarm(tmp_path: Path, agent: Agent) -> None:
    agent.answer = None
    ran = run(tmp_path, "execjob_preresume", {"socket": str(agent.path), "preresume_seconds": 3600, "alarm": 3})
    assert ran.accepted
    assert 0.5 < ran.seconds < 1 + SOON_S


def test_a_full_queue_of_a_hung_agent_costs_no_more_either(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "full.sock"))
        listening.listen(0)
        callers = []
        for _ in range(3):
            caller = socket.socket(socket.AF_UNIX)
            caller.setblocking(False)
            callers.append(caller)
            try:
                caller.connect(str(tmp_path / "full.sock"))
            except BlockingIOError:
                break
        ran = run(tmp_path, "execjob_preresume", {"socket": str(tmp_path / "full.sock"), "preresume_seconds": 1})
        for caller in callers:
            caller.close()
    assert ran.accepted
    assert ran.seconds < 1 + SOON_S


def test_what_an_operator_wrote_reaches_the_agent_and_the_outcome_comes_back(tmp_path: Path, agent: Agent) -> None:
    agent.answer = {"ok": True, "done": True, "told": "moved 34 MiB to nodes 2-3, 14:02:11"}
    config = {"socket": str(agent.path), "outcome_resource": "pageferry_outcome"}
    ran = run(tmp_path, "execjob_preresume", config, jobs=with_comment("pageferry:nodes=2-3"))
    assert agent.heard[0]["jobs"][0]["comment"] == "pageferry:nodes=2-3"
    assert ran.set == {RECORDED["jobs"][0]["id"]: {"pageferry_outcome": "moved 34 MiB to nodes 2-3, 14:02:11"}}
    assert ran.accepted
    assert ran.errors == []
    ran = run(tmp_path, "execjob_preresume", config, jobs=RECORDED["jobs"][-1:], local_nodename="guestb")
    (said,) = ran.set.values()
    assert list(json.loads(said["pageferry_outcome"]).values()) == [agent.answer["told"]], "which PBS can join"


def test_a_refused_request_is_an_error_in_moms_log_and_the_job_resumes(tmp_path: Path, agent: Agent) -> None:
    agent.answer = {"ok": True, "done": True, "told": "failed: nodes=9: no such node, 14:02:11"}
    ran = run(tmp_path, "execjob_preresume", {"socket": str(agent.path)}, jobs=with_comment("pageferry:nodes=9"))
    assert ran.accepted
    assert any("no such node" in error for error in ran.errors)


def test_an_answer_that_is_an_error_or_no_json_is_logged_and_pbs_goes_on(tmp_path: Path, agent: Agent) -> None:
    agent.answer = {"error": "pbs: for root and SlurmUser", "code": 4}
    ran = run(tmp_path, "execjob_resize", {"socket": str(agent.path)})
    assert ran.accepted
    assert any("for root" in error for error in ran.errors)
    agent.answer = "{"
    ran = run(tmp_path, "execjob_resize", {"socket": str(agent.path)})
    assert ran.accepted
    assert any("JSONDecodeError" in error for error in ran.errors)


def test_a_log_that_cannot_be_written_is_no_reason_not_to_accept(tmp_path: Path) -> None:
    ran = run(tmp_path, "execjob_preresume", {"socket": str(tmp_path / "nobody"), "command": []}, log_raises=True)
    assert ran.accepted
    assert ran.log == []


def test_of_many_jobs_the_agent_hears_in_messages_that_it_takes(tmp_path: Path, agent: Agent) -> None:
    jobs = [
        RECORDED["jobs"][0] | {"id": f"{number}.guest", "Resource_List": {"pageferry": "\U0001f600" * 4096}}
        for number in range(20)
    ]
    config = {"socket": str(agent.path), "request_resource": "pageferry"}
    assert run(tmp_path, "exechost_periodic", config, jobs=jobs).errors == []
    heard = [job.id for message in agent.heard for job in events.parse(message).jobs]
    assert heard == [job["id"] for job in jobs]
    assert all(len(message["keep"]) == 20 for message in agent.heard)
    assert all(len(json.dumps(message, ensure_ascii=False).encode()) < 65536 * 2 for message in agent.heard)


def test_a_command_that_does_not_read_costs_no_more_either(tmp_path: Path) -> None:
    script = tmp_path / "command"
    script.write_text("#!/bin/sh\nexec sleep 20\n")
    script.chmod(0o755)
    config = {"socket": str(tmp_path / "nobody"), "command": [str(script)], "preresume_seconds": 1}
    ran = run(tmp_path, "execjob_preresume", config)
    assert ran.accepted
    assert ran.seconds < 1 + SOON_S


def test_a_server_that_does_not_answer_holds_up_nobody_for_long(tmp_path: Path, agent: Agent) -> None:
    config = {"socket": str(agent.path), "seconds": 0.5}
    ran = run(tmp_path, "execjob_preresume", config, jobs=with_comment("pageferry:nodes=1"), server_seconds=60)
    assert ran.accepted
    assert ran.seconds < 0.5 + SOON_S
    assert agent.heard[0]["jobs"][0]["comment"] == ""
    assert any("did not say the comment" in error for error in ran.errors)


def test_a_resource_of_the_submission_is_passed_on_and_one_that_pbs_lacks_is_none(tmp_path: Path, agent: Agent) -> None:
    job = RECORDED["jobs"][0] | {"Resource_List": {"pageferry": "nodes=1"}}
    config = {"socket": str(agent.path), "request_resource": "pageferry"}
    assert run(tmp_path, "execjob_begin", config, jobs=[job]).accepted
    ran = run(tmp_path, "execjob_begin", config | {"request_resource": "nobody_knows"}, jobs=[job])
    assert [message["jobs"][0]["asked"] for message in agent.heard] == ["nodes=1", ""]
    assert ran.errors == []


def test_an_outcome_that_pbs_has_no_resource_for_is_no_reason_to_stay_suspended(tmp_path: Path, agent: Agent) -> None:
    agent.answer = {"ok": True, "done": True, "told": "moved"}
    ran = run(tmp_path, "execjob_preresume", {"socket": str(agent.path), "outcome_resource": "nobody_knows"})
    assert ran.accepted
    assert any("unknown resource" in error for error in ran.errors)


def test_outcomes_of_moves_that_took_longer_come_with_the_next_period(tmp_path: Path, agent: Agent) -> None:
    job = RECORDED["jobs"][1]["id"]
    agent.answer = {"ok": True, "outcomes": {job: "moved 1 MiB to node 1", "7.gone": "moved"}}
    ran = run(tmp_path, "exechost_periodic", {"socket": str(agent.path), "outcome_resource": "pageferry_outcome"})
    assert ran.set == {job: {"pageferry_outcome": "moved 1 MiB to node 1"}}
    assert ran.accepted


HOSTILE = ["pageferry:nodes=1\n\x1b[2J", "\udcff\x00", "x" * 100_000, "pageferry:" + ";" * 5000]


@pytest.mark.parametrize("text", HOSTILE, ids=["terminal", "bytes", "long", "many"])
def test_hostile_comments_arrive_as_bounded_text(tmp_path: Path, agent: Agent, text: str) -> None:
    agent.answer = {"ok": True, "done": True, "told": f"failed: {text[:50]}"}
    ran = run(tmp_path, "execjob_preresume", {"socket": str(agent.path)}, jobs=with_comment(text))
    assert ran.accepted
    assert len(agent.heard[0]["jobs"][0]["comment"]) <= 1024
    assert all(line.isprintable() and len(line) <= 1000 for line in ran.log)


def command(tmp_path: Path, text: str) -> list[str]:
    """Return a command that reads what it is asked, does what `text` says, and notes that it has."""
    script = tmp_path / "command"
    script.write_text(f'#!/bin/sh\nread line\necho "$line" > {tmp_path}/asked\n{text}\necho done > {tmp_path}/done\n')
    script.chmod(0o755)
    return [str(script)]


def test_without_an_agent_the_command_is_asked_and_answers(tmp_path: Path) -> None:
    words = command(tmp_path, 'echo \'{"held": true, "told": "moving"}\'')
    config = {"socket": str(tmp_path / "nobody"), "command": words, "outcome_resource": "pageferry_outcome"}
    ran = run(tmp_path, "execjob_preresume", config)
    assert ran.accepted
    assert ran.errors == []
    assert json.loads((tmp_path / "asked").read_text())["event"] == "execjob_preresume"
    assert list(ran.set.values()) == [{"pageferry_outcome": "moving"}]


def test_a_command_that_takes_longer_outlives_the_hook_and_its_process_group(tmp_path: Path) -> None:
    words = command(tmp_path, f"until [ -e {tmp_path}/go ]; do sleep 0.05; done")
    config = {"socket": str(tmp_path / "nobody"), "command": words, "preresume_seconds": 0.5}
    ran = run(tmp_path, "execjob_preresume", config)
    assert ran.accepted
    assert not (tmp_path / "done").exists()
    (tmp_path / "go").touch()
    wait_until((tmp_path / "done").exists, "the command goes on")


def test_a_hook_that_is_killed_at_its_alarm_takes_nothing_with_it(tmp_path: Path) -> None:
    words = command(tmp_path, f"until [ -e {tmp_path}/go ]; do sleep 0.05; done")
    config = {"socket": str(tmp_path / "nobody"), "command": words, "preresume_seconds": 28}
    hook = begin(tmp_path, "execjob_preresume", config)
    wait_until((tmp_path / "asked").exists, "the command was asked")
    kill_group(hook.pid)
    assert hook.wait() == -signal.SIGKILL
    assert not (tmp_path / "result").exists(), "it was killed before it accepted"
    (tmp_path / "go").touch()
    wait_until((tmp_path / "done").exists, "the command goes on")


def test_a_command_that_is_not_there_is_logged(tmp_path: Path) -> None:
    config = {"socket": str(tmp_path / "nobody"), "command": ["/nowhere/pageferry", "pbs-event"]}
    ran = run(tmp_path, "execjob_postsuspend", config)
    assert ran.accepted
    assert any("/nowhere/pageferry" in error for error in ran.errors)


def test_a_command_can_be_ended_by_signals_although_mom_blocks_them(tmp_path: Path) -> None:
    words = command(tmp_path, f"grep SigBlk /proc/self/status > {tmp_path}/mask")
    config = {"socket": str(tmp_path / "nobody"), "command": words, "preresume_seconds": 5}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        assert run(tmp_path, "execjob_preresume", config).accepted
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
    assert int((tmp_path / "mask").read_text().split()[1], 16) == 0


FAULTS = [
    ('{\n "sockett": "/run/x"\n}', 'line 2: "sockett": unknown key; there are socket, command'),
    ('{"socket": "run/x"}', 'line 1: socket = "run/x": expected an absolute path'),
    ('{"command": "pageferry"}', 'line 1: command = "pageferry": expected a list of words'),
    ('{\n\n "preresume_seconds": true}', "line 3: preresume_seconds = true: expected a number from 0 to 3600"),
    ('{"alarm": 1}', "line 1: alarm = 1: expected a number from 3 to 86400"),
    ('{"outcome_resource": "a b"}', 'line 1: outcome_resource = "a b": expected the name of a resource'),
    ("[]", "not a JSON object"),
    ("{", "not JSON"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=lambda value: value[:24])
def test_each_fault_of_the_configuration_is_named_and_its_default_holds(tmp_path: Path, text: str, fault: str) -> None:
    ran = run(tmp_path, "execjob_begin", text)
    assert ran.accepted
    assert any(fault in error for error in ran.errors), ran.errors


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=lambda value: value[:24])
def test_outside_of_mom_the_file_checks_a_configuration(text: str, fault: str) -> None:
    words = ["/usr/bin/python3", "-I", "-S", str(HOOK)]
    checked = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert fault in checked.stderr
    assert subprocess.run(words, input="{}", text=True, check=False).returncode == 0

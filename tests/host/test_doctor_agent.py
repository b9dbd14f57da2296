"""What must hold of the doctor before an agent: running, down, hung and hanging up are told apart, in little time."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from pageferry.doctor.agent import examine_agent
from pageferry.doctor.findings import Grade


@pytest.mark.parametrize("answer", [b'{"ok": true}\n', b'{"error": "no", "code": 1}\n'])
def test_an_agent_that_answers_is_running(answer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()

        def serve() -> None:
            connection, _ = agent.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        findings = list(examine_agent(path))
        server.join()
    assert findings[0].text == f"running, process {os.getpid()}"
    assert [finding.subject for finding in findings] == ["agent", "agent's cgroup"]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("absent", "not running"),
        ("dead", "not running"),
        ("a file", "not running"),
        ("hung", "does not answer within 0.1 s"),
        ("hung, queue full", "does not answer within 0.1 s"),
        ("hangs up", "hung up without an answer"),
    ],
)
def test_an_agent_that_does_not_answer_is_named_with_what_to_do(state: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    agent = socket.socket(socket.AF_UNIX)
    callers = []
    if state == "a file":
        path.write_text("")
    elif state != "absent":
        agent.bind(str(path))
    if state.startswith("hung"):
        agent.listen(0)
    if state == "hung, queue full":
        callers = [socket.socket(socket.AF_UNIX)]
        callers[0].connect(str(path))
    if state == "hangs up":
        agent.listen()

        def hang_up() -> None:
            agent.accept()[0].close()

        threading.Thread(target=hang_up).start()
    findings = list(examine_agent(path, seconds=0.1 if state.startswith("hung") else 10))
    for one in (agent, *callers):
        one.close()
    (finding,) = findings
    assert finding.grade is Grade.WARN
    assert says in finding.text
    assert "systemctl" in finding.text or "journalctl" in finding.text

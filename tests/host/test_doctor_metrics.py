"""What must hold of the doctor before metrics: what cannot be used is named, and an agent that runs is believed."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pageferry import config, wire
from pageferry.doctor.findings import Finding, Grade
from pageferry.doctor.metrics import examine_metrics

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "collector"
    made.mkdir()
    return made


def examined(tmp_path: Path, text: str, agent: Path | None = None) -> dict[str, Finding]:
    path = tmp_path / "pageferry.toml"
    path.write_text(text)
    found = list(examine_metrics(path, agent or tmp_path / "none.sock"))
    assert len({finding.subject for finding in found}) == len(found)
    return {finding.subject: finding for finding in found}


@contextmanager
def answering(folder: Path, faults: list[str]) -> Iterator[Path]:
    """Stand in for an agent that answers `status` once."""
    path = folder / "agent.sock"
    answer: dict[str, Any] = {"ok": True, "jobs": {}, "metrics_faults": faults}
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        agent.settimeout(20)

        def serve() -> None:
            connection, _ = agent.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(wire.encoded(answer))

        server = threading.Thread(target=serve)
        server.start()
        yield path
        server.join()


def test_a_folder_and_an_address_that_can_be_used_are_named(tmp_path: Path, folder: Path) -> None:
    found = examined(tmp_path, f'[metrics]\ntextfile = "{folder}"\nlisten = "127.0.0.1:19797"\n')
    assert {finding.grade for finding in found.values()} == {Grade.OK}
    assert found["metrics textfile"].text == str(folder)
    assert found["metrics address"].text == "http://127.0.0.1:19797/metrics"


def test_without_any_setting_it_says_where_metrics_would_go(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "TEXTFILE", tmp_path / "none")
    assert examined(tmp_path, "")["metrics textfile"].text.startswith(f"none: there is no {tmp_path / 'none'}")
    monkeypatch.setattr(config, "TEXTFILE", folder)
    assert examined(tmp_path, "")["metrics textfile"].text == str(folder)


def somebody_elses(path: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _path: None, "No such file or directory: make it, or change textfile"),
        (lambda path: path.write_text(""), "is no directory"),
        (somebody_elses, "may not write there: chown root and chmod u+w"),
        (lambda path: path.mkdir(0o555), "may not write there"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "a [31m folder"
    make(path)
    text = f'[metrics]\ntextfile = "{path}"\n'
    finding = examined(tmp_path, text)["metrics textfile"]
    assert finding.grade is Grade.WARN
    assert says in finding.text
    assert finding.text.startswith(str(path))


def test_a_read_only_file_system_is_seen(tmp_path: Path, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)], check=True)
    try:
        finding = examined(tmp_path, f'metrics.textfile = "{folder}"')["metrics textfile"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert finding.grade is Grade.WARN
    assert "read-only" in finding.text


def test_an_address_that_is_not_this_hosts_or_is_taken_is_named(tmp_path: Path) -> None:
    finding = examined(tmp_path, 'metrics.listen = "192.0.2.1:9797"')["metrics address"]
    assert finding == Finding(
        Grade.WARN, "metrics address", "192.0.2.1:9797: is no address of this host: change listen in [metrics]"
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        finding = examined(tmp_path, f'metrics.listen = "127.0.0.1:{port}"')["metrics address"]
    assert finding.grade is Grade.WARN
    assert "already in use" in finding.text


def test_an_agent_that_runs_is_believed(tmp_path: Path, folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)  # this agent can write there all the same
    with socket.create_server(("127.0.0.1", 0)) as own:
        text = f'[metrics]\ntextfile = "{folder}"\nlisten = "127.0.0.1:{own.getsockname()[1]}"\n'
        with answering(tmp_path, []) as agent:
            found = examined(tmp_path, text, agent)
        assert {finding.grade for finding in found.values()} == {Grade.OK}
        agent.unlink()
        fault = f"metrics.textfile: {folder}/pageferry.prom: Read-only file system"
        with answering(tmp_path, [fault]) as agent:
            found = examined(tmp_path, text, agent)
    assert found["metrics"] == Finding(Grade.WARN, "metrics", fault)
    assert "metrics textfile" not in found
    assert found["metrics address"].grade is Grade.OK


def test_faulty_settings_are_left_to_those_who_name_them(tmp_path: Path) -> None:
    assert examined(tmp_path, 'metrics.listen = "nowhere"') == {}

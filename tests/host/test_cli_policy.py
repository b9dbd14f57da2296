"""The commands about the site's policy, as a person or a program runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pageferry import targets, wire
from pageferry.cli import main as cli
from pageferry.cli import policy as commands
from pageferry.cpus.assign import Cpusets
from pageferry.errors import ConfigError
from pageferry.policy import Facts
from pageferry.schedulers.base import Job
from pageferry.targets import Found
from support.children import python, said


def run(*words: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(cli.commands, words, standalone_mode=False)


@pytest.mark.parametrize("said_by", ["option", "environment"])
def test_right_files_are_named_and_counted(tmp_path: Path, said_by: str) -> None:
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "pageferry.toml").write_text('[[rule]]\nname = "a"\n')
    (tmp_path / "policy.d/b.toml").write_text('[[rule]]\nname = "b"\n')
    path = f"{tmp_path}/pageferry.toml"
    words, variables = (("--config", path), {}) if said_by == "option" else ((), {"PAGEFERRY_CONFIG": path})
    answer = run("check-config", *words, **variables)
    assert answer.return_value == 0
    assert answer.stdout.splitlines() == [
        f"read {tmp_path}/pageferry.toml",
        f"read {tmp_path}/policy.d/b.toml",
        "2 rules, no fault",
    ]
    alone = run("check-config", "--json", str(tmp_path / "policy.d/b.toml"))
    assert json.loads(alone.stdout) == {"files": [f"{tmp_path}/policy.d/b.toml"], "rules": ["b"], "faults": []}


def test_each_fault_of_each_file_is_a_line_and_the_code_is_3(tmp_path: Path) -> None:
    for name, text in (("a", "[agent]\nworkers = 0\nx = 1\n"), ("b\n", "rule = 1\n")):
        (tmp_path / name).write_text(text)
    answer = run("check-config", str(tmp_path / "a"), str(tmp_path / "b\n"), str(tmp_path / "none"))
    assert answer.return_value == 3
    assert [line.split(" = ")[0] for line in answer.stderr.splitlines()] == [
        f"{tmp_path}/a:2: agent.workers",
        f"{tmp_path}/a:3: agent.x",
        f"{tmp_path}/b\\n:1: rule",
        f"{tmp_path}/none: No such file or directory",
    ]
    assert answer.stdout == ""


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A job of one process, of which Slurm says that it is in the partition `long`."""
    with python("import sys; print(1, flush=True); sys.stdin.read()") as process:
        said(process)
        slurms = Job("7", "slurm", (), frozenset({process.pid}), None, None, None)
        found = Found("job 7", frozenset({process.pid}), (), Cpusets())
        monkeypatch.setattr(targets, "scheduled", lambda _job: slurms)
        monkeypatch.setattr(targets, "find", lambda _job, _pids, _cgroup: found)
        monkeypatch.setattr(commands, "_facts", lambda _job: (Facts("slurm", partition="long"), None))
        yield process.pid


def test_whoever_looks_at_other_settings_than_the_agent_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []

    def ask(path: Path, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        asked.append(path)
        return {"jobs": {}, "settings": "/site/pageferry.toml"}

    monkeypatch.setattr(wire, "ask", ask)
    (said,) = run("check-config").stderr.splitlines()
    assert said.startswith("pageferry: the agent reads /site/pageferry.toml, and this is about /etc/pageferry/")
    assert run("check-config", "--config", str(tmp_path / "mine.toml")).stderr == ""
    assert run("check-config", PAGEFERRY_CONFIG=str(tmp_path / "mine.toml")).stderr == ""
    assert asked == [wire.PATH], "who names them knows"


RULES = """
[[rule]]
name = "short"
match.partition = "short"
[[rule]]
name = "long"
libraries = "*"
match.partition = "l*"
"""


def test_a_job_s_rule_and_why_not_the_others_and_each_mapping_are_explained(tmp_path: Path, job: int) -> None:
    path = tmp_path / "p.toml"
    path.write_text(RULES)
    answer = json.loads(run("explain", "7", "--config", str(path), "--json").stdout)
    assert (answer["rule"], answer["unknown"]) == ("long", None)
    assert answer["passed_over"] == [{"rule": "short", "why": "partition is long, not short"}]
    assert answer["policy"]["libraries"] == ["*"]
    mappings = {entry["what"]: entry for entry in answer["mappings"]}
    program = mappings[os.path.realpath(f"/proc/{job}/exe")]
    assert (program["moves"], program["rule"], program["detail"]) == (False, "library-list", "*")
    assert mappings["private memory"]["moves"]
    sizes = [entry["bytes"] for entry in answer["mappings"]]
    assert sizes == sorted(sizes, reverse=True)
    people = run("explain", "7", "--config", str(path)).stdout
    assert "job 7: rule long\nnot short: partition is long, not short\n" in people
    assert "library-list" in people


def test_nodes_to_park_on_that_this_host_has_not_are_named(tmp_path: Path, job: int) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[rule]]\nname = "parks"\npark = "0,900"\n')
    answer = json.loads(run("explain", "7", "--config", str(path), "--json").stdout)
    assert (answer["policy"]["park"], answer["park_lacks"]) == ([0, 900], [900])
    people = run("explain", "7", "--config", str(path)).stdout
    assert "no memory on this host to park it on: node 900\n" in people
    assert "park 0, 900" in people.replace("\n", " ")


def test_what_is_not_known_of_a_job_is_said(tmp_path: Path, job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.toml"
    path.write_text(RULES)
    monkeypatch.setattr(commands, "_facts", lambda _job: (Facts("slurm"), "slurmctld\x1b is away"))
    people = run("explain", "7", "--config", str(path)).stdout
    assert "job 7: no rule matches; the host's settings hold" in people
    assert r"what it is, is not known (slurmctld\x1b is away)" in people
    assert "not long: partition: not known, wanted l*" in people


def test_nothing_is_explained_by_wrong_settings(tmp_path: Path, job: int) -> None:
    (tmp_path / "p.toml").write_text("x = 1")
    answer = run("explain", "7", "--config", str(tmp_path / "p.toml"))
    assert isinstance(answer.exception, ConfigError)


def test_an_owners_request_says_what_was_typed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    outcome = {
        "complete": False, "lacking_bytes": {}, "page_bytes": 4096, "moved_bytes": 0, "pages": {}, "excluded": {},
        "total_pages": 0, "requested_pages": 0, "retried_pages": 0, "addresses": 0, "calls": 0,
        "asked_per_process_pages": 0, "seconds": 0.0, "seconds_planning": 0.0,
    }  # fmt: skip

    def ask(_path: Path, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert timeout > 60
        asked.append(message)
        return {"outcome": outcome}

    monkeypatch.setattr(wire, "ask", ask)
    assert run("request", "7", "--to", "1").return_value == 1
    outcome["complete"] = True
    assert run("request", "7", "--to", "1", "--strategy", "pack").return_value == 0
    assert asked == [
        {"verb": "request", "job": 7, "nodes": "1"},
        {"verb": "request", "job": 7, "nodes": "1", "strategy": "pack"},
    ]

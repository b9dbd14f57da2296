"""What must hold of the command line as an operator meets it: one line, the right code, and a fast start."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pageferry import ferry, targets
from pageferry.cli import main as cli
from pageferry.cpus.assign import Cpusets
from pageferry.errors import Denied, KernelError, PageferryError, Silent, Vanished
from pageferry.kernel import libnuma
from pageferry_planner.policy import Rules
from support.children import child
from support.slurm_groups import slurm_job


def pageferry(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pageferry", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["plan", "4294967", "--to", "0"], 2, "no such job on this host: 4294967"),
        (["move", "12;id", "--to", "0"], 2, "not a Slurm job ID"),
        (["move", "--pid", "4194304", "--to", "0"], 2, "no such process: 4194304"),
        (["move", "--to", "0"], 2, "name one target"),
        (["plan", "1"], 2, "Missing option '--to'"),
        (["move", "1"], 2, "Missing option '--to'"),
        (["move", "1", "--pid", "1", "--to", "0"], 2, "name one target"),
        (["plan", "--cgroup", "/no/such\n\x1b[31mgroup", "--to", "0"], 2, r"no such cgroup: /no/such\n\x1b[31mgroup"),
        (["plan", "--pid", "self", "--to", "0"], 2, "Invalid value for '--pid'"),
        (["status", "--no-such-option"], 2, "No such option"),
        (["no-such-command"], 2, "No such command"),
    ],
)
def test_bad_input_gets_one_clear_line_and_code_2(words: list[str], code: int, says: str) -> None:
    answer = pageferry(*words)
    assert answer.returncode == code
    assert answer.stdout == ""
    (line,) = [line for line in answer.stderr.splitlines() if says in line]
    assert line.startswith(("pageferry: ", "Error: "))
    assert "Traceback" not in answer.stderr
    assert "\x1b" not in answer.stderr


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--to", "1-", "--to: not a list of numbers: '1-'"),
        ("--to", "3-1", "--to: reversed range 3-1"),
        ("--to", "", "--to: names nothing"),
        ("--to", "0-99999999", "--to: more than 65536 members"),
        ("--from", "x", "--from: not a list of numbers: 'x'"),
        ("--spill-to", "0-", "--spill-to: not a list"),
        ("--reserve", "12Q", "--reserve: not a size such as 512M: '12Q'"),
        ("--reserve", "-1", "--reserve: not a size"),
        ("--weights", "0:3", "--weights: for --strategy weighted"),
        ("--strategy=weighted", "--weights=0:0", "--weights: expected nodes below 1024"),
    ],
)
def test_a_bad_option_is_named_with_its_value(option: str, value: str, says: str) -> None:
    with child() as process:
        words = [] if option == "--to" else ["--to", "0"]
        answer = pageferry("plan", "--pid", str(process.pid), *words, option, value)
    assert answer.returncode == 2
    assert says in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_cpus_are_not_given_back_while_an_agent_would_take_them_again(tmp_path: Path) -> None:
    words = ["release", "--force", "--cpus", "--run-folder", str(tmp_path)]
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))
        agent.listen()
        answer = pageferry(*words)
        assert answer.returncode == 2
        assert answer.stderr.startswith("pageferry: the agent runs")
        assert pageferry(*words[:2], *words[3:]).returncode == 0, "what systemd runs when the agent has ended"
    assert pageferry(*words).returncode == 0


def test_a_one_node_host_is_not_supported_and_says_so() -> None:
    with child() as process:
        for verb in ("plan", "move"):
            answer = pageferry(verb, "--pid", str(process.pid), "--to", "0")
            assert answer.returncode == 4
            assert answer.stderr == "pageferry: this host has one NUMA node with memory: there is nowhere to move to\n"


def test_without_libnuma_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str, **_options: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    libnuma._library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setattr(ferry, "check", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["pageferry", "move", "--pid", str(os.getpid()), "--to", "0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    assert "libnuma.so.1 is not installed" in capsys.readouterr().err


def test_status_says_where_memory_is_for_people_and_for_programs() -> None:
    with child() as process:
        answer = pageferry("status", "--pid", str(process.pid), "--json")
        assert answer.returncode == 0, answer.stderr
        (status,) = json.loads(answer.stdout)
        assert status["processes"] == 1
        assert sum(node["bytes"] for node in status["nodes"].values()) == status["bytes"] > 0
        people = pageferry("status", "--pid", str(process.pid))
        assert f"process {process.pid}: 1 processes" in people.stdout
        assert "all of it in place" in people.stdout


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_status_shows_the_jobs_beside_one_without_a_process(version: str) -> None:
    with slurm_job(version) as job:
        (job.group.parent / f"job_{job.number + 1}/step_0").mkdir(parents=True)
        (job.group.parent / f"job_{job.number + 2}").mkdir()
        answer = pageferry("status", "--json")
        assert pageferry("status", str(job.number + 1)).returncode == 2, "asked for by its name it is an error"
    assert answer.returncode == 0
    jobs = {status["target"] for status in json.loads(answer.stdout)}
    assert f"job {job.number}" in jobs
    assert not jobs & {f"job {job.number + 1}", f"job {job.number + 2}"}


@pytest.mark.parametrize(
    ("error", "told"),
    [(Vanished("ended"), False), (Denied("not yours"), True), (Silent("no answer"), True), (KernelError("!"), True)],
)
def test_a_job_that_cannot_be_looked_at_costs_no_other_its_status(
    error: PageferryError, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really = ferry.survey

    def survey(pids: frozenset[int], rules: Rules) -> object:
        if pids == {1}:
            raise error
        return really(pids, rules)

    with child() as process:
        jobs = [targets.Found(f"job {pid}", frozenset({pid}), (), Cpusets()) for pid in (1, process.pid)]
        monkeypatch.setattr(ferry, "survey", survey)
        monkeypatch.setattr(targets, "find_all", lambda: jobs)
        assert cli.commands(["status", "--json"], standalone_mode=False) == 0
    said = capsys.readouterr()
    assert [status["target"] for status in json.loads(said.out)] == [f"job {process.pid}"]
    assert ("job 1" in said.err) is told
    assert len(said.err.splitlines()) == told


def test_a_snapshot_of_a_process_is_text_about_its_memory_and_is_refused_as_a_plan_is(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with child() as process:
        made = pageferry("snapshot", "--pid", str(process.pid), "--to", "0", "--out", str(path))
        assert (made.returncode, made.stdout) == (0, ""), made.stderr
        head, *rest = map(json.loads, pageferry("snapshot", "--pid", str(process.pid)).stdout.splitlines())
    assert head["of"] == f"process {process.pid}"
    assert [line["pid"] for line in rest if "pid" in line] == [process.pid]
    assert sum(sum(line["count"]) for line in rest if "runs" in line) > 0
    answer = pageferry("plan", "--from-snapshot", str(path))
    assert answer.returncode == 4
    assert answer.stderr == "pageferry: this host has one NUMA node with memory: there is nowhere to move to\n"


def test_a_file_that_is_no_snapshot_gets_one_line_and_code_2(tmp_path: Path) -> None:
    path = tmp_path / "snap\nshot"
    path.write_bytes(b"\x1b[2J\n")
    answer = pageferry("plan", "--from-snapshot", str(path))
    assert answer.returncode == 2
    assert answer.stderr == f"pageferry: {tmp_path}/snap\\nshot:1: not a line of JSON in ASCII\n"


def test_doctor_finds_that_one_node_is_too_few() -> None:
    answer = pageferry("doctor")
    assert answer.returncode == 4
    assert "FAIL  NUMA nodes: 1 with memory" in answer.stdout
    findings = json.loads(pageferry("doctor", "--json").stdout)
    assert {finding["subject"] for finding in findings} >= {"NUMA nodes", "move_pages", "page frames", "AutoNUMA"}


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m pageferry doctor | true"
    answer = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in answer.stderr
    assert answer.returncode not in {-signal.SIGPIPE, 120}


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["status", "--help"], ["move", "--help"], ["snapshot", "--help"]]
)
def test_nothing_heavy_is_imported_before_it_is_needed(words: list[str]) -> None:
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pageferry", *words], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in answer.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"numpy", "rich", "psutil", "jinja2", "pageferry_planner", "ctypes", "subprocess"}


def test_a_program_can_read_status_without_loading_the_tables() -> None:
    with child() as process:
        words = ["status", "--pid", str(process.pid), "--json"]
        command = [sys.executable, "-X", "importtime", "-m", "pageferry", *words]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "rich" not in {line.rsplit("|", 1)[-1].strip() for line in answer.stderr.splitlines()}

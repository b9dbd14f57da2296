"""What must hold of the exact status of a job: what is away from its CPUs, and what is where it was put on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pageferry import ferry, report, targets
from pageferry.cli import main as cli
from pageferry.cpus.assign import Cpusets
from pageferry.errors import Denied, KernelError, Vanished
from pageferry_planner.model import Verdict
from support.plans import anonymous, snapshot_of
from support.recordings import inputs_of

KEPT = Verdict(False, "reference-count")
SNAPSHOT = snapshot_of(
    [anonymous(0, 0, 10, 0), anonymous(0, 600, 7, 1), anonymous(0, 900, 5, 2), (0, 2000, 3, 2, 0, 0)], verdicts=[KEPT]
)
TOPOLOGY = inputs_of(SNAPSHOT).topology


def pages(status: dict[str, Any], *keys: str) -> list[int]:
    return [status[key] // 4096 for key in keys]


@pytest.mark.parametrize(
    ("special", "remote", "on_purpose"), [(set(), 12, 0), ({2}, 7, 5), ({1, 2}, 0, 12), ({0, 3}, 12, 0)]
)
def test_memory_on_a_special_node_is_not_away(special: set[int], remote: int, on_purpose: int) -> None:
    status = report.status_json("job 7", SNAPSHOT, TOPOLOGY, frozenset(special))
    assert pages(status, "remote_bytes", "special_bytes", "bytes") == [remote, on_purpose, 25]
    assert {int(node) for node, found in status["nodes"].items() if found["special"]} == special


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ferry, "survey", lambda *_: (SNAPSHOT, TOPOLOGY))
    monkeypatch.setattr(targets, "find", lambda *_: targets.Found("job 7", frozenset({1}), (), Cpusets()))


def status(*words: str) -> Any:
    return CliRunner().invoke(cli.commands, ["status", "7", *words], standalone_mode=False)


@pytest.mark.usefixtures("job")
def test_the_status_is_told_by_the_sites_special_nodes(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[nodes]\nspecial = "2"\n')
    (told,) = json.loads(status("--json", "--config", str(site)).stdout)
    assert pages(told, "remote_bytes", "special_bytes") == [7, 5]
    shown = status("--config", str(site)).stdout
    assert [line.split()[1] for line in shown.splitlines()[2:6]] == ["yes", "-", "special", "-"]


@pytest.mark.usefixtures("job")
def test_faults_in_the_settings_do_not_keep_a_job_from_being_shown(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[nodes]\nspecial = "2-"\n')
    said = status("--json", "--config", str(site))
    assert said.return_value == 0
    (told,) = json.loads(said.stdout)
    assert pages(told, "remote_bytes", "special_bytes") == [12, 0]
    assert f"{site}:2: nodes.special" in said.stderr


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 1 has ended, that of pid 2 is somebody else's, of pid 3 a file is broken; the others can be looked at."""
    errors = {1: Vanished("ended"), 2: Denied("not yours"), 3: KernelError("broken")}

    def survey(pids: frozenset[int], _rules: object) -> object:
        (pid,) = pids
        if pid in errors:
            raise errors[pid]
        return SNAPSHOT, TOPOLOGY

    monkeypatch.setattr(ferry, "survey", survey)


def beside(monkeypatch: pytest.MonkeyPatch, *pids: int) -> None:
    found = [targets.Found(f"job {pid}", frozenset({pid}), (), Cpusets()) for pid in pids]
    monkeypatch.setattr(targets, "find_all", lambda: found)


def status_of_all(*words: str) -> Any:
    return CliRunner().invoke(cli.commands, ["status", *words], standalone_mode=False)


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("left_out", [1, 2, 3])
def test_jobs_are_shown_to_people_and_programs_beside_one_that_is_left_out(
    left_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch, 7, left_out, 8)
    people = status_of_all()
    assert (people.exception, people.return_value) == (None, 0)
    assert [name in people.stdout for name in ("job 7:", f"job {left_out}:", "job 8:")] == [True, False, True]
    assert [told["target"] for told in json.loads(status_of_all("--json").stdout)] == ["job 7", "job 8"]


@pytest.mark.usefixtures("jobs")
def test_jobs_of_which_none_can_be_shown_are_one_line_and_no_job_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch, 1, 2, 3)
    people = status_of_all()
    assert (people.exception, people.return_value) == (None, 0)
    (said,) = people.stdout.splitlines()
    assert json.loads(status_of_all("--json").stdout) == []
    beside(monkeypatch)
    (none,) = status_of_all().stdout.splitlines()
    assert said != none

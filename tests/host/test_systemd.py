"""What must hold of the unit under a real systemd, on hosts of both cgroup versions that have the Debian package."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.rights import CAPABILITIES
from support.packaged import UNIT, Job, drop_in, install, shown, slurm_job
from support.slurm_groups import answers
from support.throwaway_host import SYSTEMD, Host, throwaway_host, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICE = REPOSITORY / "hooks/systemd/pageferry.service"
DOCTOR = """
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStartPre=
ExecStart=
ExecStart=pageferry doctor --json
ExecStopPost=
StandardOutput=truncate:/dev/shm/doctor.json
# This host has one node, which doctor says is too few.
SuccessExitStatus=4
"""

COMPACTS = """
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStartPre=
ExecStart=
ExecStart=test -w /sys/devices/system/node/node0/compact
ExecStopPost=
"""


@pytest.fixture(scope="module", params=["v2", "v1"])
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def host(deb: Path, version: str) -> Iterator[Host]:
    """A host that systemd has started, with the package installed."""
    with throwaway_host(*SYSTEMD, version=version) as made:
        install(made, deb)
        yield made


@pytest.fixture
def agent(host: Host) -> Iterator[Host]:
    """That host, with the agent running as the package has it."""
    host.run("systemctl", "start", UNIT)
    yield host
    host.ask("systemctl", "reset-failed", UNIT)


@pytest.fixture
def job(agent: Host, version: str) -> Iterator[Job]:
    """A job that runs on it."""
    with slurm_job(agent, version, 4711) as made:
        yield made


def main_pid(host: Host) -> int:
    return int(shown(host, "MainPID"))


def said(host: Host) -> str:
    """The journal of the unit."""
    host.run("journalctl", "--sync")
    return host.run("journalctl", "--quiet", "--no-pager", "--output=cat", f"--unit={UNIT}")


def suspended(job: Job) -> None:
    job.suspend()
    wait_until(job.is_held, "the agent holds the job")


def test_the_agent_is_active_when_it_says_that_it_is_ready(agent: Host) -> None:
    agent.run("systemctl", "stop", UNIT)
    agent.run("systemctl", "start", UNIT)
    assert [shown(agent, name) for name in ("Type", "ActiveState", "SubState")] == ["notify", "active", "running"]
    assert agent.path("/run/pageferry/agent.sock").is_socket(), "it listens by then"
    assert json.loads(agent.run("pageferry", "cpus", "--json")) == {"map": {}, "jobs": {}}


def test_the_unit_is_without_fault_to_systemd(host: Host) -> None:
    assert host.run("systemd-analyze", "verify", f"/lib/systemd/system/{UNIT}") == ""


def test_the_agent_has_the_capabilities_of_the_unit_and_no_others(agent: Host) -> None:
    granted = re.findall(r"^CapabilityBoundingSet=(.+)$", SERVICE.read_text(), re.MULTILINE)
    assert set(" ".join(granted).split()) == CAPABILITIES.keys()
    wanted = sum(1 << number for number in CAPABILITIES.values())
    status = agent.path(f"/proc/{main_pid(agent)}/status").read_text()
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(found[name], 16) == wanted, name
    assert int(found["CapAmb"], 16) == 0
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2"), "and no way to more"


def test_all_that_moving_needs_is_there_under_the_units_restrictions(agent: Host) -> None:
    """Doctor tries what a move does; under the unit it finds nothing less than without."""
    run_confined(agent, DOCTOR)
    confined = json.loads(agent.path("/dev/shm/doctor.json").read_text())
    _, free = agent.ask("pageferry", "doctor", "--json")

    def grades(found: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
        return {one["subject"]: (one["grade"], re.sub("node [0-9]+|process [0-9]+", "", one["text"])) for one in found}

    assert grades(confined) == grades(json.loads(free))
    for subject in ("move_pages", "capabilities", "page frames", "shared objects", "freezer", "agent"):
        assert grades(confined)[subject][0] == "ok", subject


def run_confined(agent: Host, instead: str) -> None:
    """Run something else under the unit's restrictions; fails if it does."""
    units = agent.path("/etc/systemd/system")
    (units / "examine.service").write_text(agent.path(f"/lib/systemd/system/{UNIT}").read_text())
    (units / "examine.service.d").mkdir(exist_ok=True)
    (units / "examine.service.d/instead.conf").write_text(instead)
    agent.run("systemctl", "daemon-reload")
    agent.run("systemctl", "start", "examine.service")


def test_nodes_can_be_compacted_under_the_units_restrictions(agent: Host) -> None:
    run_confined(agent, COMPACTS)


def test_the_history_is_written_under_the_units_restrictions(agent: Host) -> None:
    answer = json.loads(agent.run("pageferry", "history", "--json"))
    assert [event["kind"] for event in answer["events"] if event["kind"] == "started"]
    assert agent.path("/var/lib/pageferry").stat().st_mode & 0o777 == 0o700
    assert agent.path("/var/lib/pageferry/history.sqlite3").exists()


def test_a_job_is_held_while_it_is_suspended_and_runs_when_it_is_resumed(job: Job) -> None:
    assert answers(job.process, 20)  # type: ignore[arg-type]
    suspended(job)
    job.resume()
    wait_until(job.is_free, "the agent lets it go")
    assert answers(job.process, 20)  # type: ignore[arg-type]


def test_stopping_the_service_releases_what_it_held(agent: Host, job: Job) -> None:
    suspended(job)
    agent.run("systemctl", "stop", UNIT)
    assert job.is_free()
    assert [shown(agent, name) for name in ("ActiveState", "Result")] == ["inactive", "success"]
    job.resume()
    assert answers(job.process, 20)  # type: ignore[arg-type]


def test_an_agent_that_hangs_is_ended_by_the_watchdog_and_another_takes_over(agent: Host, job: Job) -> None:
    with drop_in(agent, "WatchdogSec=1"):
        agent.run("systemctl", "restart", UNIT)
        suspended(job)
        hung = main_pid(agent)
        agent.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", UNIT)
        wait_until(lambda: main_pid(agent) not in {0, hung}, "systemd starts another")
        wait_until(lambda: shown(agent, "ActiveState") == "active", "it is ready")
        assert "Watchdog timeout" in said(agent)
        wait_until(job.is_held, "the job is still suspended, so the next one holds it")
        job.resume()
        wait_until(job.is_free, "and lets it go")
        assert answers(job.process, 20)  # type: ignore[arg-type]
    agent.run("systemctl", "restart", UNIT)


def test_what_a_killed_agent_and_guardian_held_is_released_by_the_unit(agent: Host, job: Job) -> None:
    with drop_in(agent, "Restart=no"):
        suspended(job)
        agent.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", UNIT)
        wait_until(lambda: shown(agent, "ActiveState") == "failed", "the service has ended")
        assert f"job {job.number}: released" in said(agent), "by ExecStopPost"
        assert job.is_free()
    agent.run("systemctl", "start", UNIT)


def test_the_exposure_that_the_document_names_is_not_exceeded() -> None:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(SERVICE)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exposure = re.search(r"Overall exposure level for pageferry.service: ([0-9.]+)", answer)
    documented = re.search(r"exposure level ([0-9.]+)", (REPOSITORY / "docs/security.md").read_text())
    assert exposure
    assert documented
    assert float(exposure[1]) <= float(documented[1])

"""A site's Slurm with what pageferry gives it: it starts on the files, runs the hooks, and doctor sees what is wrong.

Every test here starts a Slurm of its own, on a configuration of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guest import nursery
from guest.ranks import SHARED, filled, job
from guest.vm import slurm as daemons
from guest.vm.jobs import Slurm, wait_until
from guest.witness import node_of, node_vector, resident_frames
from pageferry.render import SlurmOptions, render_slurm, shipped

SOCKET = Path("/run/pageferry/agent.sock")
UNIT = shipped("hooks") / "systemd/pageferry.service"
BALANCING = Path("/proc/sys/kernel/numa_balancing")
RENDERED = frozenset({"ProctrackType", "TaskPlugin", "ConstrainCores"})
NOBODY = 65534


@pytest.fixture(autouse=True)
def no_slurm() -> Iterator[None]:
    """Leave no Slurm to the next test, and no file of ours in its folder."""
    daemons.stop()
    yield
    daemons.stop()
    for path in (*daemons.CONF.glob("pageferry*.conf"), daemons.CONF / "job_submit.lua"):
        path.unlink(missing_ok=True)


def start_rendered() -> Slurm:
    """Start Slurm on what `render slurm` writes, and on nothing else for the keys that it has."""
    render_slurm(daemons.CONF, SlurmOptions(shipped("hooks") / "slurm", health_check_seconds=60))
    shutil.copy(shipped("hooks") / "slurm/job_submit.lua", daemons.CONF)
    return daemons.start(extra="Include pageferry.conf", cgroup_extra="Include pageferry-cgroup.conf", without=RENDERED)


@contextmanager
def listening(backlog: int) -> Iterator[socket.socket]:
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    SOCKET.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(SOCKET))
        agent.listen(backlog)
        agent.settimeout(60)
        yield agent
    SOCKET.unlink()


def heard(agent: socket.socket, verb: str) -> dict[str, Any]:
    """Return the next thing that is said to the agent with `verb`; the health check may come at any time."""
    while True:
        connection, _ = agent.accept()
        with connection, connection.makefile() as lines:
            said: dict[str, Any] = json.loads(lines.read())
        if said["verb"] == verb:
            return said


def doctor(*prefix: str) -> dict[str, tuple[str, list[str]]]:
    """Return what doctor says: by subject, the worst grade and the texts."""
    words = ["doctor", "--json"]
    command = [*prefix, sys.executable, "-m", "pageferry", *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False) if prefix else nursery.run(*words)
    found: dict[str, tuple[str, list[str]]] = {}
    for finding in json.loads(answer.stdout):
        grade, texts = found.get(finding["subject"], ("ok", []))
        worst = max(grade, finding["grade"], key=["ok", "warn", "fail"].index)
        found[finding["subject"]] = (worst, [*texts, finding["text"]])
    return found


def ran_through(slurm: Slurm, meanwhile: Callable[[int], None] = lambda _job: None) -> None:
    """Run a job from its prolog to its epilog, and see that Slurm would run the next."""
    number = slurm.submit("true")
    meanwhile(number)
    slurm.wait_state(number, "COMPLETED")
    # The node is completing until its epilog has ended, and drained if that failed.
    wait_until(lambda: slurm.node_states() != ["comp"], "the epilog ends")
    assert slurm.node_states() == ["idle"]


@pytest.mark.v1
def test_slurm_runs_on_what_was_rendered_and_its_hooks_reach_the_agent() -> None:
    logged = {log: log.stat().st_size for log in daemons.log_folder().glob("slurm*.log")}
    with listening(16) as agent:
        slurm = start_rendered()

        def hear(number: int) -> None:
            assert heard(agent, "starting") == {"verb": "starting", "job": number}
            assert heard(agent, "ended") == {"verb": "ended", "job": number}

        ran_through(slurm, hear)
        # slurmd runs the health check when it starts, too.
        subprocess.run(["scontrol", "reconfigure"], check=True)
        found = doctor()
    for subject in ("ProctrackType", "TaskPlugin", "ConstrainCores", "Prolog", "Epilog", "JobSubmitPlugins"):
        assert found[subject][0] == "ok", found[subject]
    assert found["HealthCheckProgram"][0] == "ok"
    for log in slurm.logs.glob("slurm*.log"):
        assert b"specified more than once" not in log.read_bytes()[logged.get(log, 0) :]


@pytest.mark.long
def test_slurm_loses_no_job_and_no_node_to_an_agent_that_is_down_or_hung() -> None:
    slurm = start_rendered()
    assert not SOCKET.exists()
    ran_through(slurm)
    assert doctor()["agent"][0] == "warn"
    with listening(0):
        callers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        callers[0].connect(str(SOCKET))
        callers[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            callers[1].connect(str(SOCKET))
        ran_through(slurm)
        grade, (said,) = doctor()["agent"]
        assert (grade, "does not answer within 2 s" in said) == ("warn", True)
        for caller in callers:
            caller.close()


def test_doctor_names_each_thing_that_is_set_wrong() -> None:
    folder = daemons.CONF / "epilog.d"
    folder.mkdir(exist_ok=True)
    (folder / "README").write_text("not a program\n")
    wrong = f"""
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
Prolog=/etc/slurm/prolog.d/*
Epilog={folder}/*
"""
    daemons.start(extra=wrong, cgroup_extra="ConstrainCores=no", without=RENDERED)
    before = BALANCING.read_text()
    BALANCING.write_text("1")
    try:
        found = doctor("setpriv", "--bounding-set=-sys_nice,-sys_ptrace")
    finally:
        BALANCING.write_text(before)
        shutil.rmtree(folder)
    for subject, grade, change in (
        ("ProctrackType", "fail", "set ProctrackType=proctrack/cgroup in slurm.conf"),
        ("TaskPlugin", "warn", "set TaskPlugin=task/cgroup,task/affinity in slurm.conf"),
        ("ConstrainCores", "warn", "set ConstrainCores=yes in /etc/slurm/cgroup.conf"),
        ("Prolog", "warn", "nothing on this host matches /etc/slurm/prolog.d/*"),
        ("Epilog", "warn", "/etc/slurm/epilog.d/README cannot be run"),
        ("JobSubmitPlugins", "warn", "set JobSubmitPlugins=lua"),
        ("AutoNUMA", "warn", "sysctl kernel.numa_balancing=0"),
        ("agent", "warn", "not running"),
        ("CAP_SYS_NICE", "warn", "missing"),
        ("CAP_SYS_PTRACE", "warn", "missing"),
    ):
        assert found[subject][0] == grade, (subject, found[subject])
        assert change in " ".join(found[subject][1])


def granted() -> frozenset[str]:
    match = re.search(r"^CapabilityBoundingSet=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert match is not None
    return frozenset(name.removeprefix("CAP_").lower() for name in match[1].split())


def test_a_job_of_another_user_moves_with_the_capabilities_that_the_unit_grants() -> None:
    assert moved_with(granted()) == (0, 204 + 300)


@pytest.mark.long
@pytest.mark.parametrize("capability", ["dac_read_search", "sys_admin", "sys_nice"])
def test_the_unit_grants_no_capability_that_is_not_needed(capability: str) -> None:
    code, moved = moved_with(granted() - {capability})
    assert code != 0 or moved < 204 + 300


@contextmanager
def group(cpus: str) -> Iterator[Path]:
    """Make a control group with CPUs of its own, and remove it once its processes have ended."""
    path = daemons.CGROUP / "pageferry-site"
    (daemons.CGROUP / "cgroup.subtree_control").write_text("+cpuset")
    path.mkdir()
    (path / "cpuset.cpus").write_text(cpus)
    yield path
    wait_until(lambda: "populated 0" in (path / "cgroup.events").read_text(), "the group is empty")
    path.rmdir()


def moved_with(capabilities: frozenset[str]) -> tuple[int, int]:
    """Move a job of nobody's as root with few capabilities: CPUs, held, its memory; return exit code and pages moved.

    Two processes share a file that their user alone may read, and half of which neither ever touched.
    """
    path = Path("/dev/shm/pageferry-site")
    with group("0-1") as own, job(node=0) as made:
        filled(path, 204, node=0)
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o600)
        made.first.map(204, str(path), flags=SHARED).read(0, 100)
        private = made.first.map(300).write()
        made.fork()  # maps all of it, too: no page is one process's alone
        for rank in made.ranks:
            rank.ask("drop_to", NOBODY)
            (own / "cgroup.procs").write_text(str(rank.pid))
        made.seal()
        bounding = ",".join(["-all", *(f"+{name}" for name in sorted(capabilities))])
        become = ["setpriv", f"--bounding-set={bounding}", f"--inh-caps={bounding}"]
        words = ["move", f"--cgroup={own}", "--to", "2", "--cpus", "4-5", "--freeze", "--json"]
        command = [*become, sys.executable, "-m", "pageferry", *words]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        on_target = node_vector(made.first.pid, *private.span).count(2)
        on_target += int((node_of(resident_frames(path, 0, 204)) == 2).sum())
        path.unlink()
        return answer.returncode, on_target

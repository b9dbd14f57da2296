"""Asking and telling a real slurmctld by Slurm's commands, and the hook in it that refuses wrong requests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.vm import slurm as daemons
from guest.vm import slurmconf
from guest.vm.jobs import Slurm, wait_until
from pageferry.comment import parse
from pageferry.errors import SchedulerError, UsageError
from pageferry.schedulers.control import READ_SECONDS, nodes_here, write_outcome
from pageferry.schedulers.slurm_api import choose
from pageferry.schedulers.slurm_commands import SlurmCommands
from support.requests import BAD, GOOD, OTHERS

HOOK = Path(__file__).parents[2] / "hooks/slurm/job_submit.lua"
NOBODY = 65534
COMMANDS = SlurmCommands()
SLEEP = "exec sleep 1000"
SMALL = "--mem=50"
FORGED = "a\n7               7" + " " * 63 + "SUSPENDED AdminComment=pageferry:nodes=9 é UserId=ann(1)"


@pytest.fixture(scope="module")
def slurm(several_nodes: None) -> Iterator[Slurm]:
    """Slurm with our hook in slurmctld; one that runs without it is stopped."""
    if daemons.running():
        daemons.stop()
    daemons.CONF.mkdir(parents=True, exist_ok=True)
    hook = daemons.CONF / "job_submit.lua"
    shutil.copy(HOOK, hook)
    yield daemons.start(extra="JobSubmitPlugins=lua")
    daemons.stop()
    hook.unlink()


@pytest.fixture(scope="module")
def job(slurm: Slurm) -> Iterator[int]:
    number = slurm.submit(SLEEP, SMALL, f"--job-name={FORGED}", "--time=60")
    slurm.wait_state(number, "RUNNING")
    yield number
    slurm.cancel(number)


def update(job: int, *settings: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", "update", f"JobId={job}", *settings]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def log(slurm: Slurm) -> str:
    return (slurm.logs / "slurmctld.log").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "pageferry:nodes=2-3,cpus=4-7;guest:nodes=1,now",
        " two  blanks 'and' \"quotes\" $HOME `id` \\n",
        "é → ☃\tand a tab",
        "first\nsecond\n1               1",
        "Comment=x AdminComment=y,z=1",
        "x" * 3000,
        "",
    ],
)
def test_a_comment_comes_back_as_it_was_written(text: str, job: int) -> None:
    COMMANDS.set_admin_comment(job, text)
    found = COMMANDS.job(job)
    assert found.admin_comment == text
    assert (found.id, found.address, found.state, found.user_id) == (job, str(job), "RUNNING", 0)
    assert (found.hosts, found.partition) == (("guest",), "main")


def test_a_job_whose_name_forges_a_request_has_none(job: int) -> None:
    COMMANDS.set_admin_comment(job, "")
    assert "AdminComment=pageferry" in COMMANDS.job(job).name
    assert parse(COMMANDS.job(job).admin_comment) is None


def test_this_host_is_found_in_a_jobs_hosts(job: int) -> None:
    assert nodes_here(job, ("guest", "another"), "a-name-that-slurm-does-not-know") == ("guest",)


def test_a_job_is_suspended_and_resumed_and_once_more_is_no_error(slurm: Slurm, job: int) -> None:
    for _ in range(2):
        COMMANDS.suspend(job)
    assert COMMANDS.job(job).state == "SUSPENDED"
    wait_until(lambda: slurm.frozen(job), "frozen")
    for _ in range(2):
        COMMANDS.resume(job)
    assert COMMANDS.job(job).state == "RUNNING"
    wait_until(lambda: not slurm.frozen(job), "thawed")


@pytest.mark.long
def test_what_is_told_of_one_array_task_is_told_of_it_alone(slurm: Slurm) -> None:
    array = slurm.submit(SLEEP, SMALL, "--array=1-3")
    wait_until(lambda: slurm.state(array).split() == ["RUNNING"] * 3, "three tasks run")
    jobs = {task: COMMANDS.job(f"{array}_{task}").id for task in (1, 2, 3)}
    assert sorted(jobs.values()) == [array, array + 1, array + 2]
    assert jobs[3] == array, "the last task has the array's ID"

    for task, number in jobs.items():
        COMMANDS.set_admin_comment(number, f"task {task}")
    for task, number in jobs.items():
        assert COMMANDS.job(number) == COMMANDS.job(f"{array}_{task}")
        assert COMMANDS.job(number).admin_comment == f"task {task}"

    COMMANDS.suspend(array)
    states = [COMMANDS.job(number).state for number in jobs.values()]
    assert states == ["RUNNING", "RUNNING", "SUSPENDED"]
    wait_until(lambda: slurm.frozen(array), "frozen")
    COMMANDS.resume(array)
    assert COMMANDS.job(array).state == "RUNNING"
    subprocess.run(["scancel", str(array)], check=True)


def test_a_job_that_waits_has_no_hosts_and_cannot_be_suspended(slurm: Slurm) -> None:
    waiting = slurm.submit(SLEEP, SMALL, "--begin=now+1hour")
    assert (COMMANDS.job(waiting).state, COMMANDS.job(waiting).hosts) == ("PENDING", ())
    with pytest.raises(SchedulerError, match="Job is pending execution"):
        COMMANDS.suspend(waiting)
    subprocess.run(["scancel", str(waiting)], check=True)


def test_a_job_that_ended_or_never_was_is_said_so(slurm: Slurm) -> None:
    ended = slurm.submit("true", SMALL)
    slurm.wait_state(ended, "COMPLETED")
    assert COMMANDS.job(ended).state == "COMPLETED"
    for change in (COMMANDS.suspend, COMMANDS.resume, lambda job: COMMANDS.set_admin_comment(job, "x")):
        with pytest.raises(UsageError, match=f"^job {ended}: .*: the job has ended$"):
            change(ended)
        with pytest.raises(UsageError, match=r"^job 99999: no such job$"):
            change(99999)
    with pytest.raises(UsageError, match=r"^job 99999: no such job$"):
        COMMANDS.job(99999)


AS_A_USER = """
import os
from pageferry.errors import SchedulerError
from pageferry.schedulers.slurm_commands import SlurmCommands
os.setgroups([]); os.setgid({user}); os.setuid({user})
commands = SlurmCommands()
print(commands.job({job}).state)
for change in (commands.suspend, commands.resume, lambda job: commands.set_admin_comment(job, "x")):
    try:
        change({job})
    except SchedulerError as error:
        print(error)
"""


@pytest.mark.long
def test_a_user_without_rights_may_look_and_is_told_what_it_takes_to_change(job: int) -> None:
    script = AS_A_USER.format(user=NOBODY, job=job)
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 0, said.stderr
    state, *refusals = said.stdout.splitlines()
    assert state == "RUNNING"
    assert len(refusals) == 3
    assert all("rights of an operator" in refusal for refusal in refusals)


def test_an_outcome_takes_the_place_of_the_request(job: int) -> None:
    COMMANDS.set_admin_comment(job, "pageferry:nodes=2-3")
    assert write_outcome(COMMANDS, job, "guest", "moved 34.8 MiB to nodes 2-3, 14:02:11", served="pageferry:nodes=2-3")
    comment = COMMANDS.job(job).admin_comment
    assert comment == "[pageferry] guest: moved 34.8 MiB to nodes 2-3, 14:02:11"
    assert parse(comment) is None


def test_without_pyslurm_the_commands_are_chosen(slurm: Slurm) -> None:
    assert choose() == COMMANDS


def test_slurmctld_takes_good_requests_and_other_peoples_comments(job: int) -> None:
    for text in (*GOOD, *OTHERS):
        answer = update(job, f"AdminComment={text}")
        assert answer.returncode == 0, f"{text!r}: {answer.stderr}"


@pytest.mark.long
def test_slurmctld_refuses_wrong_requests_and_keeps_the_old_comment(slurm: Slurm, job: int) -> None:
    COMMANDS.set_admin_comment(job, "as it was")
    for text in BAD:
        answer = update(job, f"AdminComment={text}")
        assert answer.returncode != 0, text
        assert "Invalid argument" in answer.stderr, "all that 22.05 tells the operator"
    assert COMMANDS.job(job).admin_comment == "as it was"
    written = log(slurm)
    for text, complaint in BAD.items():
        if text.isascii() and text.isprintable():
            assert f"pageferry: AdminComment: {complaint}\n" in written, text


def test_other_updates_pass_the_hook(job: int) -> None:
    answer = update(job, "TimeLimit=90", "Comment=pageferry:nodes=x")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.long
def test_a_controller_that_hangs_or_is_gone_is_an_error_in_time(slurm: Slurm, job: int) -> None:
    pid = int((slurmconf.RUN / "slurmctld.pid").read_text())
    try:
        for end in (signal.SIGSTOP, signal.SIGKILL):
            os.kill(pid, end)
            before = time.monotonic()
            with pytest.raises(SchedulerError, match=r"slurmctld did not answer within 5 s|Unable to contact"):
                COMMANDS.job(job)
            assert time.monotonic() - before < READ_SECONDS + 3
    finally:
        wait_until(lambda: not Path("/proc", str(pid), "exe").exists(), "slurmctld ended")
        subprocess.run(["setsid", "slurmctld"], check=True)
    wait_until(lambda: slurm.node_states() != [], "slurmctld is back")
    wait_until(lambda: slurm.state(job) == "RUNNING", "the job is known again")
    assert COMMANDS.job(job).state == "RUNNING"

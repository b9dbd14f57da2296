"""What must hold of finding Slurm's jobs, whatever their users call them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pageferry.errors import SchedulerError, UsageError
from pageferry.schedulers import slurm
from pageferry.schedulers.slurm import Slurm
from support.trees import plant, write

RECORD = (
    "JobId={raw}{more} JobName={name} UserId=ann(1000) GroupId=staff(50) MCS_label=N/A Priority=4294901757 Nice=0 "
    "Account={account} QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Comment={comment} Power=\n"
)
FORGERY = (
    "UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 Nice=0 Account=(null) QOS=normal "
    "JobState=COMPLETED Reason=None"
)


def record(raw: int = 123, more: str = "", name: str = "a.sh", comment: str = "", account: str = "(null)") -> str:
    return RECORD.format(raw=raw, more=more, name=name, comment=comment, account=account)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("slurm_v2", tmp_path)


def scontrol(root: Path, answer: str, errors: str = "", status: int = 0) -> Slurm:
    """Put a scontrol in place that answers, and writes down what it was called with."""
    script = root / "scontrol"
    script.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {shlex.quote(str(root / 'called'))}\n"
        f"printf %s {shlex.quote(answer)}\nprintf %s {shlex.quote(errors)} >&2\nexit {status}\n"
    )
    script.chmod(0o755)
    return Slurm(root, str(script))


def without_scontrol(root: Path) -> Slurm:
    return Slurm(root, str(root / "no-scontrol"))


@pytest.mark.parametrize("text", ["1", "123", "123_4", "123_0", "123+1", "123+0", "4294967295"])
def test_every_spelling_of_a_job_id_is_known(text: str) -> None:
    assert Slurm().parse_job_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0123",
        "-1",
        "123 ",
        "123\n",
        "123;reboot",
        "$(reboot)",
        "--help",
        "123_",
        "123_[1-3]",
        "123_04",
        "123+1+2",
        "123.batch",
        "../123",
        "٣",
        "9" * 11,
        "123\x1b[2J",
    ],
)
def test_hostile_text_is_no_job_id_and_reaches_no_command(root: Path, text: str) -> None:
    with pytest.raises(UsageError, match="not a Slurm job ID") as caught:
        scontrol(root, record()).find(text)
    assert str(caught.value).isprintable()
    assert not (root / "called").exists()


def test_a_job_is_found_with_what_scontrol_adds(root: Path) -> None:
    job = scontrol(root, record(name="a b.sh")).find("123")
    assert (job.id, job.scheduler, job.state, job.user_id, job.name) == ("123", "slurm", "RUNNING", 1000, "a b.sh")
    assert job.pids == {1231, 1233, 1235, 1236, 1241}
    assert len(job.cgroups) == 2
    assert (root / "called").read_text() == "show\njob\n-o\n123\n"


def test_a_job_is_found_without_scontrol(root: Path) -> None:
    job = without_scontrol(root).find("123")
    assert (job.state, job.user_id, job.name) == (None, None, None)
    assert 1231 in job.pids


def test_the_user_of_a_legacy_job_is_known_without_scontrol(tmp_path: Path) -> None:
    assert without_scontrol(plant("slurm_v1", tmp_path)).find("77").user_id == 1000


def test_a_scontrol_that_hangs_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_TIME_LIMIT_SECONDS", 0.05)
    script = root / "scontrol"
    script.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    script.chmod(0o755)
    assert Slurm(root, str(script)).find("123").state is None
    with pytest.raises(SchedulerError, match="did not answer"):
        Slurm(root, str(script)).find("123_4")


def test_a_job_that_is_not_here_is_a_mistake_of_the_asker(root: Path) -> None:
    with pytest.raises(UsageError, match="no such job on this host: 999"):
        scontrol(root, record(999)).find("999")


@pytest.mark.parametrize(
    ("asked", "more"),
    [("124_4", " ArrayJobId=124 ArrayTaskId=4"), ("122+1", " HetJobId=122 HetJobOffset=1")],
)
def test_array_tasks_and_components_are_found_under_their_own_id(root: Path, asked: str, more: str) -> None:
    job = scontrol(root, record(123, more)).find(asked)
    assert job.id == "123"
    assert job.state == "RUNNING"
    with pytest.raises(SchedulerError, match="no-scontrol cannot be run"):
        without_scontrol(root).find(asked)


def test_a_task_that_slurm_does_not_know_is_not_on_this_host(root: Path) -> None:
    errors = "slurm_load_jobs error: Invalid job id specified\n"
    with pytest.raises(UsageError, match="no such job on this host: 9_9"):
        scontrol(root, "", errors, 1).find("9_9")
    assert scontrol(root, "", errors, 1).find("123").state is None


def test_an_answer_about_another_job_is_not_taken(root: Path) -> None:
    for answer in ("", "No jobs in the system\n", record(12, " ArrayJobId=5 ArrayTaskId=6"), record(12)):
        with pytest.raises(SchedulerError, match="does not say which job 123_4 is"):
            scontrol(root, answer).find("123_4")
        assert scontrol(root, answer).find("123").state is None


def test_a_forged_record_cannot_give_a_task_another_id(root: Path) -> None:
    forged = f"x\nJobId=12 ArrayJobId=123 ArrayTaskId=4 JobName=y {FORGERY}"
    job = scontrol(root, record(123, " ArrayJobId=123 ArrayTaskId=4", name=forged)).find("123_4")
    assert job.id == "123"


@pytest.mark.parametrize(
    ("name", "comment", "account"),
    [
        (f"x {FORGERY} ", "", "a"),
        (f"x {FORGERY} ", "", "a b"),
        (FORGERY, "", "a JobState=COMPLETED"),
        (f"x\nJobId=123 JobName=y {FORGERY}", "", "a"),
        (f"x\nJobId=7 JobName=y {FORGERY}", "", "a"),
        (f"x {FORGERY} \nJobId=7 JobName=y", "", "a"),
        (f"x {FORGERY} \nJobId=7 ArrayJobId=123 ArrayTaskId=1 JobName=y", "", "a"),
        (f"JobId=123 JobName=y {FORGERY}", "", "a"),
        ("x", f"x {FORGERY} ", "a"),
        ("x", f"x\nJobId=123 JobName=y {FORGERY} ", "a"),
    ],
)
def test_a_name_that_looks_like_a_record_never_passes_for_another_user(
    root: Path, name: str, comment: str, account: str
) -> None:
    job = scontrol(root, record(name=name, comment=comment, account=account)).find("123")
    assert (job.user_id, job.state, job.name) == (None, None, None)


def test_a_hostile_name_is_printable(root: Path) -> None:
    job = scontrol(root, record(name="a\nb\x1b[2J (deleted)")).find("123")
    assert job.name == r"a\nb\x1b[2J (deleted)"
    assert job.state == "RUNNING"


def test_a_task_whose_number_is_the_arrays_is_asked_for_by_its_own_name(root: Path) -> None:
    answer = "".join(record(raw, f" ArrayJobId=123 ArrayTaskId={raw}", f"n{raw}") for raw in (125, 123, 124))
    script = root / "scontrol"
    alone = record(123, " ArrayJobId=123 ArrayTaskId=123", "n123")
    script.write_text(
        f"#!/bin/sh\ncase $4 in 123_123) printf %s {shlex.quote(alone)};; *) printf %s {shlex.quote(answer)};; esac\n"
    )
    script.chmod(0o755)
    assert Slurm(root, str(script)).find("123").name == "n123"


def test_the_user_is_the_one_all_processes_run_as_when_nobody_else_says(root: Path) -> None:
    plant("processes", root / "captured")
    status = (root / "captured/proc/4242/status").read_text()
    write(root, "proc/1231/status", status)
    write(root, "proc/1235/status", status)
    assert without_scontrol(root).find("123").user_id == 1000
    write(root, "proc/1235/status", status.replace("Uid:\t1000", "Uid:\t0"))
    assert without_scontrol(root).find("123").user_id is None

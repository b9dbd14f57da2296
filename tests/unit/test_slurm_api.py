"""What must hold of asking Slurm's controller by pyslurm: recorded answers of the real one, replayed by a stand-in.

tests/fixtures/pyslurm_25_11.json holds, for each situation, calls of pyslurm 25.11.2 and what they returned or raised
on Slurm 25.11.7, and what libslurm wrote to stderr meanwhile. A call that was not recorded is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageferry.errors import SchedulerError, UsageError
from pageferry.schedulers import slurm_api
from pageferry.schedulers.control import Control
from pageferry.schedulers.slurm_api import SlurmApi, choose
from pageferry.schedulers.slurm_commands import SlurmCommands

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/pyslurm_25_11.json").read_text())
STAND_IN = """
import json, pathlib, sys, types

ANSWERS = json.loads(pathlib.Path(__file__).with_name("answers.json").read_text())
__version__ = "25.11.2"
if "dies" in ANSWERS:
    sys.stderr.write(ANSWERS["stderr"])
    sys.stderr.flush()
    import os
    os._exit(ANSWERS["dies"])


class RPCError(Exception):
    def __init__(self, errno, text):
        super().__init__(text)
        self.errno = errno


def replay(call):
    with pathlib.Path(__file__).with_name("called").open("a") as called:
        called.write(call + "\\n")
    answer = ANSWERS[call]
    sys.stderr.write(answer.get("stderr", ""))
    if "raises" in answer:
        raise RPCError(answer["errno"], answer["text"])
    return answer["returns"]


class Job:
    def __init__(self, job_id):
        self.id = job_id

    @staticmethod
    def load(job_id):
        return filled(replay(f"Job.load({job_id})"))

    def suspend(self):
        replay(f"Job({self.id}).suspend()")

    def unsuspend(self):
        replay(f"Job({self.id}).unsuspend()")

    def modify(self, changes):
        replay(f"Job({self.id}).modify({json.dumps(changes)})")


def filled(attributes):
    job = Job(attributes["id"])
    job.__dict__.update(attributes)
    return job


class Jobs:
    @staticmethod
    def load():
        return {place: filled(one) for place, one in enumerate(replay("Jobs.load()"))}


def JobSubmitDescription(admin_comment):
    return admin_comment


slurmctld = types.SimpleNamespace(ping_primary=lambda: types.SimpleNamespace(**replay("ping_primary()")))
helpers = types.SimpleNamespace(
    nodelist_from_range_str=lambda nodes: replay(f"nodelist_from_range_str({json.dumps(nodes)})")
)
utils = types.SimpleNamespace(helpers=helpers)
"""
Replay = Callable[..., SlurmApi]


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """pyslurm as it answered in a situation; `more` answers were not recorded."""

    def prepared(situation: str, **more: Any) -> SlurmApi:
        (tmp_path / "pyslurm.py").write_text(STAND_IN)
        (tmp_path / "answers.json").write_text(json.dumps({**RECORDED["situations"][situation], **more}))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return SlurmApi(python=(sys.executable, "-P", "-B"))

    return prepared


def called(tmp_path: Path) -> list[str]:
    return (tmp_path / "called").read_text().splitlines()


def test_it_is_a_way_to_the_controller_and_says_which(replay: Replay) -> None:
    control: Control = replay("running")
    assert control.describe() == "pyslurm 25.11.2"


def test_a_running_job(replay: Replay) -> None:
    job = replay("running").job(1)
    assert (job.id, job.address, job.state, job.user_id) == (1, "1", "RUNNING", 0)
    assert (job.hosts, job.partition, job.admin_comment) == (("guest",), "main", "")
    assert job.name == r"a\n7   RUNNING é AdminComment=pageferry:nodes=9"


def test_a_suspended_job_with_a_comment(replay: Replay) -> None:
    job = replay("suspended").job(1)
    assert job.state == "SUSPENDED"
    assert job.admin_comment == "a 'b' \"é→\"\nline2 [pageferry] guest: moved 3 MiB"


def test_a_pending_job_has_no_hosts(replay: Replay) -> None:
    job = replay("pending").job(5)
    assert (job.state, job.hosts, job.admin_comment) == ("PENDING", (), "")


def test_array_tasks_are_told_apart_by_either_name(replay: Replay) -> None:
    api = replay("array")
    assert (api.job(2).id, api.job(2).address) == (2, "2_3")
    assert (api.job(3).id, api.job(3).address) == (3, "2_1")
    assert api.job("2_1") == api.job(3)


def test_an_id_that_stands_for_another_task_too_is_looked_for_among_all(replay: Replay) -> None:
    first = RECORDED["situations"]["array"]["Job.load(3)"]
    assert replay("array", **{"Job.load(2)": first}).job(2).id == 2


def test_a_job_is_suspended_and_resumed(replay: Replay, tmp_path: Path) -> None:
    api = replay("suspended")
    api.suspend(1)
    api.resume(1)
    assert [call for call in called(tmp_path) if "load" not in call] == ["Job(1).suspend()", "Job(1).unsuspend()"]


def test_to_resume_what_runs_is_success(replay: Replay) -> None:
    replay("resumed").resume(1)


def test_a_comment_is_written(replay: Replay, tmp_path: Path) -> None:
    text = "a 'b' \"é→\"\nline2"
    replay("running").set_admin_comment(1, text)
    assert called(tmp_path)[-1] == f"Job(1).modify({json.dumps(text)})"


def test_a_comment_is_taken_away_by_a_blank_as_pyslurm_leaves_out_what_is_empty(replay: Replay, tmp_path: Path) -> None:
    answers = {'Job(1).modify(" ")': {"returns": None}}
    replay("running", **answers).set_admin_comment(1, "")
    assert called(tmp_path)[-1] == 'Job(1).modify(" ")'


def test_what_the_hook_says_is_said(replay: Replay) -> None:
    with pytest.raises(SchedulerError, match=r"Invalid argument \(.*AdminComment: nodes=2-x: not a list of numbers\)$"):
        replay("commented").set_admin_comment(1, "pageferry:nodes=2-x")


def test_a_job_that_is_not_there_is_said_so(replay: Replay) -> None:
    for ask in (replay("running").job, replay("running").suspend, replay("running").resume):
        with pytest.raises(UsageError, match=r"^job 9999: .*no such job$"):
            ask(9999)
    with pytest.raises(UsageError, match="no such job"):
        replay("array").job("2_7")


def test_a_job_that_has_ended_is_said_so(replay: Replay) -> None:
    api = replay("ended")
    assert api.job(1).state == "CANCELLED"
    for change in (api.suspend, api.resume, lambda job: api.set_admin_comment(job, "x")):
        with pytest.raises(UsageError, match="the job has ended"):
            change(1)


def test_a_job_that_waits_cannot_be_suspended(replay: Replay) -> None:
    with pytest.raises(SchedulerError, match=r"^job 5: suspend: Job is pending execution$"):
        replay("pending").suspend(5)


def test_who_may_not_is_told_what_it_takes(replay: Replay) -> None:
    api = replay("not permitted")
    for change in (api.suspend, api.resume, lambda job: api.set_admin_comment(job, "x")):
        with pytest.raises(SchedulerError, match="rights of an operator"):
            change(1)


@pytest.mark.parametrize(
    ("situation", "complaint"),
    [
        ("stopped", "Socket timed out on send/recv operation"),
        ("down", r"Unable to contact slurm controller \(connect failure\)"),
        ("no configuration", "pyslurm ended: .*fatal: Could not establish a configuration source$"),
    ],
)
def test_a_controller_that_is_away_is_an_error_and_not_the_end(situation: str, complaint: str, replay: Replay) -> None:
    with pytest.raises(SchedulerError, match=complaint) as failed:
        replay(situation).job(1)
    assert str(failed.value).isprintable()


def test_a_controller_that_hangs_is_given_up(tmp_path: Path) -> None:
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    api = SlurmApi(python=(str(hanging),), read_seconds=0.2, write_seconds=0.3)
    with pytest.raises(SchedulerError, match=r"^job 1: slurmctld did not answer within 0 s$"):
        api.job(1)
    with pytest.raises(SchedulerError, match=r"it may still be done$"):
        api.suspend(1)


def test_what_is_no_job_id_and_no_comment_is_not_asked_for(replay: Replay, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a Slurm job ID"):
        replay("running").job("--help")
    with pytest.raises(UsageError, match="null byte"):
        replay("running").set_admin_comment(1, "a\0b")
    assert not (tmp_path / "called").exists()


def test_pyslurm_is_chosen_where_it_is_answered(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    for situation, way in (("running", SlurmApi), ("down", SlurmCommands), ("no configuration", SlurmCommands)):
        api = replay(situation)
        monkeypatch.setattr(slurm_api, "SlurmApi", lambda api=api: api)
        assert isinstance(choose(), way)


def test_without_pyslurm_the_commands_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyslurm.py").write_text("raise ImportError('libslurmfull.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    api = SlurmApi(python=(sys.executable, "-P", "-B"))
    with pytest.raises(SchedulerError, match=r"^pyslurm cannot be used: libslurmfull\.so: cannot open"):
        api.describe()
    monkeypatch.setattr(slurm_api, "SlurmApi", lambda: api)
    assert choose(Path("/opt/slurm/bin")) == SlurmCommands(Path("/opt/slurm/bin"))


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "1",
        "null",
        "{}",
        '{"ok": null}',
        '{"ok": []}',
        '{"ok": {"id": 1}}',
        '{"error": "RPCError"}',
        '{"error": [], "text": {}}',
        "[" * 100_000,
        '{"ok": ' + json.dumps({"id": "\ud800"}) + "}",
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_of_the_schedulers(said: str, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(said)
    odd = tmp_path / "odd"
    odd.write_text(f"#!/bin/sh\nexec cat {tmp_path}/said\n")
    odd.chmod(0o755)
    api = SlurmApi(python=(str(odd),))
    for ask in (api.describe, lambda: api.job(1)):
        with pytest.raises(SchedulerError) as failed:
            ask()
        assert str(failed.value).isprintable()
        assert len(str(failed.value)) < 1000


@pytest.mark.parametrize(
    "wrong", [{"user_id": None}, {"id": -1}, {"hosts": "n1"}, {"hosts": [1]}, {"features": None}, {"state": None}]
)
def test_a_job_of_wrong_types_is_an_error_of_the_schedulers(replay: Replay, wrong: dict[str, Any]) -> None:
    loaded = RECORDED["situations"]["running"]["Job.load(1)"]["returns"] | wrong
    with pytest.raises(SchedulerError):
        slurm_api._answer("job 1", loaded, slurm_api._Loaded)

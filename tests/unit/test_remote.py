"""What must hold of a move that is asked for on a login node: one clear word, and no job that is left suspended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from pageferry import remote
from pageferry.comment import Request, Wish, format_request, merge_outcome
from pageferry.errors import PageferryError, SchedulerError, UsageError
from pageferry.schedulers.control import Control, JobRecord

ASKED = Request(Wish((2, 3)))
RECORD = JobRecord(
    id=7, address="7", state="RUNNING", user_id=1000, hosts=("n1", "n2"), admin_comment="", partition="p", name="job"
)


@dataclass
class Slurm:
    """A controller with one job. Its clock is `sleep`; `at` is what happens at a moment of it, `fails` what is refused.

    `done` is all that it was told, in order.
    """

    record: JobRecord = RECORD
    fails: dict[str, PageferryError] = field(default_factory=dict)
    at: dict[float, Callable[[Slurm], None]] = field(default_factory=dict)
    becomes_suspended: bool = True
    done: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    now: float = 0.0
    suspended_for: float | None = None
    _suspended_at: float = 0.0

    def describe(self) -> str:
        return "a stand-in"

    def job(self, job_id: int | str) -> JobRecord:
        assert job_id == "7"
        self._maybe_fail("job")
        return self.record

    def suspend(self, job_id: int | str) -> None:
        self.done.append("suspend")
        self._maybe_fail("suspend")
        if self.becomes_suspended:
            self.record = replace(self.record, state="SUSPENDED")
        self._suspended_at = self.now

    def resume(self, job_id: int | str) -> None:
        self.done.append("resume")
        self._maybe_fail("resume")
        self.record = replace(self.record, state="RUNNING")
        self.suspended_for = self.now - self._suspended_at

    def set_admin_comment(self, job_id: int | str, text: str) -> None:
        self.done.append(text)
        self._maybe_fail("comment")
        self.record = replace(self.record, admin_comment=text)

    def sleep(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        for moment, act in sorted(self.at.items()):
            if before < moment <= self.now:
                act(self)

    def outcome(self, host: str) -> None:
        """Have a host's agent write what became of its part."""
        text = merge_outcome(self.record.admin_comment, host, f"moved 1 MiB by {host}", self.record.hosts)
        self.record = replace(self.record, admin_comment=text)

    def _maybe_fail(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]


def move(slurm: Slurm, request: Request = ASKED, seconds: float = 30) -> str:
    return remote.move(slurm, "7", request, seconds, tell=slurm.told.append, sleep=slurm.sleep)


def test_the_stand_in_is_a_way_to_the_controller() -> None:
    control: Control = Slurm()
    assert control.describe() == "a stand-in"


def test_a_job_is_asked_for_then_suspended_then_resumed_and_its_hosts_words_come_back() -> None:
    slurm = Slurm(at={6: lambda it: it.outcome("n1"), 8: lambda it: it.outcome("n2")})
    said = move(slurm)
    assert slurm.done == ["pageferry:nodes=2,3", "suspend", "resume"]
    assert "n1: moved 1 MiB by n1" in said
    assert "n2: moved 1 MiB by n2" in said
    assert 8 <= slurm.now < 10, "no longer than it takes"
    assert slurm.told == ["job 7 is not on this host: n1, n2 asked, through a stand-in"]


def test_the_job_stays_suspended_until_slurm_has_frozen_it() -> None:
    slurm = Slurm()
    move(slurm, seconds=0)
    assert slurm.suspended_for is not None
    assert slurm.suspended_for >= remote.SETTLE_SECONDS


def test_one_host_that_has_not_answered_is_waited_for_and_then_nothing_is_said() -> None:
    slurm = Slurm(at={6: lambda it: it.outcome("n1")})
    assert move(slurm, seconds=20) == ""
    assert 20 <= slurm.now < 30


def test_a_request_for_one_host_waits_for_no_other() -> None:
    slurm = Slurm(at={6: lambda it: it.outcome("n1")})
    said = move(slurm, Request(named=(("n1", Wish((2,))),)))
    assert said.endswith("n1: moved 1 MiB by n1")


@pytest.mark.parametrize("state", ["PENDING", "COMPLETING", "CONFIGURING", "STOPPED", "PREEMPTED"])
def test_a_job_that_does_not_run_is_left_alone(state: str) -> None:
    slurm = Slurm(replace(RECORD, state=state))
    with pytest.raises(UsageError, match=f"job 7 does not run: it is {state}"):
        move(slurm)
    assert not slurm.done
    assert not slurm.told


def test_for_a_suspended_job_the_operator_is_told_what_to_type() -> None:
    slurm = Slurm(replace(RECORD, state="SUSPENDED"))
    with pytest.raises(UsageError) as raised:
        move(slurm)
    assert f"scontrol update JobId=7 AdminComment='{format_request(ASKED)}', and resume it" in str(raised.value)
    assert not slurm.done
    assert not slurm.told


@pytest.mark.parametrize("error", [UsageError("job 7: no such job"), SchedulerError("slurmctld did not answer")])
def test_what_slurm_says_of_the_job_is_what_the_operator_is_told(error: PageferryError) -> None:
    slurm = Slurm(fails={"job": error})
    with pytest.raises(type(error), match=str(error)):
        move(slurm)
    assert not slurm.done
    assert not slurm.told


def test_a_job_whose_comment_may_not_be_written_is_not_suspended() -> None:
    slurm = Slurm(fails={"comment": SchedulerError("Slurm wants the rights of an operator")})
    with pytest.raises(SchedulerError, match="rights"):
        move(slurm)
    assert "suspend" not in slurm.done


def test_where_it_cannot_be_suspended_the_request_is_taken_back() -> None:
    slurm = Slurm(replace(RECORD, admin_comment="ticket 1"), fails={"suspend": SchedulerError("refused")})
    with pytest.raises(SchedulerError, match="refused"):
        move(slurm)
    assert slurm.record.state == "RUNNING"
    assert slurm.record.admin_comment == "ticket 1", "else the next suspension would serve it"


def test_ctrl_c_while_it_is_suspended_leaves_it_running() -> None:
    def interrupt(_slurm: Slurm) -> None:
        raise KeyboardInterrupt

    slurm = Slurm(at={2: interrupt})
    with pytest.raises(KeyboardInterrupt):
        move(slurm)
    assert slurm.record.state == "RUNNING"


def test_a_controller_that_goes_away_meanwhile_leaves_no_doubt_about_the_job() -> None:
    gone = SchedulerError("slurmctld did not answer within 30 s")

    def leave(slurm: Slurm) -> None:
        slurm.fails = {"job": gone, "resume": gone}

    for becomes_suspended in (True, False):
        slurm = Slurm(at={1: leave}, becomes_suspended=becomes_suspended)
        with pytest.raises(SchedulerError, match=r"did not answer.*job 7 may still be suspended: scontrol resume 7"):
            move(slurm)


def test_a_job_that_slurm_does_not_suspend_is_resumed_after_a_time() -> None:
    slurm = Slurm(becomes_suspended=False)
    move(slurm, seconds=0)
    assert slurm.done[-1] == "resume"
    assert slurm.now <= 2 * remote.SUSPEND_SECONDS


def test_a_job_that_ends_while_its_hosts_are_waited_for_is_said_to_have_ended() -> None:
    def end(slurm: Slurm) -> None:
        slurm.fails = {"job": UsageError("job 7: no such job")}

    slurm = Slurm(at={8: end})
    with pytest.raises(UsageError, match="no such job"):
        move(slurm)
    assert slurm.record.state == "RUNNING"


def test_another_comment_that_is_typed_meanwhile_does_not_end_in_a_complaint_about_it() -> None:
    def type_nonsense(slurm: Slurm) -> None:
        slurm.record = replace(slurm.record, admin_comment="pageferry:noodles=1")

    slurm = Slurm(at={8: type_nonsense})
    assert move(slurm, seconds=20) == ""

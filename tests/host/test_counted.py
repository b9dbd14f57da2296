"""What must hold of what the agent counts on its way: far memory as it was seen, PBS's holds, a move's progress."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pageferry import applied, ferry, spill
from pageferry.agent import chores, homecoming
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.counts import Release
from pageferry.agent.errand import Result
from pageferry.agent.errands import Errands
from pageferry.agent.homecoming import Homecoming
from pageferry.agent.homes import Homes
from pageferry.agent.migrations import Migrations
from pageferry.agent.pbs import PbsEvents
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Tended
from pageferry.config import Agent, HostNodes, Settings
from pageferry.history.store import Store
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import read_topology
from pageferry.pbs import at_once
from pageferry.policy import Policy, Special
from pageferry_planner.model import Target

OUTCOME = {"refused": False, "complete": True, "moved_bytes": 4096, "pages": {}, "seconds": 0.1, "lacking_bytes": {}}
MIB = 1 << 20
Said = Callable[[Mapping[str, Any]], None]
Ended = Callable[[Result], None]


class Sent:
    """Stands for Errands: keeps who is told of an errand's words and of its end."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.ended: list[Ended] = []

    def send(self, _chore: object, ended: Ended, said: Said = lambda _message: None, **_: object) -> None:
        self.said.append(said)
        self.ended.append(ended)

    @property
    def errands(self) -> Errands:
        return cast(Errands, self)


@pytest.fixture
def chronicle(tmp_path: Path) -> Chronicle:
    return Chronicle(Store(tmp_path / "history.sqlite3"))


@pytest.fixture
def sent() -> Sent:
    return Sent()


def test_what_a_homecoming_sees_is_counted_until_no_job_is_left(
    chronicle: Chronicle, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homecoming, "WAIT_SECONDS", 0.0)
    jobs = {999_999_999: Tended(999_999_999)}
    ours = Homecoming(jobs, sent.errands, cast(Any, Placed()), chronicle, Site(Settings()))
    ours.ended()
    assert ours.due() is None
    sent.said[0]({"far": {"0": 5 * MIB, "1": 0}})
    sent.ended[0](Result({"jobs": 0}, None))
    assert chronicle.counts.far() == {0: 5 * MIB, 1: 0}
    jobs.clear()
    ours.ended()
    ours.due()
    assert len(sent.ended) == 1, "nothing is looked for"
    assert chronicle.counts.far() == {0: 0, 1: 0}


def test_only_a_homecoming_of_the_job_that_is_suspended_stops(
    chronicle: Chronicle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homecoming, "WAIT_SECONDS", 0.0)
    stopped: list[bool] = []

    class Interruptible(Sent):
        def send(self, *words: Any, **more: Any) -> Any:
            super().send(*words, **more)
            return SimpleNamespace(interrupt=lambda: stopped.append(True))

    sent = Interruptible()
    jobs = {job: Tended(job) for job in (999_999_998, 999_999_999)}
    ours = Homecoming(jobs, sent.errands, cast(Any, Placed()), chronicle, Site(Settings()))
    ours.suspended(999_999_999)
    ours.ended()
    ours.due()
    ours.suspended(999_999_999)
    sent.said[0]({"begins": 999_999_998})
    ours.suspended(999_999_999)
    assert not stopped
    sent.said[0]({"ends": 999_999_998})
    ours.suspended(999_999_998)
    assert not stopped
    sent.said[0]({"begins": 999_999_999})
    ours.suspended(999_999_999)
    assert stopped == [True]
    jobs[999_999_998].phase = Phase.HELD
    sent.said[0]({"begins": 999_999_998})
    assert stopped == [True, True], "it was suspended before that was heard"
    sent.ended[0](Result({"jobs": 0}, None))
    ours.suspended(999_999_999)
    assert stopped == [True, True]
    ours.due()
    assert len(sent.ended) == 2, "the stop may have been another job's, by the time it was heard"
    sent.ended[1](Result({"jobs": 0}, None))
    ours.due()
    assert len(sent.ended) == 2


def test_a_homecoming_that_is_stopped_leaves_that_job_and_goes_on_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    homes = [spill.Homecoming(job, ferry.Request(Target((0,))), 1, 1) for job in (7, 8, 9)]

    def candidates(jobs: list[int], **_: object) -> list[spill.Homecoming[int]]:
        return [home for home in homes if home.job in jobs]

    def carried(
        _policy: object, pids: tuple[int], _asked: object, progress: Callable[[int, int], None], _seen: object
    ) -> dict[str, Any]:
        if pids == (8,):
            progress(1, 2)  # what comes later is the move's own matter
        if pids != (9,):
            os.kill(os.getpid(), signal.SIGINT)
        return {"pid": pids[0]}

    monkeypatch.setattr(spill, "candidates", candidates)
    monkeypatch.setattr(applied, "carried", carried)
    monkeypatch.setattr(chores, "slurm_job_user_pids", lambda job: (job,))
    said: list[Mapping[str, Any]] = []
    assert chores.bring_home(dict.fromkeys((7, 8, 9)), Settings())(said.append) == {"jobs": 2}
    assert [next(iter(word)) for word in said[1:]] == ["begins", "ends", *("begins", "ends", "job") * 2]


def test_what_a_job_left_where_it_was_parked_comes_home_until_all_of_it_has(
    chronicle: Chronicle, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homecoming, "WAIT_SECONDS", 0.0)
    homes, asked, job = Homes(tmp_path), [], 999_999_999
    homes.leave(job, (3,))
    monkeypatch.setattr(chores, "bring_home", lambda *words: asked.append(words[-1]))
    ours = Homecoming({job: Tended(job)}, sent.errands, cast(Any, homes), chronicle, Site(Settings()))
    came = {"job": job, "nodes": (0,), "rule": ""}
    for complete, left in ((False, (3,)), (True, ())):
        ours.ended()
        ours.due()
        assert asked.pop() == {job: (3,)}
        sent.said[-1](came | {"outcome": OUTCOME | {"complete": complete}})
        sent.ended[-1](Result({"jobs": 1}, None))
        assert homes.left(job) == left


def test_what_a_job_left_where_it_was_parked_since_is_not_taken_to_have_come_home(
    chronicle: Chronicle, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homecoming, "WAIT_SECONDS", 0.0)
    homes, job, other = Homes(tmp_path), 999_999_999, 999_999_998
    homes.leave(job, (2,))
    jobs = {job: Tended(job), other: Tended(other)}
    ours = Homecoming(jobs, sent.errands, cast(Any, homes), chronicle, Site(Settings()))
    ours.ended()
    ours.due()
    homes.leave(job, (2, 3))  # while others' memory came home
    homes.leave(other, (3,))
    for one in jobs:
        sent.said[-1]({"job": one, "nodes": (0,), "rule": "", "outcome": OUTCOME | {"complete": True}})
    assert (homes.left(job), homes.left(other)) == ((3,), (3,))


def test_memory_on_special_nodes_comes_home_only_from_where_its_job_was_parked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[list[int], frozenset[int]]] = []

    def candidates(jobs: list[int], *, special: frozenset[int], **_: object) -> list[spill.Homecoming[int]]:
        seen.append((jobs, special))
        return []

    monkeypatch.setattr(spill, "candidates", candidates)
    here = frozenset(read_topology().nodes_with_memory())
    settings = Settings(nodes=HostNodes(Special(format_list(here | {900}))))
    jobs = dict.fromkeys((7, 8, 9))
    chores.bring_home(jobs, settings, left={8: tuple(here)})(lambda _message: None)
    assert seen == [([7, 9], here), ([8], frozenset())]
    seen.clear()
    chores.bring_home(jobs, Settings(), left={8: (0,)})(lambda _message: None)
    assert {special for _, special in seen} == {frozenset()}


def test_a_look_for_spilled_memory_says_first_what_it_saw() -> None:
    said: list[Mapping[str, Any]] = []
    assert chores.bring_home({999_999_999: None}, Settings())(said.append) == {"jobs": 0}
    assert said == [{"far": dict.fromkeys(sorted(read_topology().nodes_with_memory()), 0)}]


def test_progress_is_said_now_and_then_and_not_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Mapping[str, Any]] = []
    tell = chores._progress(said.append, lambda: None)
    for done in range(1000):
        tell(done, 1000)
    assert len(said) <= 1, "a busy machine may have taken a second"
    monkeypatch.setattr(chores, "PROGRESS_SECONDS", 0.0)
    said.clear()
    tell(3, 10)
    assert said == [{"done_bytes": 3 * 4096, "of_bytes": 10 * 4096}]


class Placed:
    """Stands for what a migration needs besides."""

    mems = Path("/nowhere")

    def nodes(self, _job: int) -> tuple[int, ...]:
        return (1,)

    def home(self, _job: int) -> tuple[int, ...]:
        return (0,)

    def parking(self, _job: int, _policy: Policy) -> tuple[int, ...]:
        return ()

    def parked(self, _job: int) -> tuple[int, ...]:
        return ()

    def left(self, _job: int) -> tuple[int, ...]:
        return ()

    def settle_at(self, _job: int, _nodes: tuple[int, ...]) -> None:
        return


def test_a_move_is_told_with_as_much_of_it_as_is_known(chronicle: Chronicle, sent: Sent) -> None:
    job = Tended(7)
    migrations = Migrations(
        {7: job},
        sent.errands,
        gate=cast(Any, None),
        placing=cast(Any, Placed()),
        chronicle=chronicle,
        site=Site(Settings()),
        ruled=lambda _job: None,
        idle=lambda _job: None,
        stop=lambda _job: None,
        let_go=lambda _job: None,
        room=lambda: None,
    )
    migrations.begin(job, migration := Migration(Cause.CPUSET, Stage.READY))
    assert migration.stage is Stage.MOVES
    told = migration.as_move()
    assert (told["event"], told["nodes"], told["done_bytes"], told["of_bytes"]) == ("cpuset", (1,), None, None)
    sent.said[0]({"done_bytes": 4096, "of_bytes": 8192})
    assert (migration.as_move()["done_bytes"], migration.as_move()["of_bytes"]) == (4096, 8192)
    sent.ended[0](Result(None, "it was killed", 1))
    assert chronicle.counts.migrations == {("cpuset", "failed"): 1}


SERVED = {
    "job": "12.server",
    "uid": 0,
    "event": "execjob_preresume",
    "nodes": [0],
    "sources": [],
    "outcome": None,
    "error": None,
    "request": "",
    "began": 0.0,
    "seconds_stopped": 1.0,
    "rule": "",
    "moments": {},
}


@pytest.fixture
def events(chronicle: Chronicle, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PbsEvents:
    monkeypatch.setattr(at_once, "ready", lambda *_: at_once.Ready(False))  # one node is not enough for more
    settings = Settings(agent=Agent(max_hold_seconds=30.0))
    (tmp_path / "pbs").mkdir()
    return PbsEvents(sent.errands, chronicle, Site(settings), tmp_path / "pbs")


def resumes(events: PbsEvents) -> None:
    """Have MoM's hook say that a job is about to run again, and that its memory is not there yet."""
    job = {"id": "12.server", "comment": ""}
    message = {"event": "execjob_preresume", "hosts": ["here"], "jobs": [job]}
    assert events.happened(message, lambda _: None, os.getpid()) is None


@pytest.mark.parametrize(
    ("result", "cause"),
    [
        (Result(SERVED, None), Release.ARRIVED),
        (Result(SERVED | {"seconds_stopped": 30.0}, None), Release.MAX_HOLD),
        (Result(None, "it was killed", 1), Release.GUARDIAN),
    ],
)
def test_a_hold_of_pbs_is_counted_while_it_lasts_and_by_how_it_ended(
    chronicle: Chronicle, sent: Sent, events: PbsEvents, result: Result, cause: Release
) -> None:
    resumes(events)
    assert events.held() == 0
    sent.said[0]({"held": True})
    assert (events.held(), chronicle.counts.holds) == (1, 1)
    sent.ended[0](result)
    assert events.held() == 0
    assert chronicle.counts.releases == {cause: 1}


def test_one_hold_that_two_events_wait_for_is_counted_once(chronicle: Chronicle, sent: Sent, events: PbsEvents) -> None:
    for said in ({"held": True}, {"held": True, "already": True}):
        resumes(events)
        sent.said[-1](said)
    sent.ended[1](Result(SERVED, None))
    assert events.held() == 1
    sent.ended[0](Result(SERVED, None))
    assert events.held() == 0
    assert chronicle.counts.holds == chronicle.counts.releases.total() == 1


def test_a_hold_that_follows_another_whose_errand_has_not_ended_is_counted_as_long_as_it_lasts(
    chronicle: Chronicle, sent: Sent, events: PbsEvents
) -> None:
    for _ in range(2):
        resumes(events)
        sent.said[-1]({"held": True})
    assert events.held() == 1, "it is one job"
    sent.ended[0](Result(SERVED, None))
    assert events.held() == 1
    sent.ended[1](Result(SERVED, None))
    assert events.held() == 0
    assert chronicle.counts.holds == chronicle.counts.releases.total() == 2


def test_a_job_that_was_not_held_is_no_hold(chronicle: Chronicle, sent: Sent, events: PbsEvents) -> None:
    resumes(events)
    sent.said[0]({"live": "[pbs] hold = false"})
    sent.ended[0](Result(SERVED, None))
    assert (chronicle.counts.holds, chronicle.counts.releases.total()) == (0, 0)


def test_what_pbs_errands_hold_is_released_when_the_agent_stops(
    chronicle: Chronicle, sent: Sent, events: PbsEvents
) -> None:
    resumes(events)
    sent.said[0]({"held": True})
    events.close()
    assert events.held() == 0
    assert chronicle.counts.releases == {Release.STOPPED: 1}

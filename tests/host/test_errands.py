"""Errands on their way: each has its time, and what was meant for a job that is no more does nothing."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pageferry import strays
from pageferry.agent.errand import Result, Say
from pageferry.agent.errands import Errands
from pageferry.agent.migrations import Migrations
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Tended
from pageferry.comment import Wish
from pageferry.config import HostNodes, Settings
from pageferry.policy import Facts, Special
from pageferry_planner.model import Bucket


def sleeps(_say: Say) -> Mapping[str, Any]:
    time.sleep(60)
    return {}


def test_an_errand_that_takes_too_long_is_ended_and_its_end_is_told_once() -> None:
    errands = Errands()
    ended: list[Result] = []
    errands.send(sleeps, ended.append, seconds=0.05)
    assert errands.due() is not None
    assert ended == []
    time.sleep(0.06)
    errands.due()
    assert [result.error for result in ended] == ["the errand took too long"]
    assert errands.descriptors() == []
    deadline = time.monotonic() + 20
    while errands.due() is not None:  # until the child is reaped
        assert time.monotonic() < deadline
    assert len(ended) == 1


def test_an_errand_in_time_is_collected_and_its_descriptor_given_back() -> None:
    errands = Errands()
    ended: list[Result] = []
    errands.send(lambda _say: {"job": 7}, ended.append, job=7, seconds=60)
    (descriptor,) = errands.descriptors()
    assert errands.job(descriptor) == 7
    while not ended:
        assert select.select([descriptor], [], [], 20)[0]
        errands.collect(descriptor)
    assert ended == [Result({"job": 7}, None)]
    assert errands.descriptors() == []


def test_without_a_process_the_errand_ends_at_once_and_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr("os.fork", refuse)
    ended: list[Result] = []
    Errands().send(sleeps, ended.append, seconds=60)
    assert [result.error for result in ended] == ["no process for an errand: Resource temporarily unavailable"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


OUTCOME = {
    "complete": True,
    "refused": False,
    "lacking_bytes": {},
    "pages": {bucket.value: 4 * (bucket in {Bucket.MOVED, Bucket.IN_PLACE}) for bucket in Bucket},
    "excluded": {},
    "page_bytes": 4096,
    "moved_bytes": 4 * 4096,
    "requested_pages": 4,
    "retried_pages": 0,
    "addresses": 4,
    "calls": 1,
    "asked_per_process_pages": 9,
    "seconds": 1.0,
    "seconds_planning": 0.5,
}


class Sent:
    """Stands for Errands: keeps what is to follow."""

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def send(self, _chore: object, ended: Any, _said: object = None, **_: object) -> None:
        self.ended.append(ended)


class Silent:
    """Stands for whatever is told something."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_words: None


class Still(Silent):
    """Stands for a gate that has what it holds stand still."""

    def frozen(self, _job: int) -> bool:
        return True


class Placed(Silent):
    """Stands for Placing, of a job that may be parked, or have been."""

    def __init__(self, on_park: tuple[int, ...] = (), left_there: tuple[int, ...] = ()) -> None:
        self.on_park, self.left_there = on_park, left_there

    def parked(self, _job: int) -> tuple[int, ...]:
        return self.on_park

    def left(self, _job: int) -> tuple[int, ...]:
        return self.left_there

    def served(self, _job: int) -> str:
        return ""

    def nodes(self, _job: int) -> tuple[int, ...]:
        return (0,)

    def home(self, _job: int) -> tuple[int, ...]:
        return (0,)

    def give(self, _job: int, _wish: Wish) -> tuple[int, ...]:
        return ()


def nothing(_tended: Tended) -> None:
    pass


def made(
    jobs: dict[int, Tended],
    sent: Sent,
    *,
    idle: Any = nothing,
    stop: Any = nothing,
    let_go: Any = nothing,
    site: Site | None = None,
    placing: Placed | None = None,
) -> Migrations:
    silent: Any = Silent()
    gate: Any = Still()
    placed: Any = placing or Placed()
    errands: Any = sent
    hooks = {"ruled": silent.ruled, "stop": stop, "let_go": let_go, "idle": idle, "room": silent.room}
    rest = hooks | {"site": site or Site(Settings())}
    return Migrations(jobs, errands, gate=gate, placing=placed, chronicle=silent, **rest)


def test_a_thousand_pokes_are_one_question_and_one_more() -> None:
    sent = Sent()
    ours = made({7: Tended(7), 8: Tended(8)}, sent)
    for _ in range(1000):
        ours.requests.poke([7])
    ours.requests.poke([8])
    assert len(sent.ended) == 1
    sent.ended.pop()(Result({"jobs": {}}, None))
    assert len(sent.ended) == 1
    sent.ended.pop()(Result({"jobs": {}}, None))
    assert sent.ended == []


def test_the_end_of_an_errand_for_a_job_that_is_gone_does_nothing_to_the_next_of_its_id() -> None:
    sent = Sent()
    idle: list[Tended] = []
    jobs = {7: Tended(7)}
    ours = made(jobs, sent, idle=idle.append)
    ours.begin(jobs[7], Migration(Cause.SUSPEND, Stage.ASKS))
    jobs[7] = fresh = Tended(7, Phase.HELD)
    ours.begin(fresh, present := Migration(Cause.SUSPEND, Stage.ASKS))
    sent.ended[0](Result({"jobs": {}}, None))
    assert fresh.migration is present
    assert present.stage is Stage.ASKS
    assert idle == []


@pytest.mark.parametrize("copied", [Result(OUTCOME, None), Result(None, "it was killed")])
def test_a_job_is_held_for_the_rest_only_when_what_can_has_moved_while_it_ran(copied: Result) -> None:
    sent = Sent()
    stopped: list[Tended] = []
    answers: list[Any] = []
    job = Tended(7)
    ours = made({7: job}, sent, stop=stopped.append)
    ours.begin(job, migration := Migration(Cause.REQUEST, Stage.COPIES, Wish((2,)), reply=answers.append))
    assert (stopped, migration.stage) == ([], Stage.COPIES)
    sent.ended.pop()(copied)
    assert (stopped, migration.stage) == ([job], Stage.MOVES)
    sent.ended.pop()(Result(OUTCOME, None))
    assert job.migration is None
    assert answers[0]["outcome"]["requested_pages"] == (8 if copied.value else 4)


@pytest.mark.parametrize(
    ("few", "special", "on_park", "left_there", "there"),
    [
        (True, "", (), (), {2}),
        (False, "", (), (), {2}),
        (True, "0", (), (), {2, 0}),  # what is on a special node is where it is to be
        (True, "0", (), (0,), {2, 0}),  # this move brings nothing back
        (True, "0", (0,), (), {2}),
        (True, "0", (1,), (0,), {2}),
        (True, "0", (1,), (), {2, 0}),
    ],
)
def test_a_job_of_whose_memory_next_to_nothing_is_left_is_let_go_before_the_look_at_the_rest(
    monkeypatch: pytest.MonkeyPatch,
    few: bool,
    special: str,
    on_park: tuple[int, ...],
    left_there: tuple[int, ...],
    there: set[int],
) -> None:
    sent = Sent()
    job = Tended(7)
    phases: list[Phase] = []

    def stop(tended: Tended) -> None:
        tended.phase = Phase.WAITS

    def let_go(tended: Tended) -> None:
        phases.append(tended.phase)
        tended.phase = Phase.RUNS
        ours.advance(tended)

    monkeypatch.setattr(strays, "few", lambda _groups, nodes: few and set(nodes) == there)
    site = Site(Settings(nodes=HostNodes(Special(special))))
    ours = made({7: job}, sent, stop=stop, let_go=let_go, site=site, placing=Placed(on_park, left_there))
    ours.begin(job, migration := Migration(Cause.REQUEST, Stage.COPIES, Wish((2,))))
    sent.ended.pop()(Result(OUTCOME, None))
    assert (migration.stage, phases) == (Stage.MOVES, [Phase.WAITS] if few else [])
    sent.ended.pop()(Result(OUTCOME, None))
    assert job.migration is None


def test_of_two_requests_for_now_the_later_one_is_served() -> None:
    sent = Sent()
    jobs = {7: Tended(7)}
    ours = made(jobs, sent)
    ours.begin(jobs[7], Migration(Cause.RESUME, Stage.ASKS))

    def typed(text: str) -> None:
        ours.requests.poke([7])
        answer = {
            "state": "RUNNING",
            "comment": text,
            "hosts": ["here"],
            "uid": 0,
            "owners_comment": "",
            "facts": asdict(Facts("slurm")),
        }
        sent.ended.pop()(Result({"jobs": {"7": answer}}, None))

    typed("pageferry:nodes=2,now")
    typed("pageferry:nodes=3,now")
    assert [migration.wish.nodes for migration in jobs[7].queue if migration.wish] == [(3,)]
    assert "nodes=3" in jobs[7].served

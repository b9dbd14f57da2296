"""A job that MoM suspends is parked as its rule says, and comes back before, or while, it goes on: on stand-ins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from pageferry.agent.chronicle import Chronicle
from pageferry.agent.errand import Result
from pageferry.agent.errands import Errands
from pageferry.agent.pbs import PbsEvents
from pageferry.agent.site import Site
from pageferry.applied import Destination
from pageferry.config import Agent, Settings
from pageferry.errors import KernelError, PageferryError, Stopped
from pageferry.history.store import Store
from pageferry.kernel.topology import Node, Topology
from pageferry.pbs import aim, at_once, by_hand, record, serve
from pageferry.pbs import hold as pbs_hold
from pageferry.pbs.case import Case, Served
from pageferry.pbs.event import Kind, PbsJob
from pageferry.pbs.record import Record
from pageferry.policy import Mode, Name, Nodes, Policy, Rule
from pageferry_planner.model import Strategy, WhenFull

HERE = frozenset({"here"})
JOB = PbsJob("99.s", exec_vnode="(here[0]:ncpus=2)")
PARKS = Rule(name=Name("parks"), park=Nodes((3,)))
BEGUN = Record(homes=(0,), placed=(0,))
AWAY = Destination((3,), Strategy.RELATIVE, (0,), WhenFull.PARTIAL)
BACK = Destination((0,), Strategy.RELATIVE, (3,), WhenFull.SPILL, frozenset({0}), parked=frozenset({3}))
OUTCOME = {"refused": False, "complete": True, "moved_bytes": 4096, "pages": {}}


class Pbs:
    """A host of PBS's with one job, and what was done with its memory; `fails`: how a move ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopped = True
        self.fails: PageferryError | None = None
        self.outcome: Mapping[str, Any] = OUTCOME
        self.moves: list[tuple[Policy, Destination]] = []
        self.known_then: list[Record] = []
        self.said: list[Mapping[str, Any]] = []
        record.save(JOB.id, BEGUN, folder)

    def move(self, case: Case, policy: Policy, destination: Destination, *_more: object) -> Any:
        self.moves.append((policy, destination))
        self.known_then.append(record.load(case.job.id, self.folder))
        if self.fails is not None:
            raise self.fails
        return self.outcome

    def case(self, kind: Kind, *rules: Rule, comment: str = "") -> Case:
        job = msgspec.structs.replace(JOB, comment=comment)
        return Case(kind, job, HERE, Settings(rule=rules or (PARKS,)), self.folder)

    def happens(self, kind: Kind, *rules: Rule, comment: str = "") -> Served:
        return serve.serve(self.case(kind, *rules, comment=comment), self.said.append)

    @property
    def known(self) -> Record:
        return record.load(JOB.id, self.folder)


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pbs:
    made = Pbs(tmp_path)
    distances = dict.fromkeys(range(4), 20)
    topology = Topology(tuple(Node(number, frozenset(), 1 << 30, 0, 0, distances, {}) for number in range(4)))

    @contextmanager
    def held(_job: str, _pids: frozenset[int], _seconds: float, _folder: Path) -> Iterator[None]:
        yield

    for module in (aim, at_once, serve):
        monkeypatch.setattr(module, "read_topology", lambda: topology)
        monkeypatch.setattr(module, "is_stopped", lambda _pids: made.stopped)
    monkeypatch.setattr(serve, "_move", made.move)
    monkeypatch.setattr(pbs_hold, "held", held)
    return made


def test_a_suspended_job_is_parked_and_comes_back_before_it_goes_on(pbs: Pbs) -> None:
    parked = pbs.happens(Kind.POSTSUSPEND)
    assert pbs.moves[-1][1] == AWAY
    assert (parked.event, parked.nodes, parked.sources) == ("park", (3,), (0,))
    assert (pbs.known.parked, pbs.known.homes, pbs.known.settled) == ((3,), (0,), ())
    assert pbs.known_then[0].parked == (3,), "known before the first page moves"
    assert not at_once.ready(pbs.case(Kind.PRERESUME)).settled, "its memory is not in place"
    pbs.said.clear()
    back = pbs.happens(Kind.PRERESUME)
    assert pbs.said == [{"held": True}]
    assert pbs.moves[-1][1] == BACK
    assert (back.event, back.nodes, back.sources) == ("unpark", (0,), (3,))
    assert (pbs.known.parked, pbs.known.homes) == ((), (0,))


def test_where_some_of_a_job_was_left_is_known_until_all_of_it_is_back(pbs: Pbs) -> None:
    pbs.happens(Kind.POSTSUSPEND)
    pbs.outcome = OUTCOME | {"complete": False}
    pbs.happens(Kind.PRERESUME)
    assert pbs.known.parked == ()
    assert pbs.known.left == (3,)
    pbs.outcome = OUTCOME
    pbs.happens(Kind.POSTSUSPEND, Rule(name=Name("parks no more")))
    assert pbs.known.left == (3,), "a move that leaves special nodes alone brings nothing of it back"
    pbs.happens(Kind.POSTSUSPEND)
    assert pbs.known.left == (3,)
    pbs.happens(Kind.PRERESUME)
    assert pbs.known == msgspec.structs.replace(pbs.known, parked=(), left=())


def test_what_two_parkings_left_comes_back_with_the_next_and_is_forgotten_only_then(pbs: Pbs) -> None:
    record.save(JOB.id, msgspec.structs.replace(BEGUN, left=(2,)), pbs.folder)  # of a parking before
    for complete, left in ((False, (2, 3)), (True, ())):
        pbs.happens(Kind.POSTSUSPEND)
        pbs.outcome = OUTCOME | {"complete": complete}
        pbs.happens(Kind.PRERESUME)
        assert pbs.moves[-1][1] == replace(BACK, parked=frozenset({2, 3}))
        assert (pbs.known.parked, pbs.known.left) == ((), left)


def test_a_job_that_is_parked_elsewhere_before_it_is_back_comes_back_from_both(pbs: Pbs) -> None:
    pbs.happens(Kind.POSTSUSPEND, Rule(name=Name("parked then"), park=Nodes((2,))))
    pbs.happens(Kind.RESIZE)
    assert (pbs.known_then[-1].parked, pbs.known_then[-1].left) == ((3,), (2,)), "known before the first page moves"
    assert (pbs.known.parked, pbs.known.left) == ((3,), (2,))
    pbs.happens(Kind.PRERESUME)
    assert pbs.moves[-1][1] == replace(BACK, parked=frozenset({2, 3}))
    assert (pbs.known.parked, pbs.known.left) == ((), ())


def test_what_a_move_by_hand_takes_nothing_from_is_left_where_it_was_parked(
    pbs: Pbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    pbs.happens(Kind.POSTSUSPEND)
    with by_hand.moving(JOB.id, pbs.folder) as went:
        went((1,))
    assert (pbs.known.homes, pbs.known.parked, pbs.known.left) == ((1,), (), (3,))


def test_a_job_that_goes_on_already_is_not_parked(pbs: Pbs) -> None:
    pbs.stopped = False
    assert pbs.happens(Kind.POSTSUSPEND).event == "execjob_postsuspend"
    assert pbs.moves[-1][1] == Destination((0,), None, (0,))
    assert pbs.known.parked == ()


def test_a_request_is_served_when_the_parked_job_goes_on(pbs: Pbs) -> None:
    pbs.happens(Kind.POSTSUSPEND, comment="pageferry:nodes=2")
    assert pbs.moves[-1][1] == AWAY
    assert pbs.known.served == ""
    back = pbs.happens(Kind.PRERESUME, comment="pageferry:nodes=1,strategy=pack")
    assert pbs.moves[-1][1] == Destination(
        (1,), Strategy.PACK, (3,), WhenFull.SPILL, frozenset({1}), parked=frozenset({3})
    )
    assert (back.request, pbs.known.homes, pbs.known.parked) == ("pageferry:nodes=1,strategy=pack", (1,), ())
    assert pbs.known.served == "pageferry:nodes=1,strategy=pack"


def test_a_wrong_request_is_told_and_the_parked_job_comes_back_all_the_same(pbs: Pbs) -> None:
    pbs.happens(Kind.POSTSUSPEND)
    back = pbs.happens(Kind.PRERESUME, comment="pageferry:nodes=1,cpus=3")
    assert "cpus=" in str(back.error)
    assert pbs.moves[-1][1] == BACK
    assert pbs.known.parked == ()


def test_what_was_parked_comes_back_whatever_the_rule_says_by_then(pbs: Pbs) -> None:
    off = Rule(name=Name("off"), mode="off")
    pbs.happens(Kind.POSTSUSPEND)
    assert not at_once.ready(pbs.case(Kind.PRERESUME, off)).settled
    pbs.happens(Kind.PRERESUME, off)
    policy, where = pbs.moves[-1]
    assert (policy.mode, where) == (Mode.MOVE, BACK)
    assert pbs.known.parked == ()


def test_a_parking_that_is_stopped_before_it_began_is_no_failure_and_any_other_is(pbs: Pbs) -> None:
    pbs.fails = Stopped("its time was used up")
    served = pbs.happens(Kind.POSTSUSPEND)
    assert (served.error, served.outcome, pbs.known.parked) == (None, None, (3,))
    assert pbs.said[-1] == {"parks": True}
    pbs.fails = KernelError("node 3 is outside")
    assert pbs.happens(Kind.POSTSUSPEND).error == "node 3 is outside"
    pbs.fails = None
    pbs.happens(Kind.PRERESUME)
    assert pbs.moves[-1][1] == BACK


def test_a_parked_job_stays_so_until_it_goes_on_and_one_that_goes_on_unseen_is_found(pbs: Pbs) -> None:
    pbs.happens(Kind.POSTSUSPEND)
    assert not at_once.take_note(JOB, HERE, pbs.folder)
    pbs.happens(Kind.RESIZE)
    assert pbs.moves[-1][1] == AWAY
    pbs.stopped = False
    assert at_once.take_note(JOB, HERE, pbs.folder)
    assert pbs.happens(Kind.PERIODIC).event == "unpark"
    assert pbs.moves[-1][1] == BACK
    assert not at_once.take_note(JOB, HERE, pbs.folder)


@pytest.mark.parametrize("rule", [Rule(name=Name("a"), park=Nodes((9,))), Rule(name=Name("b"), park=Nodes((0,)))])
def test_a_job_that_cannot_be_parked_is_moved_as_without(pbs: Pbs, rule: Rule) -> None:
    pbs.happens(Kind.POSTSUSPEND, rule)
    assert pbs.moves[-1][1] == Destination((0,), None, (0,))
    assert (pbs.known.parked, pbs.known.settled) == ((), (0,))


class Sent:
    """Stands for Errands, and for each errand."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.ended: list[Any] = []
        self.interrupted: list[int] = []

    def send(self, _chore: object, ended: Any, said: Any = None, **_: object) -> Any:
        number = len(self.said)
        self.said.append(said)
        self.ended.append(ended)
        return SimpleNamespace(interrupt=lambda: self.interrupted.append(number))


class Mom:
    """Says what happens to a job to an agent whose errands are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.sent = Sent()
        site = Site(Settings(agent=Agent(slurm_user="root"), rule=(PARKS,)))
        chronicle = Chronicle(Store(folder / "history.sqlite3"))
        self.events = PbsEvents(cast(Errands, self.sent), chronicle, site, folder)

    def says(self, kind: Kind) -> None:
        message = {"event": kind.value, "hosts": ["here"], "jobs": [{"id": JOB.id, "exec_vnode": JOB.exec_vnode}]}
        self.events.happened(message, lambda _answer: None, os.getpid())

    def parks(self, number: int) -> None:
        self.sent.said[number]({"parks": True})

    def ends(self, number: int, event: str) -> None:
        self.sent.ended[number](Result(Served(JOB.id, event).as_dict(), None))


@pytest.fixture
def mom(pbs: Pbs) -> Mom:
    return Mom(pbs.folder)


@pytest.mark.parametrize("parks", [True, False])
def test_a_parking_that_is_under_way_at_the_resume_is_stopped_and_no_other_move_is(mom: Mom, parks: bool) -> None:
    mom.says(Kind.POSTSUSPEND)
    if parks:
        mom.parks(0)
    mom.says(Kind.PRERESUME)
    assert mom.sent.interrupted == ([0] if parks else [])
    mom.ends(0, "park" if parks else "execjob_postsuspend")
    assert (mom.events.due() is not None) == parks, "the memory of others may come home"
    mom.says(Kind.PRERESUME)
    assert len(mom.sent.interrupted) == int(parks), "it has ended"


@pytest.mark.parametrize("order", [(0,), (1, 0)])
def test_a_parking_that_begins_after_the_resume_is_stopped_before_anything_moves(
    mom: Mom, order: tuple[int, ...]
) -> None:
    mom.says(Kind.RESIZE)
    mom.says(Kind.POSTSUSPEND)
    mom.says(Kind.PRERESUME)
    mom.parks(0)
    assert mom.sent.interrupted == [0], "it had been sent, and had not got so far"
    for number in order:
        mom.ends(number, "park")
    mom.parks(2)
    assert mom.sent.interrupted == [0, 2], "it had waited for another"


def test_a_parking_of_a_job_that_is_suspended_once_more_is_not_stopped(mom: Mom) -> None:
    mom.says(Kind.POSTSUSPEND)
    mom.says(Kind.PRERESUME)
    mom.says(Kind.POSTSUSPEND)
    mom.parks(0)
    assert mom.sent.interrupted == []
    mom.says(Kind.PRERESUME)
    assert mom.sent.interrupted == [0]


def test_a_resume_stops_no_parking_that_comes_after_all_that_was_under_way_then(mom: Mom) -> None:
    mom.says(Kind.PRERESUME)
    mom.ends(0, "unpark")
    mom.says(Kind.RESIZE)  # whatever stopped it: MoM has told us of no suspension
    mom.parks(1)
    assert mom.sent.interrupted == []

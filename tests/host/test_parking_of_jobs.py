"""A suspended job's memory is parked as its rule says, and comes back before the job goes on.

Here on stand-ins that take note; how it fares on a real node without CPUs, under real preemption, is seen in the guest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from host.test_policy_of_jobs import AWAY, OUTCOME, World, answered, jobs_of, of, rule, said, world_of
from pageferry import parking
from pageferry.agent import tending
from pageferry.agent.errand import Result
from pageferry.agent.homecoming import Homecoming
from pageferry.agent.homes import Homes
from pageferry.agent.tended import Phase
from pageferry.agent.tending import Tending
from pageferry.applied import Destination
from pageferry.comment import Wish
from pageferry.config import Settings
from pageferry.errors import UsageError
from pageferry.kernel.topology import Node, Topology
from pageferry.policy import Mode, Nodes, Policy, Rule
from pageferry_planner.model import Strategy, WhenFull

PARKS = rule("parks", "main", park=Nodes((3,)))
THERE = Destination((3,), Strategy.RELATIVE, (0,), WhenFull.PARTIAL)
BACK = Destination((0,), Strategy.RELATIVE, (3,), WhenFull.SPILL, frozenset({0}), parked=frozenset({3}))
DONE = Result(OUTCOME, None)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    yield (made := world_of(monkeypatch))
    made.check()


def last(world: World) -> tuple[Any, ...]:
    """Return what was sent last: a question, or where a job's memory is to go."""
    return ("move", world.sent[-1][2]) if world.sent[-1][0] == "move" else world.sent[-1][:1]


def suspended(world: World, *rules: Rule, comment: str = "") -> Tending:
    ours, _ = jobs_of(world, *(rules or (PARKS,)))
    ours.look(7)
    answered(world, said("main", comment))
    return ours


def resumed(world: World, ours: Tending) -> None:
    world.suspended = False
    ours.look(7)


def events(world: World) -> list[tuple[str, str]]:
    return [(one.cause.value, one.outcome_word()) for one in world.ended]


def test_a_suspended_job_is_parked_and_comes_back_while_it_is_held_and_only_then_goes_on(world: World) -> None:
    ours = suspended(world)
    assert last(world) == ("move", THERE)
    assert of(ours).phase is Phase.HELD
    answered(world, DONE)
    assert (world.on_park, world.settled) == ((3,), []), "its home is where it was"
    assert ours.status()["7"]["parked_nodes"] == (3,)
    resumed(world, ours)
    assert (of(ours).phase, world.holds, last(world)) == (Phase.WAITS, {7}, ("ask",))
    answered(world, said("main"))
    assert last(world) == ("move", BACK)
    assert world.holds == {7}
    answered(world, DONE)
    assert (of(ours).phase, world.holds) == (Phase.RUNS, set())
    assert (world.on_park, world.settled, world.left_there) == ((), [(0,)], ())
    assert events(world) == [("park", "complete"), ("unpark", "complete")]


def test_where_a_job_was_parked_is_known_before_the_first_page_moves(world: World) -> None:
    suspended(world)
    assert world.on_park == (3,)


def test_memory_of_others_may_come_home_once_a_job_was_parked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(Homecoming, "ended", lambda _self: asked.append(True))
    suspended(world)
    assert asked == []
    answered(world, DONE)
    assert asked == [True]


def test_a_request_is_served_when_the_parked_job_goes_on_and_not_before(world: World) -> None:
    ours = suspended(world, comment="pageferry:nodes=2")
    assert last(world) == ("move", THERE)
    assert world.given == []
    answered(world, DONE)
    assert of(ours).served == ""
    resumed(world, ours)
    answered(world, said("main", "pageferry:nodes=1,strategy=pack"))
    assert last(world) == (
        "move",
        Destination((1,), Strategy.PACK, (3,), WhenFull.SPILL, frozenset({1}), parked=frozenset({3})),
    ), "as it is asked by then"
    assert [wish.nodes for wish in world.given] == [(1,)]
    answered(world, DONE)
    assert of(ours).phase is Phase.RUNS
    assert [one[0] for one in world.sent] == ["write", "ask"]


def test_a_parked_job_that_cannot_come_to_where_it_was_asked_to_comes_back_to_its_cpus(world: World) -> None:
    ours = suspended(world)
    answered(world, DONE)
    resumed(world, ours)
    answered(world, said("main", "pageferry:nodes=1"))
    answered(world, Result(None, "node 1 is outside the job's cpuset", 4))
    assert (world.on_park, world.holds) == ((3,), {7}), "it is not left there"
    assert [one[0] for one in world.sent] == ["write", "ask"]
    answered(world, said("main", "pageferry:nodes=1"))
    assert last(world) == ("move", BACK)
    answered(world, DONE)
    assert (of(ours).phase, world.on_park) == (Phase.RUNS, ())
    assert events(world) == [("park", "complete"), ("unpark", "failed"), ("unpark", "complete")]


def test_a_parked_job_that_the_next_agent_finds_and_that_goes_on_at_once_comes_back_as_any_other(world: World) -> None:
    world.on_park = (3,)  # by an agent before
    ours, _ = jobs_of(world, PARKS)
    ours.look(7)
    world.suspended = False
    ours.look(7)
    answered(world, said("main"))
    assert last(world) == ("move", BACK)
    answered(world, DONE)
    assert of(ours).phase is Phase.RUNS
    assert world.parked(7) == ()
    assert events(world) == [("unpark", "complete")]


def test_where_slurm_cannot_be_asked_a_parked_job_comes_back_all_the_same(world: World) -> None:
    ours = suspended(world)
    answered(world, DONE)
    resumed(world, ours)
    answered(world, AWAY)
    assert last(world) == ("move", BACK)


def test_a_parking_that_is_under_way_at_the_resume_is_stopped_and_what_has_gone_comes_back(world: World) -> None:
    ours = suspended(world)
    resumed(world, ours)
    assert world.interrupted == 1
    answered(world, Result(OUTCOME | {"complete": False}, None))
    assert (world.holds, last(world)) == ({7}, ("ask",))
    answered(world, said("main"))
    assert last(world) == ("move", BACK)
    answered(world, DONE)
    assert of(ours).phase is Phase.RUNS
    assert events(world) == [("park", "partial"), ("unpark", "complete")]


def test_a_parking_that_is_stopped_before_it_began_is_no_failure(world: World) -> None:
    ours = suspended(world)
    resumed(world, ours)
    answered(world, Result(None, "its time was used up before its memory began to move", 4))
    assert events(world) == [("park", "nothing")]
    assert last(world) == ("ask",)


def test_a_parking_that_fails_while_the_job_is_suspended_is_told_and_the_job_comes_back(world: World) -> None:
    ours = suspended(world)
    answered(world, Result(None, "node 3 is outside the job's cpuset", 4))
    assert events(world) == [("park", "failed")]
    assert (of(ours).phase, world.holds) == (Phase.HELD, {7})
    resumed(world, ours)
    answered(world, said("main"))
    answered(world, DONE)
    assert (of(ours).phase, world.on_park) == (Phase.RUNS, ())


def test_a_job_that_goes_on_before_it_stands_still_is_not_parked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(world, "frozen", lambda _job: bool(frozen))
    ours = suspended(world)
    assert world.sent == []
    resumed(world, ours)
    assert last(world) == ("ask",)
    frozen.append(True)
    answered(world, said("main"))
    assert last(world) == ("move", Destination((0,), None, (0,))), "as without"
    assert world.on_park == ()


def test_a_job_that_is_resumed_while_slurm_is_asked_is_not_parked(world: World) -> None:
    ours, _ = jobs_of(world, PARKS)
    ours.look(7)
    resumed(world, ours)
    answered(world, said("main"))
    assert last(world) == ("move", Destination((0,), None, (0,)))
    assert world.on_park == ()


def test_a_job_that_comes_back_and_is_suspended_again_is_parked_again(world: World) -> None:
    ours = suspended(world)
    answered(world, DONE)
    resumed(world, ours)
    answered(world, said("main"))
    world.suspended = True
    ours.look(7)
    assert world.interrupted == 1
    answered(world, Result(OUTCOME | {"complete": False}, None))
    assert (of(ours).phase, last(world)) == (Phase.HELD, ("ask",))
    assert (world.on_park, world.settled) == ((3,), []), "some of it is there still"
    answered(world, said("main"))
    assert last(world) == ("move", THERE)
    answered(world, DONE)
    assert world.on_park == (3,)
    resumed(world, ours)
    answered(world, said("main"))
    answered(world, DONE)
    assert of(ours).phase is Phase.RUNS
    assert world.parked(7) == ()


@pytest.mark.parametrize(("ends", "interrupted"), [("go on", 0), ("leave", 1)])
def test_what_has_not_come_back_when_the_hold_ends_goes_on_or_is_left(
    world: World, ends: str, interrupted: int
) -> None:
    ours = suspended(world, rule("parks", "main", park=Nodes((3,)), when_hold_ends=ends))
    answered(world, DONE)
    resumed(world, ours)
    answered(world, said("main"))
    of(ours).deadline = 0.0
    ours.due()
    assert (of(ours).phase, world.holds, world.interrupted) == (Phase.RUNS, set(), interrupted)
    answered(world, Result(OUTCOME | {"complete": ends == "go on"}, None))
    assert world.on_park == (), "it is not tried for ever"
    assert world.left_there == (() if ends == "go on" else (3,)), "where it comes home from"
    answered(world, said("main"))
    assert (world.sent, of(ours).migration) == ([], None)


def test_what_two_parkings_left_comes_back_with_the_next_and_is_forgotten_only_then(world: World) -> None:
    world.left_there = (2,)  # of a parking before
    ours = suspended(world)
    for complete, left in ((False, (2, 3)), (True, ())):
        answered(world, DONE)
        resumed(world, ours)
        answered(world, said("main"))
        assert last(world) == ("move", replace(BACK, parked=frozenset({2, 3})))
        assert world.left(7) == (2, 3)
        answered(world, Result(OUTCOME | {"complete": complete}, None))
        assert (world.parked(7), world.left(7)) == ((), left)
        answered(world, said("main"))
        world.suspended = True
        ours.look(7)
        answered(world, said("main"))


def test_a_job_that_is_parked_elsewhere_before_it_is_back_comes_back_from_both(world: World) -> None:
    world.on_park = (2,)  # its rule said so then
    ours = suspended(world)
    assert (world.parked(7), world.left(7)) == ((3,), (2,)), "known before the first page moves"
    answered(world, DONE)
    resumed(world, ours)
    answered(world, said("main"))
    assert last(world) == ("move", replace(BACK, parked=frozenset({2, 3})))


def test_a_hold_that_ends_before_the_parking_has_stopped_leaves_nothing_parked(world: World) -> None:
    ours = suspended(world)
    resumed(world, ours)
    of(ours).deadline = 0.0
    ours.due()
    assert of(ours).phase is Phase.RUNS
    answered(world, Result(OUTCOME | {"complete": False}, None))
    answered(world, said("main"))  # the question that follows each resume
    assert last(world) == ("ask",)
    answered(world, said("main"))
    assert last(world) == ("move", BACK)


def test_the_next_agent_takes_a_parked_job_over_and_brings_it_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "slurm_job_suspension", lambda _job: SimpleNamespace(asked=True))
    world.on_park = (3,)
    world.holds.add(7)
    ours, _ = jobs_of(world, PARKS)
    ours.recovered(7)
    answered(world, said("main"))
    assert last(world) == ("move", THERE), "what had not been parked yet is"
    answered(world, DONE)
    resumed(world, ours)
    answered(world, said("main"))
    assert last(world) == ("move", BACK)


def test_a_parked_job_that_went_on_while_no_agent_was_there_comes_back_as_soon_as_it_is_seen(world: World) -> None:
    world.on_park, world.suspended = (3,), False
    ours, _ = jobs_of(world, PARKS)
    ours.look(7)
    answered(world, said("main"))
    assert last(world) == ("move", BACK)
    ours.look(7)
    assert len(world.sent) == 1, "once"
    answered(world, Result(None, "no process is left", 1))
    assert not world.on_park, "it is not tried for ever"


def test_what_was_parked_comes_back_whatever_the_rule_says_by_then(world: World) -> None:
    ours = suspended(world)
    answered(world, DONE)
    ours._site.settings = Settings(agent=ours._site.settings.agent, rule=(rule("off", mode="off"),))
    resumed(world, ours)
    answered(world, said("main"))
    assert last(world) == ("move", BACK)
    assert world.sent[-1][3].mode is Mode.MOVE
    answered(world, DONE)
    assert world.on_park == ()
    assert of(ours).phase is Phase.RUNS


def test_a_job_that_is_moved_by_hand_while_it_is_parked_stays_where_that_took_it(world: World) -> None:
    ours = suspended(world)
    answered(world, DONE)
    replies: list[Mapping[str, Any]] = []
    ours.request(7, Wish((1,)), replies.append, hold=False, precopy=False)
    assert last(world) == (
        "move",
        Destination((1,), Strategy.RELATIVE, (3,), WhenFull.SPILL, frozenset({1}), parked=frozenset({3})),
    )
    answered(world, DONE)
    assert len(replies) == 1
    assert world.settled == [(1,)]
    resumed(world, ours)
    assert of(ours).phase is Phase.RUNS


def test_a_job_whose_cpus_change_while_it_is_parked_stays_parked(world: World) -> None:
    ours = suspended(world)
    answered(world, DONE)
    of(ours).reassigned_at, of(ours).placed_for = 0.0, (1,)
    ours.due()
    assert last(world) == ("move", THERE)
    answered(world, DONE)
    assert events(world) == [("park", "complete")] * 2


def test_what_cannot_be_parked_on_this_host_is_said_once_and_moved_as_without(world: World) -> None:
    ours = suspended(world, rule("parks", "main", park=Nodes((9,))))
    assert last(world) == ("move", Destination((0,), None, (0,)))
    answered(world, DONE)
    resumed(world, ours)
    world.suspended = True
    answered(world, said("main"))
    ours.look(7)
    answered(world, said("main"))
    assert world.told.count("not parked: no node 9") == 1
    assert world.on_park == ()


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_a_job_that_is_not_moved_is_not_parked(world: World, mode: str) -> None:
    suspended(world, rule("parks", "main", park=Nodes((3,)), mode=mode))
    assert world.on_park == ()
    assert [one[2].nodes for one in world.sent] == ([(0,)] if mode == "observe" else [])


def test_a_parked_job_is_known_to_the_next_agent_until_its_memory_is_elsewhere(tmp_path: Path) -> None:
    homes = Homes(tmp_path)
    homes.put(7, (0,))
    homes.park(7, (3,))
    homes.park(8, (3,))
    assert (Homes(tmp_path).parked(7), Homes(tmp_path).get(7)) == ((3,), (0,))
    homes.put(7, (0,))
    homes.keep([7])
    assert (Homes(tmp_path).parked(7), Homes(tmp_path).parked(8)) == ((), ())
    homes.park(7, (3,))
    homes.park(7, ())
    assert json.loads((tmp_path / "homes.json").read_text())["parked"] == {}


def test_where_some_of_a_job_was_left_is_known_to_the_next_agent_until_all_of_it_is_back(tmp_path: Path) -> None:
    homes = Homes(tmp_path)
    homes.park(7, (3,))
    homes.leave(7, (3,))
    homes.leave(8, (3,))
    homes.put(7, (0,))
    homes.keep([7])
    again = Homes(tmp_path)
    assert (again.parked(7), again.left(7), again.left(8)) == ((), (3,), ())
    again.leave(7, ())
    assert Homes(tmp_path).left(7) == ()
    assert json.loads((tmp_path / "homes.json").read_text())["left"] == {}


# Where to, and how.


def topology_of(*with_memory: int) -> Topology:
    distances = dict.fromkeys(range(6), 20)
    nodes = (
        Node(number, frozenset(), 1 << 30 if number in with_memory else 0, 0, 0, distances, {}) for number in range(6)
    )
    return Topology(tuple(nodes))


def test_memory_is_parked_on_nodes_that_are_there_and_not_the_jobs_own() -> None:
    policy, here = Policy(rule="a", park=(3, 4, 5)), topology_of(0, 1, 3, 4)
    assert parking.nodes(policy, (0,), here) == (3, 4)
    assert parking.nodes(policy, (3,), here) == (4,)
    assert parking.nodes(policy, (3, 4), here) == ()
    assert parking.nodes(policy, (), here) == (), "nobody could bring it back"
    assert parking.nodes(Policy(), (0,), here) == ()
    with pytest.raises(UsageError, match=r'^rule a: park = "5": no node with memory .*nodes with memory: 0-1,3-4'):
        parking.nodes(Policy(rule="a", park=(5,)), (0,), here)


@pytest.mark.parametrize(("asked", "is_so"), [("partial", "partial"), ("refuse", "refuse"), ("spill", "partial")])
def test_what_has_no_room_on_the_park_nodes_goes_nowhere_else(asked: str, is_so: str) -> None:
    policy = Policy(when_full=WhenFull(asked))
    assert parking.away(policy, (0,), (3,)) == Destination((3,), Strategy.RELATIVE, (0,), WhenFull(is_so))
    assert parking.away(policy, (0,), (3, 4)).strategy is Strategy.PACK


@pytest.mark.parametrize(
    ("park", "home", "to", "strategy"),
    [
        ((3,), (0,), (1,), Strategy.RELATIVE),
        ((3, 4), (0, 1), (0, 1), Strategy.RELATIVE),
        ((3,), (0, 1), (0, 1), Strategy.LOCAL),
        ((3, 4), (0,), (0, 1), Strategy.LOCAL),
        ((3,), (0,), (0, 1), Strategy.LOCAL),
    ],
)
def test_each_page_comes_back_to_its_node_where_that_is_known(
    park: tuple[int, ...], home: tuple[int, ...], to: tuple[int, ...], strategy: Strategy
) -> None:
    found = parking.back(Policy(when_full=WhenFull.REFUSE), park, home, to, None)
    assert found == Destination(to, strategy, park, WhenFull.SPILL, frozenset(to), parked=frozenset(park))
    left = parking.back(Policy(when_full=WhenFull.REFUSE), park, home, to, None, left=(9,))
    assert left == replace(found, parked=frozenset({*park, 9})), "a page that was left before changes no other's node"
    assert parking.back(Policy(strategy=Strategy.PACK), park, home, to, None).strategy is Strategy.PACK
    assert parking.back(Policy(), park, home, to, Strategy.INTERLEAVE).strategy is Strategy.INTERLEAVE
    assert parking.back(Policy(when_full=WhenFull.SPILL), park, home, to, None).spill is None

"""What the agent does with a job's policy: what is asked, held, moved and told under each, on stand-ins that take note.

How Slurm's jobs fare under it is seen in the guest.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pageferry import spill
from pageferry.agent import chores, loop, tending
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.counts import Counts, Release
from pageferry.agent.errand import Result
from pageferry.agent.errands import Errands
from pageferry.agent.homes import Homes
from pageferry.agent.metrics import Metrics
from pageferry.agent.migrations import Migrations
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Tended
from pageferry.agent.tending import Tending
from pageferry.applied import Destination
from pageferry.comment import Wish
from pageferry.config import Agent, Folder, Settings, Spill
from pageferry.config import Metrics as ConfigMetrics
from pageferry.errors import KernelError, SchedulerError, UsageError
from pageferry.history.store import Migration as StoredMigration
from pageferry.history.store import Store
from pageferry.policy import Facts, Globs, Match, Name, Policy, Rule, RuleSpill
from pageferry.schedulers.control import JobRecord
from pageferry.schedulers.slurm_commands import SlurmCommands
from pageferry_planner.model import Strategy

OUTCOME = {"refused": False, "complete": True, "moved_bytes": 4096, "pages": {}, "seconds": 0.1, "lacking_bytes": {}}
Answer = Callable[..., Result]


@dataclass
class World:
    """What the agent's parts stand among, and what they did."""

    sent: list[tuple[Any, ...]] = field(default_factory=list)
    interrupted: int = 0
    hurried: int = 0
    running: list[bool] = field(default_factory=list)
    settling: list[bool] = field(default_factory=list)
    mems: Path = Path("/nowhere")
    given: list[Wish] = field(default_factory=list)
    settled: list[tuple[int, ...]] = field(default_factory=list)
    holds: set[int] = field(default_factory=set)
    refuses: bool = False
    told: list[str] = field(default_factory=list)
    ended: list[Migration] = field(default_factory=list)
    suspended: bool = True
    on_park: tuple[int, ...] = ()
    left_there: tuple[int, ...] = ()
    owners: str = ""
    counts: Counts = field(default_factory=Counts)
    agents: int = 0

    def check(self) -> None:
        if self.agents == 1:
            assert self.counts.holds == self.counts.releases.total() + len(self.holds), (
                "each hold is counted, as its end"
            )

    # As Errands: the last chore's end is kept, for the test to bring about.
    def send(self, chore: Any, ended: Callable[[Result], None], *_said: Any, **_words: Any) -> Any:
        self.sent.append((*chore, ended))
        return SimpleNamespace(interrupt=self.interrupt, hurry=self.hurry)

    def interrupt(self) -> None:
        self.interrupted += 1

    def hurry(self) -> None:
        self.hurried += 1

    def due(self) -> None:
        return None

    # As Gate.
    def hold(self, job: int) -> None:
        self.holds.add(job)

    def release(self, job: int) -> None:
        if self.refuses:
            raise KernelError("the kernel does not let us")
        self.holds.discard(job)

    def held(self) -> dict[int, Any]:
        return {job: SimpleNamespace(private=None, since_wall=1.0) for job in self.holds}

    def extend(self, _job: int) -> None:
        return

    def frozen(self, job: int) -> bool:
        return job in self.holds

    # As Placing.
    def served(self, _job: int) -> str:
        return ""

    def keep_served(self, _job: int, _text: str) -> None:
        return

    def served_owner(self, _job: int) -> str:
        return self.owners

    def keep_served_owner(self, _job: int, text: str) -> None:
        self.owners = text

    def nodes(self, _job: int) -> tuple[int, ...]:
        return (0,)

    def home(self, _job: int) -> tuple[int, ...]:
        return (0,)

    def see(self, _job: int) -> None:
        return

    def give(self, _job: int, wish: Wish) -> tuple[int, ...]:
        self.given.append(wish)
        return ()

    def settle_at(self, _job: int, nodes: tuple[int, ...]) -> None:
        self.settled.append(nodes)
        self.on_park = ()

    def parking(self, _job: int, policy: Policy) -> tuple[int, ...]:
        if policy.park == (9,):
            raise UsageError("no node 9")
        return policy.park

    def parked(self, _job: int) -> tuple[int, ...]:
        return self.on_park

    def park(self, _job: int, nodes: tuple[int, ...]) -> None:
        self.on_park = nodes

    def left(self, _job: int) -> tuple[int, ...]:
        return self.left_there

    def leave(self, _job: int, nodes: tuple[int, ...]) -> None:
        self.left_there = nodes

    # As Chronicle.
    def tell(self, _tended: Any, kind: str, text: str = "", _level: int = logging.INFO) -> None:
        self.told.append(f"{kind}: {text}")

    def ended_migration(self, _tended: Any, migration: Migration) -> None:
        self.ended.append(migration)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    yield (made := world_of(monkeypatch))
    made.check()


def world_of(monkeypatch: pytest.MonkeyPatch) -> World:
    """Have the agent's parts find a world of stand-ins."""
    made = World()
    monkeypatch.setattr(chores, "ask", lambda jobs: ("ask", jobs))

    def move(
        job: int, where: Any, policy: Any, _snapshots: object, *, runs: bool, settles: bool, mems: Path
    ) -> tuple[Any, ...]:
        assert mems == made.mems
        made.running.append(runs)
        made.settling.append(settles)
        return "move", job, where, policy

    monkeypatch.setattr(chores, "move", move)
    monkeypatch.setattr(chores, "widen", lambda job, _mems: ("widen", job))
    monkeypatch.setattr(chores, "write_back", lambda _job, _hosts, text, _served: ("write", text))
    monkeypatch.setattr(tending, "Errands", lambda: made)
    monkeypatch.setattr(tending, "slurm_job_user_groups", lambda _job: ())
    monkeypatch.setattr(tending, "slurm_suspension", lambda _groups: SimpleNamespace(asked=made.suspended))
    return made


def jobs_of(world: World, *rules: Rule, **agent: Any) -> tuple[Tending, Site]:
    world.agents += 1
    site = Site(Settings(agent=Agent(slurm_user="root", **agent), rule=rules))
    chronicle = SimpleNamespace(
        tell=world.tell, ended=world.ended_migration, over=lambda _stop: None, counts=world.counts, snapshots=None
    )
    return Tending(cast(Any, world), cast(Any, world), cast(Any, chronicle), site), site


def rule(name: str, partition: str = "", **said: Any) -> Rule:
    match = Match(partition=Globs((partition,))) if partition else Match()
    return Rule(name=Name(name), match=match, **said)


def said(partition: str, comment: str = "", owners: str = "") -> Result:
    answer = {
        "state": "SUSPENDED",
        "comment": comment,
        "owners_comment": owners,
        "hosts": ["here"],
        "uid": 1,
        "facts": asdict(Facts("slurm", partition=partition)),
    }
    return Result({"jobs": {"7": answer}}, None)


def answered(world: World, result: Result) -> None:
    """Bring the last errand to its end."""
    world.sent.pop()[-1](result)


def of(ours: Tending) -> Tended:
    return ours._jobs[7]


OFF = rule("off", "debug", mode="off")
OBSERVED = rule("watch", "debug", mode="observe")
AWAY = Result(None, "slurmctld did not answer", 4)


def test_a_job_whose_rule_says_off_is_held_only_while_slurm_is_asked_and_not_moved(world: World) -> None:
    ours, _ = jobs_of(world, OFF)
    ours.look(7)
    assert world.holds == {7}
    answered(world, said("debug"))
    assert world.holds == set()
    assert world.sent == []
    assert world.ended == []
    assert 'left alone: rule off, mode = "off"' in world.told
    ours.look(7)
    assert world.holds == set(), "Slurm has it suspended still, and that is all"
    world.suspended = False
    ours.look(7)
    world.suspended = True
    ours.look(7)
    assert world.holds == set(), "what Slurm said of it before holds until it says something else"
    answered(world, said("main"))
    assert [one[0] for one in world.sent] == ["move"]


def test_a_job_that_was_resumed_while_slurm_was_asked_is_let_go_at_once_if_its_rule_says_off(world: World) -> None:
    ours, _ = jobs_of(world, OFF)
    ours.look(7)
    world.suspended = False
    ours.look(7)
    assert of(ours).phase is Phase.WAITS
    answered(world, said("debug"))
    assert of(ours).phase is Phase.RUNS
    assert world.holds == set()


def test_a_request_for_a_job_that_is_left_alone_is_answered_with_the_reason(world: World) -> None:
    ours, _ = jobs_of(world, OFF)
    ours.look(7)
    answered(world, said("debug", "pageferry:nodes=1"))
    assert world.given == []
    assert [(one.outcome, one.error) for one in world.ended] == [(None, 'rule off leaves the job alone (mode = "off")')]
    assert [one[0] for one in world.sent] == ["write"]


def test_what_is_observed_is_planned_and_recorded_and_neither_held_nor_given_other_cpus(world: World) -> None:
    ours, _ = jobs_of(world, OBSERVED)
    ours.look(7)
    answered(world, said("debug", "pageferry:nodes=1"))
    assert world.holds == set()
    assert world.given == []
    _, job, where, policy, _ = world.sent[-1]
    assert (job, where, policy.mode.value) == (7, Destination((1,), None, (0,)), "observe")
    answered(world, Result(OUTCOME | {"observed": True, "moved_bytes": 0, "would_move_bytes": 8192}, None))
    assert [one.outcome_word() for one in world.ended] == ["observed"]
    assert world.settled == [], "its memory is where it was"


def test_a_job_is_moved_as_its_rule_says_and_as_its_request_where_that_says_more(world: World) -> None:
    ours, site = jobs_of(world, rule("a", "main", strategy="pack", workers=3))
    for comment, strategy in (("pageferry:nodes=1", None), ("pageferry:nodes=1,strategy=local", Strategy.LOCAL)):
        ours._jobs.clear()
        world.agents = 0  # what is forgotten is not counted
        ours.look(7)
        answered(world, said("main", comment))
        _, _, where, policy, _ = world.sent.pop()
        assert where.strategy is strategy
        assert policy == site.policy(Facts("slurm", partition="main"))
        assert (policy.rule, policy.strategy, policy.workers) == ("a", Strategy.PACK, 3)
    assert world.running == [False, False], "suspended: what it uses cannot be seen"
    assert len(world.given) == 2


def test_each_job_is_held_as_long_as_its_rule_says_from_its_resume_on(world: World) -> None:
    ours, _ = jobs_of(world, rule("long", "main", max_hold_seconds=600.0), max_hold_seconds=5.0)
    ours.look(7)
    world.suspended = False
    ours.look(7)
    tended = of(ours)
    assert tended.deadline == tended.thawed_at + 5, "nobody knows what it is"
    answered(world, said("main"))
    assert tended.deadline == tended.thawed_at + 600
    world.suspended = True
    ours.look(7)
    world.suspended = False
    ours.look(7)
    assert tended.deadline == tended.thawed_at + 600


@pytest.mark.parametrize(("ends", "interrupted"), [("go on", 0), ("leave", 1)])
def test_a_move_goes_on_after_the_hold_or_leaves_the_rest(world: World, ends: str, interrupted: int) -> None:
    ours, _ = jobs_of(world, rule("a", when_hold_ends=ends))
    ours.look(7)
    answered(world, said("main"))
    world.suspended = False
    ours.look(7)
    of(ours).deadline = 0.0
    ours.due()
    ours.due()
    assert of(ours).phase is Phase.RUNS
    assert world.holds == set()
    assert world.interrupted == interrupted
    answered(world, Result(OUTCOME, None))
    assert [one.outcome_word() for one in world.ended] == ["complete"]


@pytest.mark.parametrize(("ends", "chore"), [("go on", "move"), ("leave", "ask")])
def test_a_move_that_has_not_begun_when_the_hold_ends_begins_or_is_left(world: World, ends: str, chore: str) -> None:
    ours, _ = jobs_of(world, rule("a", when_hold_ends=ends))
    ours.look(7)
    world.suspended = False
    ours.look(7)
    of(ours).deadline = 0.0
    ours.due()
    assert of(ours).phase is Phase.RUNS
    answered(world, said("main"))
    assert world.sent[-1][0] == chore, "the move; or the question that follows each resume"
    assert [one.error for one in world.ended] == (
        ["max_hold was used up before its memory began to move"] if chore == "ask" else []
    )


def test_a_release_that_the_kernel_refused_first_is_counted_for_its_own_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "AGAIN_SECONDS", 0.0)
    ours, _ = jobs_of(world, OFF, max_hold_seconds=600.0)
    ours.look(7)
    world.suspended, world.refuses = False, True
    ours.look(7)
    answered(world, said("debug"))
    ours.due()
    assert world.holds == {7}
    assert of(ours).phase is Phase.WAITS
    world.refuses = False
    ours.due()
    assert not world.holds
    assert world.counts.releases == Counter({Release.POLICY: 1})


def test_a_job_that_is_suspended_while_it_is_watched_is_watched_no_longer(world: World) -> None:
    ours, _ = jobs_of(world, rule("long", "main"))
    world.suspended = False
    ours.look(7)
    ours.request(7, Wish((1,)), lambda _answer: None, hold=False, precopy=False)
    answered(world, said("main"))
    assert world.running == [True]
    assert world.hurried == 0
    world.suspended = True
    ours.look(7)
    assert world.hurried == 1
    assert world.interrupted == 0, "it moves"


def test_where_slurm_cannot_be_asked_only_a_rule_that_asks_nothing_of_the_job_holds_and_the_log_says_so(
    world: World,
) -> None:
    ours, _ = jobs_of(world, rule("main", "*", workers=3), rule("rest", workers=5))
    ours.look(7)
    answered(world, AWAY)
    assert world.sent[-1][3].rule == "rest"
    assert "not asked: slurmctld did not answer; rule rest holds, as no rule that asks about the job can match" in (
        world.told
    )


def test_what_slurm_said_of_a_job_before_holds_while_it_cannot_be_asked(world: World) -> None:
    ours, _ = jobs_of(world, OFF)
    ours.look(7)
    answered(world, said("debug"))
    world.suspended = False
    ours.look(7)
    world.suspended = True
    ours.look(7)
    answered(world, AWAY)
    assert world.sent == []
    assert world.holds == set()
    assert "not asked: slurmctld did not answer" in world.told


def migrations(world: World, jobs: Mapping[int, Tended], *rules: Rule) -> Migrations:
    chronicle = SimpleNamespace(
        tell=world.tell, ended=world.ended_migration, over=lambda _stop: None, counts=world.counts, snapshots=None
    )
    return Migrations(
        jobs,
        cast(Errands, world),
        gate=cast(Any, world),
        placing=cast(Any, world),
        chronicle=cast(Chronicle, chronicle),
        site=Site(Settings(agent=Agent(slurm_user="root"), rule=rules)),
        ruled=lambda _tended: None,
        stop=lambda tended: world.hold(tended.job),
        let_go=lambda tended: world.release(tended.job),
        idle=lambda _tended: None,
        room=lambda: None,
    )


def test_slurm_is_asked_once_for_a_job_of_which_nothing_is_known_and_its_comment_is_not_taken_for_a_request(
    world: World,
) -> None:
    tended = Tended(7)
    ours = migrations(world, {7: tended}, OFF, rule("a", "main", workers=2))
    for again in (False, True):
        ours.begin(tended, Migration(Cause.CPUSET, Stage.READY))
        if not again:
            assert world.sent[-1][0] == "ask"
            answered(world, said("main", "pageferry:nodes=3"))
        _, _, where, policy, _ = world.sent[-1]
        assert (where.nodes, policy.rule) == ((0,), "a")
        answered(world, Result(OUTCOME, None))
    assert world.given == []


@pytest.mark.parametrize(("mode", "chores_sent"), [("move", ["move", "move"]), ("observe", ["move"]), ("off", [])])
def test_what_moves_first_while_a_job_runs_moves_by_its_rule_and_only_if_that_lets_it(
    world: World, mode: str, chores_sent: list[str]
) -> None:
    replies: list[Mapping[str, Any]] = []
    tended = Tended(7)
    ours = migrations(world, {7: tended}, rule("a", "main", mode=mode))
    ours.begin(tended, Migration(Cause.REQUEST, Stage.COPIES, Wish((1,)), reply=replies.append))
    answered(world, said("main"))
    sent: list[str] = []
    pages = dict.fromkeys(("moved", "in_place"), 0)
    more = dict.fromkeys(
        ("requested_pages", "retried_pages", "addresses", "calls", "asked_per_process_pages", "seconds_planning"), 0
    )
    while world.sent:
        sent.append(world.sent[-1][0])
        assert world.sent[-1][3].rule == "a"
        answered(world, Result({**OUTCOME, **more, "pages": pages, "page_bytes": 4096}, None))
    assert sent == chores_sent
    assert world.running == [True, False][: len(sent)], "what is left is looked at without being watched again"
    assert world.holds == ({7} if mode == "move" else set())
    assert ("error" in replies[0]) == (mode == "off")


def test_slurm_is_not_asked_where_no_rule_wants_to_know(world: World) -> None:
    tended = Tended(7)
    migrations(world, {7: tended}, rule("a", workers=2)).begin(tended, Migration(Cause.CPUSET, Stage.READY))
    assert world.sent[-1][0] == "move"


@pytest.mark.parametrize("may", [False, True])
def test_an_owner_may_ask_where_the_jobs_rule_says_so_and_gets_nobody_elses_cpus(world: World, may: bool) -> None:
    replies: list[Mapping[str, Any]] = []
    tended = Tended(7)
    ours = migrations(world, {7: tended}, rule("a", "main", owners_may_ask=may))
    asked = Migration(Cause.REQUEST, Stage.READY, Wish((1,)), reply=replies.append, memory_only=True, by_owner=True)
    ours.begin(tended, asked)
    answered(world, said("main"))
    assert world.given == []
    if may:
        answered(world, Result(OUTCOME, None))
        assert replies == [{"outcome": OUTCOME}]
        assert world.settled == [(1,)]
    else:
        assert replies == [{"error": "rule a lets the job's owner ask for no move (owners_may_ask)", "code": 4}]
        assert world.sent == []


MAY = rule("may", "main", owners_may_ask=True)


def test_an_owners_comment_is_a_request_for_memory_alone_and_served_once(world: World) -> None:
    ours, _ = jobs_of(world, MAY)
    for again in (False, True):
        ours._jobs.clear()
        world.agents = 0  # what is forgotten is not counted
        ours.look(7)
        answered(world, said("main", owners="pageferry:nodes=1,strategy=pack"))
        chore, _, where, _, _ = world.sent[-1]
        assert chore == "move"
        assert where == (Destination((0,), None, (0,)) if again else Destination((1,), Strategy.PACK, (0,)))
        answered(world, Result(OUTCOME, None))
        world.sent.clear()
    assert world.given == []
    assert world.owners == "pageferry:nodes=1,strategy=pack"


def test_an_operators_request_goes_before_an_owners_which_waits(world: World) -> None:
    ours, _ = jobs_of(world, MAY)
    ours.look(7)
    answered(world, said("main", "pageferry:nodes=2", "pageferry:nodes=1"))
    assert world.sent[-1][2].nodes == (2,)
    answered(world, Result(OUTCOME, None))
    assert world.owners == ""


@pytest.mark.parametrize(
    ("owners", "why"),
    [
        ("pageferry:nodes=1,cpus=3", "an owner asks for memory alone"),
        ("pageferry:nodes=1,now", "an owner asks for memory alone"),
        ("pageferry:nodes=x", "not a list of numbers"),
        pytest.param(" " * 4079 + "pageferry:nodes=1", "more than 1024 bytes", id="it may have been cut"),
    ],
)
def test_an_owners_request_that_cannot_be_served_is_answered_once_with_the_reason(
    world: World, owners: str, why: str
) -> None:
    ours, _ = jobs_of(world, MAY)
    ours.look(7)
    answered(world, said("main", owners=owners))
    assert world.sent[-1][2].nodes == (0,), "its memory is brought to its CPUs all the same"
    answered(world, Result(OUTCOME, None))
    (migration,) = world.ended
    assert why in str(migration.error)
    assert world.owners == owners.strip()


@pytest.mark.parametrize(
    ("partition", "owners"),
    [("other", "pageferry:nodes=1"), ("main", "my words"), ("main", "pageferry:elsewhere:nodes=1")],
)
def test_an_owners_words_that_are_no_request_here_are_none(world: World, partition: str, owners: str) -> None:
    ours, _ = jobs_of(world, MAY)
    ours.look(7)
    answered(world, said(partition, owners=owners))
    assert world.sent[-1][2].nodes == (0,)
    answered(world, Result(OUTCOME, None))
    assert [(one.text, one.error) for one in world.ended] == [("", None)]


def test_an_owners_comment_is_no_request_where_the_site_has_other_uses_for_that_field(world: World) -> None:
    ours, _ = jobs_of(world, rule("may", "main", owners_may_ask=True, owners_field="none"))
    ours.look(7)
    answered(world, said("main", owners="pageferry:nodes=1"))
    assert world.sent[-1][2].nodes == (0,)
    answered(world, Result(OUTCOME, None))
    ours.request(7, Wish((1,)), lambda _answer: None, hold=False, precopy=False, memory_only=True, by_owner=True)
    assert world.sent[-1][2].nodes == (1,), "they may ask over the socket"


def test_which_requests_were_served_is_known_to_the_next_agent_and_forgotten_with_the_job(tmp_path: Path) -> None:
    homes = Homes(tmp_path)
    homes.put_served(7, "operator's")
    homes.put_owners(7, "owner's")
    homes.put_owners(8, "another's")
    homes.keep([7])
    again = Homes(tmp_path)
    assert (again.served(7), again.owners(7), again.owners(8)) == ("operator's", "owner's", "")
    (tmp_path / "homes.json").write_text('{"nodes": {"7": [1]}, "served": {"7": "a"}}')
    older = Homes(tmp_path)
    assert (older.get(7), older.served(7), older.owners(7)) == ((1,), "a", "")


# The settings that hold.


def test_new_settings_take_the_place_of_the_old_ones_and_wrong_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "pageferry.toml"
    path.write_text('[agent]\nslurm_user = "root"\n')
    site = Site(Settings(agent=Agent(slurm_user="daemon")), path)
    assert site.trusted == {0, 1}
    assert site.policy(None).rule == ""
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d/a.toml").write_text('[[rule]]\nname = "a"\nmatch.partition = "x"\n')
    assert site.reload() == ()
    assert site.trusted == {0}
    assert site.policy(Facts("slurm", partition="x")).rule == "a"
    assert not site.knows(None)
    held = site.settings
    (tmp_path / "policy.d/b.toml").write_text("[agent]\nworkers = 0\nx = 1\n")
    assert len(site.reload()) == 2
    (tmp_path / "policy.d/b.toml").write_text('[agent]\nslurm_user = "nobody-here"\n')
    assert site.reload() == (
        f'{tmp_path}/policy.d/b.toml:2: agent.slurm_user = "nobody-here": no such user on this host',
    )
    assert site.settings is held


def test_each_fault_of_new_settings_is_told_and_right_ones_hold_for_the_history_too(
    tmp_path: Path, world: World
) -> None:
    path = tmp_path / "pageferry.toml"
    path.write_text("[agent]\nworkers = 0\nx = 1\n")
    agent = object.__new__(loop._Agent)
    agent._site = Site(Settings(agent=Agent(slurm_user="root")), path)
    agent._chronicle = cast(Chronicle, SimpleNamespace(tell=world.tell))
    agent._history = Store(tmp_path / "history.sqlite3")
    agent._reload()
    assert [line.partition(" = ")[0] for line in world.told] == [
        f"settings not read: {path}:2: agent.workers",
        f"settings not read: {path}:3: agent.x",
        "not reloaded: the settings that were read before still hold",
    ]
    path.write_text('[agent]\nslurm_user = "root"\nretention_days = 1\n[[rule]]\nname = "a"\n')
    agent._history.record_migration(StoredMigration(7, 0, "h", "e", "", time.time() - 2 * 86400, 0, 0, "", "", "x"))
    agent._reload()
    assert world.told[-1] == "reloaded: 1 rules"
    for _ in range(256):
        agent._history.record_event(7, 0, "kind", "")
    assert agent._history.migrations(7) == [], "kept for a day from now on"


def test_metrics_and_the_log_follow_new_settings(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "pageferry.toml"
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        folder.mkdir()
    first = ConfigMetrics(textfile=Folder(folders[0]))
    agent = object.__new__(loop._Agent)
    agent._site = Site(Settings(agent=Agent(slurm_user="root"), metrics=first), path)
    agent._history = Store(tmp_path / "history.sqlite3")
    agent._chronicle = Chronicle(agent._history)
    agent._service = cast(Any, SimpleNamespace())
    monitored = SimpleNamespace(held=lambda: {"held": 0, "waits": 0})
    agent._tending = cast(Any, monitored)
    agent._pbs = cast(Any, SimpleNamespace(held=lambda: 0))
    agent._metrics = Metrics(agent._chronicle, agent._held)
    agent._export()
    agent._exporter.due()
    agent._exporter._write(folders[0])
    path.write_text(f'[agent]\nslurm_user = "root"\nlog_level = "debug"\n[metrics]\ntextfile = "{folders[1]}"\n')
    agent._reload()
    agent._exporter.close()
    assert [len(list(folder.iterdir())) for folder in folders] == [0, 1], "no file is left that nobody writes again"
    assert agent._chronicle.snapshots is not None, "as at debug level"


@pytest.mark.parametrize("error", [SchedulerError("away"), UsageError("it has ended")])
def test_a_job_of_which_slurm_says_nothing_is_not_known_and_others_are(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    record = JobRecord(8, "8", "RUNNING", 0, (), "", "main", "a")

    def job(_self: Any, number: int) -> JobRecord:
        if number == 9:
            raise error
        return record

    monkeypatch.setattr(SlurmCommands, "job", job)
    monkeypatch.setattr(chores, "cluster_name", lambda: "tux")
    far = {8: 16 << 20, 9: 16 << 20, 10: (16 << 20) - 1, 11: None}
    monkeypatch.setattr(spill, "far_bytes", lambda job, _topology, **_: far[job])
    known = Facts("slurm", partition="known")
    told: list[Mapping[str, Any]] = []
    found = chores._known({7: known, **dict.fromkeys(far)}, Settings(), told.append)
    assert found == {7: known, 8: record.facts("tux"), 9: None, 10: None, 11: None}
    assert told == [{"known": 8, "facts": asdict(record.facts("tux"))}]


def test_memory_comes_home_for_those_whose_rule_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[int], dict[str, Any]]] = []

    def candidates(some: list[int], **words: Any) -> list[Any]:
        asked.append((some, words))
        return []

    monkeypatch.setattr(spill, "candidates", candidates)
    unknown = Facts("slurm", partition="asked")
    monkeypatch.setattr(chores, "_known", lambda jobs, *_: {job: facts or unknown for job, facts in jobs.items()})
    settings = Settings(
        spill=Spill(enabled=True),
        rule=(
            rule("off", "off", mode="off"),
            rule("stays", "stays", spill=RuleSpill(enabled=False)),
            rule("asked", "asked", rate=1 << 21, reserve=5, libraries=Globs(("/opt/*",))),
        ),
    )
    jobs = {number: Facts("slurm", partition=name) for number, name in enumerate(("off", "stays", "main", "main"))}
    assert chores.bring_home({**jobs, 9: None}, settings)(lambda _message: None) == {"jobs": 0}
    found = {tuple(jobs): words for jobs, words in asked}
    assert set(found) == {(2, 3), (9,)}
    assert (found[9,]["bytes_per_second"], found[9,]["reserve_bytes"], found[9,]["rules"].stay) == (
        1 << 21,
        5,
        ("/opt/*",),
    )
    assert found[2, 3]["bytes_per_second"] == 256 << 20


def test_what_a_rule_decided_is_in_the_history_and_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "history.sqlite3")
    migration = Migration(Cause.SUSPEND, Stage.MOVES, nodes=(1,), policy=Policy(rule="a rule"))
    migration.outcome = OUTCOME | {"observed": True, "moved_bytes": 0, "would_move_bytes": 8 << 20}
    with caplog.at_level(logging.INFO):
        Chronicle(store).ended(Tended(7), migration)
    assert "suspend: observed, would move 8 MiB to 1" in caplog.text
    assert caplog.text.rstrip().endswith("(rule a rule)")
    (row,) = store.migrations(7)
    assert (row.rule, row.outcome, row.bytes, row.details["would_move_bytes"]) == ("a rule", "observed", 0, 8 << 20)


def test_the_signal_to_read_again_is_told_from_those_to_end() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    wakeup = loop._signals()
    try:
        signal.raise_signal(signal.SIGHUP)
        assert loop._is_reload(wakeup)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert not loop._is_reload(wakeup)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)

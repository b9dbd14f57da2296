"""When a job's cpuset.mems is narrowed and widened: around which moves, in which order, and what is told of it.

Here on stand-ins that take note; what the kernel and Slurm make of it is seen in the guest.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from host.test_cli import pageferry
from host.test_policy_of_jobs import AWAY, OFF, OUTCOME, World, answered, jobs_of, migrations, of, rule, said, world_of
from pageferry import applied, ferry, targets
from pageferry.agent import chores
from pageferry.agent.errand import Result
from pageferry.agent.tended import Cause, Migration, Stage, Tended
from pageferry.agent.tending import Tending
from pageferry.applied import Destination
from pageferry.cli import site
from pageferry.cli.job import move
from pageferry.comment import Wish
from pageferry.cpus.assign import Cpusets
from pageferry.errors import Denied, KernelError
from pageferry.gate import gate
from pageferry.mems import record
from pageferry.mems.narrowing import Mems, Narrowed
from pageferry.mems.record import Group
from pageferry.policy import Mode, Nodes, Policy
from pageferry_planner.model import WhenFull

NARROWS = Policy(rule="narrows", narrow_mems=True, reserve=77)
GROUPS = (Path("/step_0"),)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    made = world_of(monkeypatch)
    made.mems = tmp_path / "mems"
    yield made
    made.check()


def narrowed(world: World) -> None:
    """Have job 7 be narrowed, by an earlier move."""
    with record.alone(7, world.mems):
        record.save(7, [Group("/gone", 1, "0-3", "0")], world.mems)


def suspended(world: World, *rules: Any, comment: str = "") -> Tending:
    ours, _ = jobs_of(world, *(rules or (rule("narrows", "main", narrow_mems=True),)))
    ours.look(7)
    answered(world, said("main", comment))
    return ours


def chores_sent(world: World) -> list[str]:
    return [one[0] for one in world.sent]


@pytest.mark.parametrize(
    ("mems", "told"),
    [
        ({"nodes": "0,2", "why": ""}, ["narrowed: cpuset.mems 0,2"]),
        ({"nodes": "", "why": "no room"}, ["not narrowed: no room"]),
        ({"nodes": "2", "why": "busy"}, ["narrowed: cpuset.mems 2", "not narrowed: busy"]),
    ],
)
def test_what_became_of_it_is_a_line_in_the_log_and_changes_no_outcome(
    world: World, mems: dict[str, str], told: list[str]
) -> None:
    suspended(world)
    answered(world, Result(OUTCOME | {"mems": mems}, None))
    assert [line for line in world.told if "narrowed" in line] == told
    assert [one.outcome_word() for one in world.ended] == ["complete"]
    assert world.sent == []


def test_a_job_settles_where_it_is_moved_but_not_where_it_is_parked(world: World) -> None:
    suspended(world)
    suspended(world, rule("parks", "main", narrow_mems=True, park=Nodes((3,))))
    assert world.settling == [True, False]


def test_what_moves_first_while_a_job_runs_is_followed_by_more_and_does_not_settle_it(world: World) -> None:
    tended = Tended(7)
    ours = migrations(world, {7: tended}, rule("a", narrow_mems=True))
    ours.begin(tended, Migration(Cause.REQUEST, Stage.COPIES, Wish((1,)), reply=lambda _answer: None))
    answered(world, Result(OUTCOME, None))
    assert world.settling == [False, True]


def test_a_job_whose_memory_did_not_follow_may_allocate_wherever_slurm_lets_it(world: World) -> None:
    narrowed(world)
    suspended(world)
    answered(world, AWAY)
    assert [one.outcome_word() for one in world.ended] == ["failed"]
    assert chores_sent(world) == ["widen"]
    answered(world, Result({"widened": True}, None))
    assert world.told[-1] == "widened: cpuset.mems is as Slurm wrote it"


def test_so_may_one_whose_move_was_never_begun(world: World) -> None:
    narrowed(world)
    ours, _ = jobs_of(world, rule("a", narrow_mems=True, when_hold_ends="leave"))
    ours.look(7)
    world.suspended = False
    ours.look(7)
    of(ours).deadline = 0.0
    ours.due()
    answered(world, said("main"))
    assert "widen" in chores_sent(world)


def test_so_may_one_that_its_rule_leaves_alone_by_now(world: World) -> None:
    narrowed(world)
    ours, _ = jobs_of(world, OFF)
    ours.look(7)
    answered(world, said("debug"))
    assert chores_sent(world) == ["widen"]
    answered(world, Result(None, "Device or resource busy", 4))
    assert world.told[-1] == "not widened: Device or resource busy"


def test_nothing_is_sent_for_a_job_that_is_not_narrowed_or_stays_where_it_is(world: World) -> None:
    suspended(world)
    answered(world, AWAY)
    assert world.sent == []
    narrowed(world)
    suspended(world)
    answered(world, Result(OUTCOME, None))
    assert world.sent == []


@pytest.mark.parametrize("there", [True, False])
def test_what_an_errand_did_is_told_and_undone_also_if_its_migration_was_given_up(world: World, there: bool) -> None:
    tended = Tended(7)
    jobs = {7: tended}
    ours = migrations(world, jobs, rule("a", narrow_mems=True))
    for result, after in (
        (Result(OUTCOME | {"mems": {"nodes": "0", "why": ""}}, None), ([], ["narrowed: cpuset.mems 0"])),
        (AWAY, (["widen"], [])),
    ):
        narrowed(world)
        world.told.clear()
        jobs[7] = tended
        ours.begin(tended, Migration(Cause.CPUSET, Stage.READY))
        tended.migration = None
        if not there:
            jobs[7] = Tended(7)
        answered(world, result)
        assert (chores_sent(world), world.told) == (after if there else ([], [])), "another may have its ID"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an errand did, in order."""
    did: list[str] = []

    def noting(name: str, answer: Any) -> Any:
        def act(_mems: Mems, *_words: Any) -> Any:
            did.append(name)
            return answer

        return act

    def carried(policy: Policy, *_words: Any) -> Mapping[str, Any]:
        did.append("move")
        return OUTCOME | {"refused": policy.when_full is WhenFull.REFUSE}

    for name, answer in (("groups", GROUPS), ("admit", False), ("widen", False), ("narrow", Narrowed(why="why"))):
        monkeypatch.setattr(Mems, name, noting(name, answer))
    monkeypatch.setattr(applied, "carried", carried)
    return did


def raising(error: Exception) -> Any:
    def act(*_: object) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("said", "settles", "order"),
    [
        ({}, True, ["admit", "groups", "move", "narrow"]),
        ({}, False, ["widen", "move"]),
        ({"narrow_mems": False}, True, ["widen", "move"]),
        ({"mode": Mode.OBSERVE}, True, ["widen", "move"]),
        ({"when_full": WhenFull.REFUSE}, True, ["admit", "groups", "move", "widen"]),
    ],
    ids=["settles", "goes on", "no rule", "observed", "refused"],
)
def test_a_job_is_widened_before_its_move_and_narrowed_after_it_if_it_stays_there(
    tmp_path: Path, done: list[str], said: dict[str, Any], settles: bool, order: list[str]
) -> None:
    policy = Policy(**({"narrow_mems": True} | said))
    chore = chores.move(7, Destination((0,)), policy, settles=settles, mems=tmp_path)
    outcome = chore(lambda _message: None)
    assert done == order
    assert outcome.get("mems") == ({"nodes": "", "why": "why"} if "narrow" in order else None)


def test_what_is_narrowed_is_what_was_there_before_the_move_by_what_the_rule_says(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []

    def narrow(_mems: Mems, *words: Any) -> Narrowed:
        given.append(words)
        return Narrowed()

    monkeypatch.setattr(Mems, "narrow", narrow)
    chores.move(7, Destination((1, 0)), NARROWS, settles=True, mems=tmp_path)(lambda _message: None)
    assert given == [(GROUPS, OUTCOME, (1, 0), 77)]


def test_a_job_that_cannot_be_widened_is_moved_all_the_same_if_it_can_be(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mems, "widen", raising(KernelError("busy")))
    outcome = chores.move(7, Destination((0,)), Policy(), settles=True, mems=tmp_path)(lambda _message: None)
    assert done == ["move"]
    assert outcome["mems"] == {"nodes": "", "why": "busy"}


@pytest.mark.parametrize("error", [KernelError("busy"), Denied("busy")])
@pytest.mark.parametrize("act", ["admit", "groups"])
def test_one_that_cannot_be_looked_at_is_moved_and_may_allocate_wherever_slurm_lets_it(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch, act: str, error: KernelError
) -> None:
    monkeypatch.setattr(Mems, act, raising(error))
    outcome = chores.move(7, Destination((0,)), NARROWS, settles=True, mems=tmp_path)(lambda _message: None)
    assert done[-2:] == ["move", "widen"]
    assert outcome["mems"] == {"nodes": "", "why": "busy"}


def test_a_refused_move_of_a_job_that_cannot_be_widened_is_told_with_its_outcome(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mems, "widen", raising(KernelError("busy")))
    policy = Policy(narrow_mems=True, when_full=WhenFull.REFUSE)
    outcome = chores.move(7, Destination((0,)), policy, settles=True, mems=tmp_path)(lambda _message: None)
    assert (outcome["refused"], outcome["mems"]) == (True, {"nodes": "", "why": "busy"})


def test_time_that_is_used_up_while_a_job_is_narrowed_changes_neither_that_nor_the_outcome(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(_mems: Mems, *_words: Any) -> Narrowed:
        signal.raise_signal(signal.SIGINT)
        return Narrowed(frozenset({0}))

    monkeypatch.setattr(Mems, "narrow", narrow)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in an errand
    try:
        outcome = chores.move(7, Destination((0,)), NARROWS, settles=True, mems=tmp_path)(lambda _message: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome["mems"] == {"nodes": "0", "why": ""}


@pytest.mark.parametrize(
    ("error", "said"), [(KernelError("7.json: damaged"), "pageferry: 7.json: damaged\n"), (Denied("not for you"), "")]
)
def test_a_move_by_hand_is_made_also_if_the_job_cannot_be_widened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: KernelError, said: str
) -> None:
    class MovedError(Exception):
        pass

    found = targets.Found("job 7", frozenset(), (), Cpusets(), slurm_job=7)
    monkeypatch.setattr(targets, "route", lambda *_, **_words: targets.Route.DIRECT)
    monkeypatch.setattr(targets, "find", lambda *_: found)
    monkeypatch.setattr(Mems, "admit", raising(error))
    monkeypatch.setattr(ferry, "move", raising(MovedError()))
    monkeypatch.setattr(ferry, "check", lambda *_: None)
    monkeypatch.setattr("pageferry.cli.job.warn_of_gaps", lambda: None)
    with pytest.raises(MovedError):
        move.main(["7", "--to", "0", "--json"], standalone_mode=False)
    assert capsys.readouterr().err == said


def test_release_gives_jobs_slurms_mems_back_and_says_what_it_cannot(tmp_path: Path) -> None:
    group, folder = tmp_path / "step_0", tmp_path / "mems"
    group.mkdir()
    (group / "cpuset.mems").write_text("2\n")
    for job in (6, 7):
        with record.alone(job, folder):
            record.save(job, [Group(str(group), group.stat().st_ino, "0-3", "2")], folder)
    (folder / "6.json").write_text("{")
    words = ["release", "--run-folder", str(tmp_path)]
    assert pageferry(*words).stdout == "", "an upgrade leaves them narrowed"
    answer = pageferry(*words, "--cpus")
    assert answer.stdout == "job 7: may allocate on all of Slurm's nodes again\n"
    assert answer.stderr.startswith(f"pageferry: {folder}/6.json: damaged")
    assert answer.returncode == 4
    assert (group / "cpuset.mems").read_text().strip() == "0-3"
    with suppress(FileNotFoundError):
        (folder / "6.json").unlink()
    assert pageferry(*words, "--cpus").returncode == 0


def test_a_hold_that_cannot_be_released_keeps_nothing_else_from_being_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_folder: Path) -> NoReturn:
        raise KernelError("not all is released: /a/group")

    group, folder = tmp_path / "step_0", tmp_path / "mems"
    group.mkdir()
    (group / "cpuset.mems").write_text("2\n")
    with record.alone(7, folder):
        record.save(7, [Group(str(group), group.stat().st_ino, "0-3", "2")], folder)
    monkeypatch.setattr(gate, "release_all", refused)
    words = ["--run-folder", str(tmp_path), "--cpus"]
    assert site.release.main(words, standalone_mode=False) == KernelError.exit_code
    assert capsys.readouterr().err == "pageferry: not all is released: /a/group\n"
    assert (group / "cpuset.mems").read_text().strip() == "0-3"

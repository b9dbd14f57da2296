"""What must hold of finding PBS's jobs, and of what its hook says of them: all of it is hostile text."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.agent.pbs import has_given_up
from pageferry.applied import Destination
from pageferry.config import Settings
from pageferry.errors import UsageError
from pageferry.kernel.topology import read_topology
from pageferry.pbs import aim, at_once, by_hand, record, serve
from pageferry.pbs import event as events
from pageferry.pbs import hold as pbs_hold
from pageferry.pbs.asked import Asked, understood
from pageferry.pbs.case import Case
from pageferry.pbs.event import Kind, PbsJob
from pageferry.pbs.record import Record
from pageferry.policy import Facts, Globs, Match, Name, Policy, Rule
from pageferry.schedulers.pbs import Pbs, claimed_pids, is_job_id, is_stopped, job_nodes, job_pids, known_pids
from pageferry.schedulers.pbs_cgroups import pbs_job_cgroups, pbs_job_cpuset, pbs_job_freezers, pbs_job_ids
from support.trees import plant, write

V1 = "sys/fs/cgroup"
JOBS = "pbs_jobs.service/jobid"
STATUS = (
    "Name:\trank\nState:\t{state}\nTgid:\t{pid}\nPPid:\t1\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nThreads:\t1\n"
    "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n"
)
GUEST = frozenset({"guest"})


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    """A host of four nodes on version 1, as pbs_cgroups has laid it: two jobs, one of them of an array."""
    plant("four_nodes", tmp_path)
    mounts = [
        f"3{n} 1 0:3{n} / /{V1}/{name} rw - cgroup cgroup rw,{name}" for n, name in enumerate(["cpuset", "memory"])
    ]
    write(tmp_path, "proc/self/mountinfo", "\n".join(mounts) + "\n")
    for job, cpus, pids in (("12.srv", "0-1", "1201\n1202\n"), ("7[3].srv", "2-3", "703\n")):
        for controller in ("cpuset", "memory"):
            write(tmp_path, f"{V1}/{controller}/{JOBS}/{job}/cgroup.procs", pids)
        for name, value in (("cpus", cpus), ("mems", "0-3"), ("effective_cpus", cpus), ("effective_mems", "0-3")):
            write(tmp_path, f"{V1}/cpuset/{JOBS}/{job}/cpuset.{name}", value + "\n")
    return tmp_path


def process(root: Path, pid: int, uid: int, *, job: str = "", session: int = 1, state: str = "S (sleeping)") -> None:
    write(root, f"proc/{pid}/status", STATUS.format(pid=pid, uid=uid, state=state))
    write(root, f"proc/{pid}/environ", f"HOME=/\0PBS_JOBID={job}\0" if job else "HOME=/\0")
    write(root, f"proc/{pid}/stat", f"{pid} (a) R) S 1 {session} {session} 0 " + "0 " * 40)


def test_jobs_are_found_by_the_names_of_their_groups_brackets_included(legacy: Path) -> None:
    assert pbs_job_ids(legacy) == ("12.srv", "7[3].srv")
    assert pbs_job_cgroups("7[3].srv", legacy) == tuple(
        legacy / V1 / controller / JOBS / "7[3].srv" for controller in ("cpuset", "memory")
    )
    assert pbs_job_cgroups("73.srv", legacy) == (), "brackets are no pattern"
    assert Pbs(legacy).find("12.srv").pids == {1201, 1202}


def test_a_job_may_be_named_without_its_server_if_that_is_one(legacy: Path) -> None:
    assert Pbs(legacy).find("12").id == "12.srv"
    assert Pbs(legacy).find("7[3]").id == "7[3].srv"
    write(legacy, f"{V1}/cpuset/{JOBS}/12.other/cgroup.procs", "5\n")
    with pytest.raises(UsageError, match="one of several"):
        Pbs(legacy).find("12")


def test_a_prefix_of_the_sites_own_is_found(legacy: Path) -> None:
    write(legacy, f"{V1}/cpuset/site.service/jobid/9.srv/cgroup.procs", "99\n")
    assert Pbs(legacy).find("9.srv").pids == {99}


def test_version_2_groups_can_be_frozen_and_version_1_groups_cannot(legacy: Path, tmp_path_factory: Any) -> None:
    assert pbs_job_freezers("12.srv", legacy) == ()
    unified = tmp_path_factory.mktemp("v2")
    write(unified, "proc/self/mountinfo", f"30 1 0:30 / /{V1} rw - cgroup2 cgroup2 rw\n")
    write(unified, f"{V1}/{JOBS}/12.srv/cgroup.procs", "1201\n")
    assert pbs_job_freezers("12.srv", unified) == (unified / V1 / JOBS / "12.srv",)


def test_the_nodes_are_those_of_the_cpus_and_of_the_mems_where_these_are_fenced(legacy: Path) -> None:
    topology = read_topology(legacy)
    assert pbs_job_cpuset("12.srv", legacy)[0] == {0, 1}
    near = tuple(sorted(topology.nodes_of_cpus({0, 1})))
    assert job_nodes("12.srv", "", GUEST, topology, legacy) == near
    write(legacy, f"{V1}/cpuset/{JOBS}/12.srv/cpuset.effective_mems", "3\n")
    assert job_nodes("12.srv", "", GUEST, topology, legacy) == near, "mems that serve none of its CPUs are no home"
    for name, value in (("effective_cpus", "0-7"), ("effective_mems", "1")):
        write(legacy, f"{V1}/cpuset/{JOBS}/12.srv/cpuset.{name}", value + "\n")
    assert topology.nodes_of_cpus(set(range(8))) > {1}
    assert job_nodes("12.srv", "", GUEST, topology, legacy) == (1,), "fenced mems narrow it"


def test_without_a_cpuset_the_vnodes_of_this_host_say_which_nodes(legacy: Path) -> None:
    topology = read_topology(legacy)
    given = "(guest[1]:ncpus=1:mem=5kb+guest[2]:ncpus=1)+(other[3]:ncpus=1)+(guest:ncpus=1)"
    assert job_nodes("99.srv", given, GUEST, topology, legacy) == (1, 2)
    assert job_nodes("99.srv", "(guest[99]:ncpus=1)", GUEST, topology, legacy) == ()
    assert job_nodes("99.srv", "(guest:ncpus=4)", GUEST, topology, legacy) == ()


def test_without_cgroups_a_jobs_session_and_those_that_say_so_are_its_processes(legacy: Path) -> None:
    process(legacy, 501, 1000, session=501)
    process(legacy, 502, 1000, session=501)
    process(legacy, 503, 1000, job="5.srv", session=503)
    process(legacy, 504, 0, session=501)  # of the session, and not the user's
    process(legacy, 505, 1001, job="5.srv")  # somebody else who says so
    process(legacy, 506, 1000, job="5.srvx")
    assert job_pids("5.srv", 501, 1000, legacy) == {501, 502, 503}
    assert job_pids("5.srv", 0, 1000, legacy) == {503}
    assert job_pids("12.srv", 501, 1000, legacy) == {1201, 1202}, "a job with cgroups has those of its cgroups"


@pytest.mark.usefixtures("impatient")
def test_a_process_that_does_not_answer_costs_no_job_its_own(legacy: Path) -> None:
    process(legacy, 503, 1000, job="5.srv", session=501)
    process(legacy, 504, 1000, session=501)
    environment = legacy / "proc/504/environ"
    environment.unlink(missing_ok=True)
    os.mkfifo(environment)
    try:
        assert known_pids("5.srv", 501, 1000, legacy) == {503, 504}
        assert job_pids("5.srv", 0, 1000, legacy) == {503}
        assert claimed_pids("5.srv", root=legacy) == {503}
    finally:
        os.close(os.open(environment, os.O_RDWR | os.O_NONBLOCK))


def test_without_its_user_or_its_session_nothing_of_a_job_is_found_at_once(legacy: Path) -> None:
    process(legacy, 503, 1000, job="5.srv", session=501)
    assert known_pids("5.srv", 0, 1000, legacy) == known_pids("5.srv", 501, None, legacy) == frozenset()
    assert known_pids("12.srv", root=legacy) == {1201, 1202}


def test_whoever_says_to_be_of_a_job_is_believed_only_if_nobody_else_does(legacy: Path) -> None:
    process(legacy, 503, 1000, job="5.srv")
    with pytest.raises(UsageError, match="no such job"):
        Pbs(legacy).find("5.srv")  # a host without PBS
    write(legacy, "etc/pbs.conf", "")
    assert Pbs(legacy).find("5.srv").pids == {503}
    process(legacy, 504, 1000, job="777")
    with pytest.raises(UsageError, match="no such job"):
        Pbs(legacy).find("777")  # it may be another scheduler's
    process(legacy, 504, 1000)
    assert claimed_pids("5.srv", root=legacy) == {503}
    process(legacy, 505, 1001, job="5.srv")
    with pytest.raises(UsageError, match="several users"):
        claimed_pids("5.srv", root=legacy)


def test_a_job_is_stopped_if_all_of_it_is(legacy: Path) -> None:
    process(legacy, 601, 1000, state="T (stopped)")
    process(legacy, 602, 1000, state="Z (zombie)")
    process(legacy, 603, 1000)
    assert is_stopped(frozenset({601, 602}), legacy)
    assert not is_stopped(frozenset({601, 603}), legacy)
    assert not is_stopped(frozenset(), legacy)


HOSTILE = ["", "..", "1/2", "1.a/b", "12.", "12..srv", "12.srv\n", "[1]", "1[1", "x.srv", "1[1]x", "\0", "9" * 30]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_job_id_is_refused(legacy: Path, text: str) -> None:
    assert not is_job_id(text)
    with pytest.raises(UsageError, match="not a PBS job ID"):
        Pbs(legacy).find(text)
    with pytest.raises(UsageError):
        events.parse({"event": "execjob_end", "jobs": [{"id": text}]})


@given(
    st.text(alphabet="0123456789[]./a-z_\0\n", max_size=12) | st.from_regex(r"[0-9]{1,3}(\[[0-9]\])?(\.[a/.]{0,4})?")
)
def test_no_job_id_leaves_its_folder(text: str) -> None:
    if is_job_id(text):
        assert "/" not in text
        assert text not in {".", ".."}
        assert "\0" not in text


def test_what_the_hook_says_is_checked_as_a_whole() -> None:
    event = events.parse({"verb": "pbs", "event": "execjob_end", "jobs": [{"id": "1.s"}], "hosts": ["a"]})
    assert (event.event, event.jobs[0].id) == (Kind.END, "1.s")
    for wrong in (
        {"event": "execjob_end", "jobs": []},
        {"event": "execjob_end", "jobs": [{"id": "1.s"}, {"id": "2.s"}]},
        {"event": "nothing", "jobs": [{"id": "1.s"}]},
        {"event": "execjob_end", "jobs": [{"id": "1.s", "session": -1}]},
        {"event": "execjob_end", "jobs": [{"id": "1.s", "comment": "x" * 5000}]},
        {"event": "execjob_end", "jobs": [{"id": "1.s", "also": 1}]},
        {"event": "execjob_end", "jobs": [{"id": "1.s"}], "also": 1},
        {},
    ):
        with pytest.raises(UsageError):
            events.parse(wrong)


MAY = Policy(owners_may_ask=True)


def test_a_comment_is_served_once_and_what_came_with_the_submission_always_if_owners_may_ask() -> None:
    asked = understood(PbsJob("1.s", comment="pageferry:nodes=2-3"), GUEST, Record(), Policy())
    assert asked.fresh
    assert asked.wish is not None
    assert asked.wish.nodes == (2, 3)
    served = Record(served=asked.text)
    assert understood(PbsJob("1.s", comment="pageferry:nodes=2-3"), GUEST, served, MAY).wish is None
    for text in ("nodes=1", "pageferry:nodes=1"):
        job = PbsJob("1.s", comment="pageferry:nodes=2-3", asked=text)
        assert understood(job, GUEST, served, Policy()) == Asked()
        standing = understood(job, GUEST, served, MAY)
        assert standing.wish is not None
        assert standing.wish.nodes == (1,)
        assert not standing.fresh


def test_a_request_that_the_hook_may_have_cut_is_refused() -> None:
    nodes = "nodes=0" + ",1" * 600
    whole = PbsJob("1.s", comment=f"pageferry:{nodes}"[:1023])
    assert understood(whole, GUEST, Record(), Policy()).wish is not None
    for job in (
        PbsJob("1.s", comment=f"pageferry:{nodes}"[:1024]),
        PbsJob("1.s", comment=" " * 1007 + "pageferry:nodes=1"),
        PbsJob("1.s", asked=nodes[:1024]),
    ):
        asked = understood(job, GUEST, Record(), MAY)
        assert asked.wish is None
        assert asked.error is not None


def test_comments_that_are_none_of_ours_and_parts_for_other_hosts_ask_for_nothing() -> None:
    for comment in ("Job run at Wed Nov 25", "", "pageferry:other:nodes=1"):
        asked = understood(PbsJob("1.s", comment=comment), GUEST, Record(), Policy())
        assert (asked.wish, asked.error) == (None, None)
    part = understood(PbsJob("1.s", comment="pageferry:nodes=1;guest:nodes=2"), GUEST, Record(), Policy())
    assert part.wish is not None
    assert part.wish.nodes == (2,)


@pytest.mark.parametrize(
    ("comment", "why"),
    [
        ("nodes=1,cpus=3", "keeps the CPUs"),
        ("nodes=1,now", "pageferry move"),
        ("nodes=x", "not a list"),
        ("", "asked for"),
    ],
)
def test_what_pbs_cannot_do_is_refused_with_a_reason(comment: str, why: str) -> None:
    asked = understood(PbsJob("1.s", comment=f"pageferry:{comment}"), GUEST, Record(), Policy())
    assert asked.wish is None
    assert why in (asked.error or "")


def test_records_are_kept_for_each_job_and_one_that_is_damaged_is_empty(tmp_path: Path) -> None:
    kept = Record(homes=(1, 2), placed=(1,), settled=(2,), served="pageferry:nodes=1", told="moved")
    record.save("7[3].s", kept, tmp_path)
    record.save("12.s", Record(told="x"), tmp_path)
    assert record.load("7[3].s", tmp_path) == kept
    record.forget_others(["7[3].s"], tmp_path)
    assert record.load("12.s", tmp_path) == Record()
    assert record.load("7[3].s", tmp_path) == kept
    (tmp_path / "7[3].s.json").write_text("{")
    assert record.load("7[3].s", tmp_path) == Record()
    record.save("1.s", kept, tmp_path / "7[3].s.json")  # no folder: it costs no more than the record
    record.forget("7[3].s", tmp_path)
    assert not list(tmp_path.iterdir())


def test_of_one_job_only_one_moves_at_a_time(tmp_path: Path) -> None:
    with record.alone("1.s", tmp_path) as first:
        assert first
        with record.alone("1.s", tmp_path, until=lambda: True) as second:
            assert not second
        with record.alone("2.s", tmp_path, until=lambda: True) as other:
            assert other
    with record.alone("1.s", tmp_path, until=lambda: True) as again:
        assert again


def test_a_lock_that_is_held_is_not_removed(tmp_path: Path) -> None:
    with record.alone("1.s", tmp_path):
        record.forget("1.s", tmp_path)
        record.forget_others([], tmp_path)
        with record.alone("1.s", tmp_path, until=lambda: True) as second:
            assert not second
    record.forget("1.s", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_move_by_hand_keeps_others_away_and_its_target_is_the_jobs_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.save("1.s", Record(homes=(0,), placed=(0,), settled=(0,), served="x", told="moved", begun=True), tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with by_hand.moving("1.s", tmp_path) as went, record.alone("1.s", tmp_path, until=lambda: True) as other:
        assert not other
        went((2, 3))
    assert record.load("1.s", tmp_path) == Record(homes=(2, 3), placed=(0,), served="x", told="moved")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with by_hand.moving("1.s", tmp_path) as went, record.alone("1.s", tmp_path, until=lambda: True) as other:
        assert other, "who may not write the records waits for nobody"
        went((1,))
    assert record.load("1.s", tmp_path).homes == (2, 3)


def test_mom_has_given_up_once_its_time_is_over_or_its_hook_is_gone_but_not_where_the_hook_cannot_be_seen() -> None:
    def event(until: float) -> events.Event:
        return events.Event(event=Kind.PRERESUME, jobs=[PbsJob("1.s")], hosts=["guest"], until=until)

    with subprocess.Popen(["true"]) as ended:
        pass
    assert has_given_up(event(math.inf), ended.pid)
    assert has_given_up(event(0.0), os.getpid())
    assert not has_given_up(event(math.inf), os.getpid())
    assert not has_given_up(event(math.inf), 0)


def test_a_job_that_runs_here_again_begins_anew(tmp_path: Path) -> None:
    record.save("99.s", Record(homes=(3,), placed=(3,), settled=(3,), served="pageferry:nodes=3"), tmp_path)
    at_once.begin(PbsJob("99.s"), GUEST, tmp_path)
    assert record.load("99.s", tmp_path) == Record(facts=Facts("pbs", cluster="s"))


OWNERS = Rule(name=Name("owners"), owners_may_ask=True)


def case(job: PbsJob, folder: Path, *rules: Rule, kind: Kind = Kind.PRERESUME) -> Case:
    return Case(kind, job, GUEST, Settings(rule=(*rules, OWNERS)), folder)


def test_what_mom_says_of_a_job_is_what_rules_are_told() -> None:
    job = PbsJob("12.srv", user="ada", queue="long", account="", project="p1", name="a\x1b", nodes=2, cpus=8)
    assert job.facts() == Facts(
        "pbs", cluster="srv", partition="long", account="p1", user="ada", job_name=r"a\x1b", nodes=2, cpus=8
    )
    assert msgspec.structs.replace(job, account="a1").facts().account == "a1"
    assert PbsJob("12").facts() == Facts("pbs"), "what an older hook does not say is not known"


OFF = Rule(name=Name("off"), mode="off", match=Match(partition=Globs(("debug",))))
WATCHED = Rule(name=Name("watch"), mode="observe", owners_may_ask=True, match=Match(partition=Globs(("debug",))))


@pytest.mark.parametrize("rule", [OFF, WATCHED])
def test_mom_does_not_wait_for_a_job_that_is_not_to_be_moved(tmp_path: Path, rule: Rule) -> None:
    standing = PbsJob("99.s", queue="debug", asked="nodes=0")
    assert at_once.ready(case(standing, tmp_path, rule)).settled
    assert not at_once.ready(case(standing, tmp_path)).settled
    assert not at_once.ready(case(msgspec.structs.replace(standing, queue="long"), tmp_path, rule)).settled


def test_a_job_that_is_left_alone_is_neither_held_nor_moved_and_a_request_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_move", pytest.fail)
    monkeypatch.setattr(pbs_hold, "held", pytest.fail)
    told: list[Mapping[str, Any]] = []
    job = PbsJob("99.s", queue="debug", comment="pageferry:nodes=0")
    served = serve.serve(case(job, tmp_path, OFF), told.append)
    assert (served.rule, served.outcome, served.error) == ("off", None, 'rule off leaves the job alone (mode = "off")')
    assert told == [{"live": "rule off, mode = off"}]
    after = record.load("99.s", tmp_path)
    assert after.told.startswith("failed: rule off leaves the job alone")
    assert after.facts == job.facts()
    quiet = serve.serve(case(PbsJob("99.s", queue="debug"), tmp_path, OFF, kind=Kind.POSTSUSPEND), told.append)
    assert (quiet.outcome, quiet.error) == (None, None)


def test_what_is_only_observed_changes_nothing_of_what_is_known_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Record(homes=(3,), placed=(3,), begun=True)
    record.save("99.s", before, tmp_path)
    seen: list[Any] = []
    outcome = {"refused": False, "complete": True, "observed": True, "moved_bytes": 0, "would_move_bytes": 4096}

    def move(_case: Case, *words: Any) -> dict[str, Any]:
        seen.append(words)
        return outcome

    monkeypatch.setattr(serve, "_move", move)
    for module in (aim, serve):
        monkeypatch.setattr(module, "is_stopped", lambda _pids: True)
    job = PbsJob("99.s", queue="debug", asked="nodes=0")
    served = serve.serve(case(job, tmp_path, WATCHED, kind=Kind.POSTSUSPEND), lambda _message: None)
    assert (served.outcome, served.rule) == (outcome, "watch")
    assert [(words[1], words[-1]) for words in seen] == [(Destination((0,), sources=()), None)]
    after = record.load("99.s", tmp_path)
    assert after.told.startswith("observed: would move 4 KiB to nodes 0")
    assert msgspec.structs.replace(after, told="", facts=None) == before


@pytest.mark.parametrize(("ends", "limited"), [("go on", False), ("leave", True)])
def test_a_held_job_is_moved_no_longer_than_it_is_held_if_its_rule_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Any, limited: bool
) -> None:
    held: list[float] = []

    @contextmanager
    def hold(_job: str, _pids: frozenset[int], seconds: float, _folder: Path) -> Iterator[None]:
        held.append(seconds)
        yield

    seen: list[Any] = []
    outcome = {"refused": False, "complete": True, "moved_bytes": 0}

    def move(_case: Case, *words: Any) -> dict[str, Any]:
        seen.append(words[-1])
        return outcome

    monkeypatch.setattr(serve, "_move", move)
    monkeypatch.setattr(pbs_hold, "held", hold)
    job = PbsJob("99.s", asked="nodes=0")
    rule = Rule(name=Name("a"), owners_may_ask=True, max_hold_seconds=30.0, when_hold_ends=ends)
    serve.serve(case(job, tmp_path, rule), lambda _message: None)
    serve.serve(case(job, tmp_path, rule, kind=Kind.RESIZE), lambda _message: None)
    assert held == [30.0]
    assert seen[1] is None, "nothing holds it"
    assert (seen[0] is not None and 20 < seen[0] <= 30) == limited


def test_who_waits_for_a_job_that_is_held_already_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(*_: object) -> NoReturn:
        raise pbs_hold.HeldAlreadyError("for an earlier resume")

    told: list[Mapping[str, Any]] = []
    monkeypatch.setattr(serve, "_move", lambda *_: {"refused": False, "complete": True, "moved_bytes": 0})
    monkeypatch.setattr(pbs_hold, "held", hold)
    served = serve.serve(case(PbsJob("99.s", asked="nodes=0"), tmp_path), told.append)
    assert told == [{"held": True, "already": True}], "MoM may go on, and the hold is another's"
    assert served.seconds_stopped == 0


def test_a_job_of_which_nobody_says_where_it_belongs_has_nothing_to_wait_for(tmp_path: Path) -> None:
    assert at_once.ready(case(PbsJob("99.s"), tmp_path)).settled
    assert not at_once.ready(case(PbsJob("99.s", asked="nodes=0"), tmp_path)).settled


@pytest.mark.parametrize("text", ["nodes=x", "nodes=1,cpus=3", "nodes=999"])
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_held(tmp_path: Path, text: str) -> None:
    job = PbsJob("99.s", comment=f"pageferry:{text}")
    found = at_once.ready(case(job, tmp_path))
    assert found.settled, "nothing is left to do"
    assert found.refused.startswith("failed: ")
    assert record.load("99.s", tmp_path).told == found.refused
    assert at_once.ready(case(job, tmp_path)).refused == "", "once"


def test_what_was_settled_before_a_suspension_is_not_settled_by_it(tmp_path: Path) -> None:
    record.save("99.s", Record(homes=(0,), settled=(0,)), tmp_path)
    at_once.unsettle(PbsJob("99.s"), tmp_path)
    assert record.load("99.s", tmp_path) == Record(homes=(0,))

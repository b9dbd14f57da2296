"""What must hold of a policy applied: to real processes and file systems, and to errands that are told to stop."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pageferry import applied, ferry, parking, report
from pageferry.agent.chores import Chore
from pageferry.agent.errand import Result, Say
from pageferry.agent.errands import Errands
from pageferry.applied import Destination
from pageferry.errors import PageferryError
from pageferry.kernel.mountinfo import read_mountinfo
from pageferry.kernel.topology import Topology, read_topology
from pageferry.policy import Mode, Policy, Special
from pageferry_planner.model import Strategy, Target, Verdict, WhenFull
from pageferry_planner.placement import place
from support.children import python, said
from support.plans import anonymous, line_host, snapshot_of
from support.trees import plant

POLICY = Policy(
    rule="a",
    strategy=Strategy.PACK,
    workers=3,
    rate=1 << 21,
    reserve=77,
    when_full=WhenFull.SPILL,
    libraries=("/opt/*",),
    xattr=False,
    reference_count=False,
    leave_filesystems=("nfs",),
)


def test_all_that_a_policy_says_of_a_move_is_in_the_request() -> None:
    topology = read_topology()
    asked = applied.request(POLICY, Destination((1, 0), sources=(2,)), topology, seconds=5.0)
    assert asked.target.nodes == (1, 0)
    assert asked.target.sources == frozenset({2})
    assert (asked.target.strategy, asked.target.when_full) == (Strategy.PACK, WhenFull.SPILL)
    assert asked.target.spill == topology.nodes_with_memory()
    assert (asked.limits.workers, asked.limits.bytes_per_second, asked.limits.seconds) == (3, 1 << 21, 5.0)
    assert asked.reserve_bytes == 77
    rules = asked.rules
    assert (rules.stay, rules.xattrs, rules.reference_count, rules.filesystems) == (("/opt/*",), False, False, ("nfs",))


def test_the_strategy_of_a_request_goes_before_the_policys() -> None:
    asked = applied.request(POLICY, Destination((1,), Strategy.LOCAL), read_topology())
    assert asked.target.strategy is Strategy.LOCAL


@pytest.mark.parametrize(
    ("kernels", "strategy", "weights"),
    [
        (((0, 2), (1, 5)), Strategy.WEIGHTED, ((0, 2), (1, 5))),
        ((), Strategy.WEIGHTED, ((0, 3), (1, 1))),
        (((0, 2), (1, 5)), Strategy.PACK, ((0, 3), (1, 1))),
    ],
    ids=["the kernel's", "the rule's where the kernel has none", "the kernel's are not read for another strategy"],
)
def test_the_kernels_weights_go_before_a_rules(
    monkeypatch: pytest.MonkeyPatch,
    kernels: tuple[tuple[int, int], ...],
    strategy: Strategy,
    weights: tuple[tuple[int, int], ...],
) -> None:
    monkeypatch.setattr(applied, "read_weights", lambda: kernels)
    asked = applied.request(replace(POLICY, weights=((0, 3), (1, 1))), Destination((0, 1), strategy), read_topology())
    assert asked.target.weights == weights


def four_nodes(tmp_path: Path) -> Topology:
    return read_topology(plant("four_nodes", tmp_path))


@pytest.mark.parametrize("text", ["2,900", "cpuless"])
def test_a_sites_special_nodes_are_in_each_request(tmp_path: Path, text: str) -> None:
    policy, topology = replace(POLICY, special=Special(text)), four_nodes(tmp_path)
    target = applied.request(policy, Destination((1,)), topology).target
    assert target.special == {2}
    assert target.spill == {0, 1}, "nor does anything spill there"


def test_what_a_target_names_may_take_what_spills(tmp_path: Path) -> None:
    policy, topology = replace(POLICY, special=Special("1-2")), four_nodes(tmp_path)
    assert applied.request(policy, Destination((0, 2)), topology).target.spill == {0, 2}
    parks = parking.away(policy, (0,), (1, 2))
    assert applied.request(policy, parks, topology).target.left_alone == frozenset()
    named = applied.request(policy, Destination((0,), spill=frozenset({0, 1})), topology).target
    assert named.spill == {0, 1}


def test_memory_leaves_a_special_node_where_it_was_parked_and_no_other(tmp_path: Path) -> None:
    policy, topology = replace(POLICY, special=Special("2")), four_nodes(tmp_path)
    back = applied.request(policy, parking.back(policy, (2,), (0,), (0,), None), topology).target
    assert (back.sources, back.left_alone) == (frozenset({2}), frozenset())
    assert back.spill == {0, 1}
    left = applied.request(policy, parking.back(policy, (1,), (0,), (0,), None, left=(2,)), topology).target
    assert (left.sources, left.left_alone) == (frozenset({1}), frozenset()), "nor where it was left before"
    assert left.spill == {0, 1}
    home = applied.request(policy, Destination((0,), sources=(1, 2)), topology).target
    assert (home.sources, home.left_alone) == (frozenset({1}), frozenset({2})), (
        "where it was once brought to names no special node"
    )


def test_the_second_half_of_a_move_leaves_special_nodes_as_the_first_did() -> None:
    snapshot = snapshot_of([anonymous(0, 0, 10, 0), anonymous(0, 600, 10, 2)])
    for sources, stays in ((None, {2, 3}), ({0, 2}, {3}), ({2}, {3})):
        named = None if sources is None else frozenset(sources)
        request = ferry.Request(Target((0, 1), sources=named, special=frozenset({2, 3})))
        rest = ferry.after(request, place(snapshot, request.target, line_host((1000,) * 4)))
        assert rest.target.left_alone == stays


def test_nothing_is_asked_for_a_job_that_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ferry, "move", pytest.fail)
    monkeypatch.setattr(ferry, "plan", pytest.fail)
    off = replace(POLICY, mode=Mode.OFF)
    with pytest.raises(PageferryError, match=r'^rule a leaves the job alone \(mode = "off"\)$'):
        applied.carried(off, [], applied.request(off, Destination((0,)), read_topology()))


def test_what_is_observed_is_planned_and_never_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    stays = Verdict(False, "library-list", "/opt/*")
    snapshot = snapshot_of([anonymous(0, 100, 10, 1), anonymous(0, 200, 5, 0), (0, 300, 7, 1, 0, 0)], verdicts=[stays])
    asked = applied.request(POLICY, Destination((0,)), read_topology())
    target = replace(asked.target, nodes=(0,), spill=frozenset())
    made = place(snapshot, target, line_host((1000, 1000)))
    monkeypatch.setattr(ferry, "move", pytest.fail)
    monkeypatch.setattr(ferry, "plan", lambda _pids, _asked, _seen: (snapshot, made))
    outcome = applied.carried(replace(POLICY, mode=Mode.OBSERVE), [], asked)
    assert report.outcome_word(outcome, None) == "observed"
    assert (outcome["would_move_bytes"], outcome["moved_bytes"], outcome["requested_pages"]) == (40960, 0, 0)
    assert outcome["excluded"] == {"library-list": 7}
    assert sum(outcome["pages"].values()) + outcome["would_request_pages"] == outcome["total_pages"] == 22
    assert report.told(outcome, (0,), None).startswith("observed: would move 40 KiB to nodes 0, ")
    assert any("would move" in line for line in report.outcome_lines(outcome))
    json.dumps(outcome)


def mounted(path: str) -> tuple[str, str]:
    """Return the type and the mount point of a file's file system, by our own look at the table of mounts."""
    status = Path(path).stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    mount = next(mount for mount in reversed(read_mountinfo()) if mount.device == device)
    return mount.fstype, os.fsdecode(mount.point)


@pytest.mark.parametrize("which", [0, 1])
def test_mapped_files_of_a_file_system_that_is_left_alone_stay_and_are_not_opened(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with python("import sys; print(1, flush=True); sys.stdin.read()") as process:
        said(process)
        program = os.path.realpath(f"/proc/{process.pid}/exe")
        name = mounted(program)[which]
        policy = Policy(leave_filesystems=(name,), reference_count=False)
        looked: list[str] = []

        def attribute(path: Path, _name: str) -> str:
            looked.append(str(path))
            return ""

        monkeypatch.setattr("pageferry.kernel.objects.attribute", attribute)
        snapshot, _ = ferry.survey([process.pid], applied.rules(policy))
        verdicts = dict(zip((backing.path for backing in snapshot.backings), snapshot.verdicts, strict=True))
        assert verdicts[program] == Verdict(False, "filesystem", name)
        assert not [path for path in looked if os.path.realpath(path) == program]
        others, _ = ferry.survey([process.pid], applied.rules(Policy(reference_count=False)))
        assert all(verdict.moves for verdict in others.verdicts)
        (entry,) = [entry for entry in report.mappings_json(snapshot, "move") if entry["what"] == program]
        assert (entry["moves"], entry["rule"], entry["detail"]) == (False, "filesystem", name)
        assert sum(entry["nodes"].values()) == entry["bytes"] > 0
        assert {entry["rule"] for entry in report.mappings_json(snapshot, "off")} == {"mode"}


@pytest.fixture
def errands() -> Iterator[Errands]:
    made = Errands()
    yield made
    made.close()


def interrupted(errands: Errands, work: Chore) -> Result:
    """Return the result of an errand that is told to stop once it has said anything."""
    results: list[Result] = []
    begun: list[Any] = []
    sent = errands.send(work, results.append, begun.append, seconds=60)
    assert sent is not None
    while not begun:
        assert select.select([sent.fd], [], [], 20)[0]
        errands.collect(sent.fd)
    sent.interrupt()
    while not results:
        assert select.select(errands.descriptors(), [], [], 20)[0], "the errand says something"
        for descriptor in errands.descriptors():
            errands.collect(descriptor)
    return results[0]


def test_a_move_that_is_told_to_stop_says_how_far_it_has_come(errands: Errands) -> None:
    def work(say: Say) -> dict[str, Any]:
        stopped: list[int] = []
        with applied.interruptible() as moving:
            before = signal.getsignal(signal.SIGINT)
            moving()
            # As the mover does while it carries: it stops between two calls.
            signal.signal(signal.SIGINT, lambda number, _frame: stopped.append(number))
            say({"begun": True})
            while not stopped:
                time.sleep(0.001)
            signal.signal(signal.SIGINT, before)
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {"stopped": len(stopped)}

    assert interrupted(errands, work).value == {"stopped": 1}


def test_a_move_that_is_told_to_stop_while_it_plans_ends_with_the_reason(errands: Errands) -> None:
    def work(say: Say) -> dict[str, Any]:
        with applied.interruptible():
            say({"begun": True})
            time.sleep(60)
        return {}

    assert interrupted(errands, work).error == "its time was used up before its memory began to move"

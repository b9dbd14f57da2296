"""What must hold of a snapshot without names: none is left, equal ones are still equal, and the plan is the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings

from pageferry.ferry import Inputs, Request
from pageferry.kernel.topology import Node, Topology
from pageferry.replay.anonymise import anonymised
from pageferry.replay.write import Recorded, lines
from pageferry_planner.model import Backing, Snapshot, Target, Verdict
from pageferry_planner.policy import Facts, Rules
from support.plans import anonymous, snapshot_of
from support.recordings import plan_text, recordings, same_pages


@given(recordings())
@settings(max_examples=150)
def test_the_plan_moves_the_same_pages_and_keeps_the_same_ones(recorded: Recorded) -> None:
    assert same_pages(recorded.inputs, anonymised(recorded).inputs)


@given(recordings())
@settings(max_examples=100)
def test_no_name_is_left_and_equal_ones_are_still_equal(recorded: Recorded) -> None:
    backings = recorded.inputs.snapshot.backings
    hidden = anonymised(recorded)
    text = json.loads(f"[{','.join(line.decode() for line in lines(hidden))}]")
    for line in text[-len(backings) :] if backings else ():
        assert "ring" not in str(line)
    after = hidden.inputs.snapshot.backings
    assert len({backing.path for backing in backings}) == len({backing.path for backing in after})
    for was, now in zip(backings, after, strict=True):
        assert (was.device, was.inode) == (now.device, now.inode)
        assert (was.space == was.path) == (now.space == now.path)
        assert was.path.count("/") == now.path.count("/") or was.path.startswith("/memfd:")
    assert "4711" not in hidden.of


def hidden(*paths: str, names: tuple[str, ...] = ("rank",), detail: str = "", stay: tuple[str, ...] = ()) -> Recorded:
    snapshot = snapshot_of([anonymous(0, 0, 1, 0)], homes=[frozenset({0})] * len(names))
    processes = tuple(replace(one, name=name) for one, name in zip(snapshot.processes, names, strict=True))
    backings = tuple(Backing("08:01", number, "", path) for number, path in enumerate(paths))
    verdicts = (Verdict(False, "library-list", detail) if detail else Verdict(True, "job-only"),) * len(paths)
    return anonymised(recording(replace(snapshot, processes=processes, backings=backings, verdicts=verdicts), stay))


def recording(snapshot: Snapshot, stay: tuple[str, ...]) -> Recorded:

    request = Request(Target((1,)), Rules(stay))
    return Recorded("job 4711", Inputs(snapshot, (Facts(),) * len(snapshot.backings), Topology(()), {}, request))


@pytest.mark.parametrize(
    ("path", "becomes"),
    [
        ("/home/alice/run/alice.dat", "/n1/n2/n3/n4"),
        ("/home/alice/alice", "/n1/n2/n2"),
        ("/opt/secret/libsecret.so.6.0", "/n1/n2/n3.so.6.0"),
        ("/opt/libsecret.so", "/n1/n2.so"),
        ("/opt/libsecret.so.alice", "/n1/n2"),
        ("/opt/a.so.1/b", "/n1/n2.so.1/n3"),
        ("/opt/x (deleted)", "/n1/n2 (deleted)"),
        ("/memfd:secret/pool (deleted)", "/memfd:n1 (deleted)"),
        ("/SYSV00a1ce00 (deleted)", "/SYSVn1 (deleted)"),
        ("/dev/zero (deleted)", "/dev/zero (deleted)"),
        ("/dev/shm/alice", "/dev/shm/n1"),
        ("/anon_hugepage (deleted)", "/anon_hugepage (deleted)"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_paths_are_replaced_part_by_part(path: str, becomes: str) -> None:
    made = hidden(path, names=("",)).inputs.snapshot
    assert made.backings[0].path == becomes


def test_the_same_name_has_the_same_number_wherever_it_stands() -> None:
    made = hidden("/home/alice/a.out", "/scratch/alice/b", names=("a.out", "alice")).inputs.snapshot
    assert [process.name for process in made.processes] == ["n1", "n2"]
    assert [backing.path for backing in made.backings] == ["/n3/n2/n1", "/n4/n2/n5"]


def test_the_sites_globs_are_names_too() -> None:
    made = hidden("/opt/alice/lib.so", names=("",), detail="/opt/alice/*", stay=("/opt/alice/*", "/srv/*")).inputs
    assert made.request.rules.stay == ("n4", "n5")
    assert made.snapshot.verdicts[0] == Verdict(False, "library-list", "n4")
    assert "alice" not in plan_text(replace(made, topology=two_nodes()))


def two_nodes() -> Topology:

    return Topology(tuple(Node(n, frozenset(), 1 << 33, 1 << 32, 0, {0: 10, 1: 20}, {}) for n in range(2)))

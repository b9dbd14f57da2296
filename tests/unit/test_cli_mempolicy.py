"""Which memory policies stay behind when memory moves, and how they are told to people."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from pageferry.cli import mempolicy as told
from pageferry.errors import KernelError
from pageferry.kernel import mempolicy
from pageferry.kernel.mempolicy import Found, Policies, Policy
from support.plans import anonymous, snapshot_of

Read = Callable[..., None]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Have this be found: policies as (mode, nodes, nodes with private memory)."""

    def there(*policies: tuple[str, set[int], set[int]], pids: Iterable[int] = (7,), unknown: str = "") -> None:
        found = tuple(
            Found(Policy(mode, frozenset(nodes)), tuple(pids), "rank", frozenset(occupied))
            for mode, nodes, occupied in policies
        )
        monkeypatch.setattr(mempolicy, "read_policies", lambda _pids, _seconds: Policies(found, unknown))

    return there


@pytest.mark.parametrize(
    ("mode", "nodes", "occupied", "stays"),
    [
        ("bind", {0}, {0}, False),
        ("bind", {0}, {2}, True),
        ("bind", {0}, {0, 2}, True),  # moved, and grown since
        ("bind", {0, 1, 2, 3}, {2}, False),  # its node is one of them
        ("bind", {4}, set(), False),  # nothing was allocated by it
        ("prefer", {1}, {2}, True),
        ("interleave", {0, 2}, {0, 2}, False),
        ("interleave", {0, 1, 2, 3}, {2}, True),  # once it was spread over all
        ("weighted interleave=static", {2, 3}, {2}, True),
    ],
)
def test_a_policy_stays_behind_whose_memory_is_elsewhere(
    reads: Read, mode: str, nodes: set[int], occupied: set[int], stays: bool
) -> None:
    reads((mode, nodes, occupied))
    (row,) = told.of_job({7}, snapshot_of([anonymous(0, 1, 8, 2), anonymous(0, 20, 8, 0)]))["policies"]
    assert (row["mode"], row["nodes"], row["stays_behind"]) == (mode, sorted(nodes), stays)


def test_after_a_move_each_policy_stays_behind_that_names_a_node_which_is_no_target(reads: Read) -> None:
    reads(("bind", {0}, {0}), ("bind", {2}, {0}), ("interleave", {2, 3}, set()), ("prefer", {1, 2}, {2}))
    rows = told.after_move({7}, (2, 3))["policies"]
    assert [row["stays_behind"] for row in rows] == [True, False, False, True]


def test_people_are_told_of_each_policy_once_with_one_process_of_all_that_have_it(
    reads: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    reads(("bind", {0}, {2}), pids=(4711, 4712, 4713))
    told.show(told.after_move({4711, 4712, 4713}, (2,)), narrows=True)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("memory policy of 3 processes, first pid 4711 (rank): bind:0: stays behind")
    assert last.endswith(told.NARROWING)


def test_of_many_policies_people_see_the_first_and_how_many_are_left_out(
    reads: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    reads(*(("bind", {node}, {node}) for node in range(12)))
    answer = told.after_move({7}, (2,))
    told.show(answer, narrows=False)
    assert len(answer["policies"]) == 12
    lines = capsys.readouterr().out.splitlines()
    assert lines[told.ROWS] == "and 2 more memory policies"


@pytest.mark.parametrize(("policies", "word"), [([], "not known"), ([("bind", {0}, set())], "not all known")])
def test_what_is_not_known_is_told_with_its_reason_as_one_line(
    reads: Read, capsys: pytest.CaptureFixture[str], policies: list[tuple[str, set[int], set[int]]], word: str
) -> None:
    reads(*policies, unknown="1 processes: held\x1b\n")
    told.show(told.after_move({7}, (2,)), narrows=False)
    assert capsys.readouterr().out.splitlines()[-1] == rf"memory policies {word}: 1 processes: held\x1b\n"


def test_where_nothing_is_to_be_said_nothing_is(reads: Read, capsys: pytest.CaptureFixture[str]) -> None:
    reads()
    told.show(told.after_move({7}, (2,)), narrows=True)
    told.show({}, narrows=True)
    assert capsys.readouterr().out == ""


def test_a_command_does_not_fail_for_policies_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_words: object) -> Policies:
        raise KernelError("no mounts")

    monkeypatch.setattr(mempolicy, "read_policies", fails)
    assert told.after_move({7}, (2,)) == {"policies": [], "policies_unknown": "no mounts"}

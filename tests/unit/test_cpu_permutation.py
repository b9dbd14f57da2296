"""What must hold of the CPU permutation, whatever is moved; the oracle is a table of every CPU, moved one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry_planner.cpu_permutation import CpuPermutation, choose

CPUS = 12
EVERY = range(CPUS)
IDENTITY = CpuPermutation()
some_cpus = st.sets(st.integers(0, CPUS - 1), max_size=CPUS).map(frozenset)


@st.composite
def partitions(draw: st.DrawFn) -> list[frozenset[int]]:
    """Jobs that Slurm keeps apart; some CPUs may be nobody's."""
    owner = draw(st.lists(st.integers(-1, 3), min_size=CPUS, max_size=CPUS))
    return [frozenset(cpu for cpu in EVERY if owner[cpu] == job) for job in range(4)]


@st.composite
def moves(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """Moves of a job, onto the first so many of these CPUs as it has."""
    return draw(st.lists(st.tuples(st.integers(0, 3), st.permutations(EVERY)), max_size=8))


permutations = st.permutations(EVERY).map(lambda order: CpuPermutation(dict(enumerate(order))))


class Seats:
    """The oracle: who sits where, seat by seat. A mover trades places; who is evicted takes the next place left."""

    def __init__(self) -> None:
        self.at = {cpu: cpu for cpu in EVERY}

    def move(self, cpus_from: list[int], cpus_to: list[int]) -> None:
        standing = {seat: who for who, seat in self.at.items()}
        movers = [standing.pop(seat) for seat in cpus_from]
        evicted = [standing.pop(seat) for seat in cpus_to if seat in standing]
        left = [seat for seat in cpus_from if seat not in cpus_to]
        self.at.update(dict(zip(movers, cpus_to, strict=True)) | dict(zip(evicted, left, strict=True)))


@given(partitions(), moves())
def test_whatever_is_moved_jobs_stay_apart_and_each_is_where_it_was_sent(
    jobs: list[frozenset[int]], sent: list[tuple[int, list[int]]]
) -> None:
    permutation, seats = IDENTITY, Seats()
    for job, order in sent:
        now = sorted(permutation.image(jobs[job]))
        target = order[: len(now)]
        permutation = permutation.swapped(now, target)
        seats.move(now, target)
        assert [permutation[cpu] for cpu in EVERY] == [seats.at[cpu] for cpu in EVERY]
        assert permutation.image(EVERY) == frozenset(EVERY), "a bijection"
        assert permutation.image(jobs[job]) == frozenset(target)
        images = [permutation.image(other) for other in jobs]
        assert sum(map(len, images)) == len(frozenset().union(*images))
        assert all(permutation.preimage(image) == other for image, other in zip(images, jobs, strict=True))


@given(permutations, some_cpus, st.permutations(EVERY))
def test_a_move_disturbs_nobody_outside_and_moving_back_undoes_it(
    before: CpuPermutation, cpus: frozenset[int], order: list[int]
) -> None:
    now, target = sorted(cpus), order[: len(cpus)]
    after = before.swapped(now, target)
    for cpu in EVERY:
        if before[cpu] not in {*now, *target}:
            assert after[cpu] == before[cpu]
    assert after.swapped(target, now) == before


@given(permutations)
def test_what_json_held_is_the_same_and_only_what_differs_is_held(permutation: CpuPermutation) -> None:
    plain = json.loads(json.dumps(permutation.as_plain()))
    assert CpuPermutation.from_plain(plain) == permutation
    assert all(int(cpu) != to for cpu, to in plain.items())
    assert (plain == {}) == (permutation == IDENTITY)


@pytest.mark.parametrize("cpus", [(), range(3)])
def test_the_identity_leaves_everything_where_it_is(cpus: range) -> None:
    assert IDENTITY.image(cpus) == IDENTITY.preimage(cpus) == frozenset(cpus)
    assert IDENTITY.swapped((), ()) == IDENTITY
    assert IDENTITY.swapped(cpus, cpus) == IDENTITY


@pytest.mark.parametrize(
    ("cpus_from", "cpus_to"), [([0], []), ([0], [1, 2]), ([0, 1], [2, 2]), ([0, 0], [1, 2])], ids=str
)
def test_a_move_onto_fewer_more_or_repeated_cpus_is_refused(cpus_from: list[int], cpus_to: list[int]) -> None:
    with pytest.raises(ValueError, match="not as many CPUs"):
        IDENTITY.swapped(cpus_from, cpus_to)


DAMAGED: list[Any] = [
    None, [], "0", {"0": 1}, {"0": 1, "1": 1}, {"0": 1, "1": True}, {"0": "1", "1": "0"}, {"a": 0}, {"-1": 0, "0": -1},
    {"0": 1.0, "1": 0}, {"0": None}, {" 1": 0, "0": 1}, {"1_0": 0, "0": 10}, {"٣": 0, "0": 3},
    {"9" * 9: 0, "0": 10**9 - 1}, {"01": 0, "1": 0, "0": 1}, {"0": [1]}, {0: 1, 1: 0},
]  # fmt: skip


@pytest.mark.parametrize("plain", DAMAGED, ids=str)
def test_a_damaged_record_is_an_error(plain: object) -> None:
    with pytest.raises(ValueError, match="CPU"):
        CpuPermutation.from_plain(plain)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_no_record_is_a_crash(plain: object) -> None:
    try:
        permutation = CpuPermutation.from_plain(plain)
    except ValueError:
        return
    assert set(permutation.differs) == set(permutation.differs.values())


# Two CPUs on each of four nodes, numbered node by node; and dealt out in turn, as some firmware does.
FOUR = {node: (2 * node, 2 * node + 1) for node in range(4)}
DEALT = {node: (node, node + 4) for node in range(4)}


@pytest.mark.parametrize(
    ("job", "nodes", "nodes_have", "owned", "expected"),
    [
        pytest.param({0, 1}, [2], FOUR, (), {4, 5}, id="free CPUs"),
        pytest.param({0, 1, 2}, [3, 2], FOUR, (), {4, 5, 6}, id="the first node's two to the first, one to the second"),
        pytest.param({0, 2, 3}, [2, 3], FOUR, (), {4, 6, 7}, id="one to the first, the second's two to the second"),
        pytest.param({0, 1, 2, 3}, [1, 2], FOUR, (), {2, 3, 4, 5}, id="onto some of its own"),
        pytest.param({0, 1}, [0], FOUR, {2, 3}, {0, 1}, id="where it is it stays"),
        pytest.param({1}, [0], FOUR, (), {1}, id="its own before another free one"),
        pytest.param({0}, [2], FOUR, {4}, {5}, id="the free one of two"),
        pytest.param({0, 1}, [2], FOUR, {4}, {4, 5}, id="one free, one of another's"),
        pytest.param({0, 2}, [2, 3], FOUR, {4, 5}, {6, 7}, id="nobody is displaced while another node has room"),
        pytest.param({0, 1}, [2, 3], FOUR, {4}, {5, 6}, id="what is lacking comes from another node"),
        pytest.param({0, 2}, [1], FOUR, (), {2, 3}, id="two nodes onto one"),
        pytest.param({0, 4, 1}, [2, 3], DEALT, (), {2, 3, 6}, id="dealt out"),
        pytest.param({0, 1}, [2], FOUR, {0, 4, 5}, {4, 5}, id="shared with a suspended job"),
        pytest.param(set(), [2], FOUR, set(), set(), id="none"),
    ],
)
def test_cpus_are_chosen(job: set[int], nodes: list[int], nodes_have: Any, owned: set[int], expected: set[int]) -> None:
    assert choose(IDENTITY, job, nodes, nodes_have, owned) == expected


@given(permutations, partitions(), st.sets(st.integers(0, 3), min_size=1))
def test_a_choice_is_as_many_on_the_nodes_and_takes_from_others_only_what_is_lacking(
    permutation: CpuPermutation, jobs: list[frozenset[int]], nodes: set[int]
) -> None:
    have = {node: range(3 * node, 3 * node + 3) for node in range(4)}
    job, owned = jobs[0], frozenset().union(*jobs[1:])
    there = {cpu for node in nodes for cpu in have[node]}
    if len(there) < len(job):
        with pytest.raises(ValueError, match=f"{len(job)} CPUs, and the nodes only {len(there)}"):
            choose(permutation, job, nodes, have, owned)
        return
    chosen = choose(permutation, job, nodes, have, owned)
    assert chosen <= there
    assert len(chosen) == len(job)
    free = there - permutation.image(owned)
    assert len(chosen & permutation.image(owned)) == max(0, len(job) - len(free))
    after = permutation.swapped(sorted(permutation.image(job)), sorted(chosen))
    assert choose(after, job, nodes, have, owned) == chosen, "asked again, it stays"


@pytest.mark.parametrize(
    ("nodes", "says"), [([9], "no node 9"), ([3], "2 CPUs, and the nodes only 0"), ([], "the nodes only 0")]
)
def test_nodes_that_will_not_do_are_named(nodes: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        choose(IDENTITY, {0, 1}, nodes, {**FOUR, 3: ()}, ())

"""What must hold of what is said of hugetlb pools: only where there are some, and both ends of a move in two parts."""

from __future__ import annotations

from pageferry import pool_report
from pageferry.cli.tables import plan_table
from pageferry.kernel.hugetlb import Pool
from pageferry.report import plan_json, size
from pageferry_planner.model import Target
from pageferry_planner.placement import place
from support.plans import AMPLE, line_host
from unit.test_planner_folios import GIB, hugetlb

MIB_2 = 2 << 20
NONE = {0: {MIB_2: Pool(3, 0)}}
SOME = {0: {MIB_2: Pool(3, 2)}, 1: {MIB_2: Pool(2, 0)}}


def test_a_host_without_pools_says_nothing_of_them() -> None:
    assert pool_report.before_and_after({}, {}) == {}
    assert pool_report.changed({}, size) == []
    assert pool_report.joined({}, {}) == {}


def test_the_pools_are_told_by_node_and_size() -> None:
    assert pool_report.before_and_after(NONE, SOME)["hugetlb_pools"] == {
        "before": {"0": {"2097152": {"pages": 3, "free": 0}}},
        "after": {"0": {"2097152": {"pages": 3, "free": 2}}, "1": {"2097152": {"pages": 2, "free": 0}}},
    }


def test_only_pools_that_are_others_than_before_get_a_line() -> None:
    assert len(pool_report.changed(pool_report.before_and_after(NONE, SOME), size)) == 2
    assert pool_report.changed(pool_report.before_and_after(SOME, SOME), size) == []


def test_of_two_moves_it_is_what_was_before_the_first_and_after_the_second() -> None:
    first, again = pool_report.before_and_after(NONE, SOME), pool_report.before_and_after(SOME, {})
    assert pool_report.joined(first, again) == pool_report.before_and_after(NONE, {})


def test_a_plan_says_what_its_nodes_need_of_their_pools() -> None:
    snapshot = hugetlb(3)
    plan = place(snapshot, Target((1,)), line_host([AMPLE] * 4))
    said = plan_json(snapshot, plan)
    assert said["nodes"]["1"]["hugetlb"] == {str(GIB * 4096): {"need": 3, "free": 0}}
    assert "hugetlb" not in said["nodes"]["2"]
    assert said["lacking_bytes"] == {"1": 3 * GIB * 4096}
    plan_table(said)

"""What must hold of rules: the first that matches decides, and what is not known matches nothing."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import policy
from pageferry.policy import (
    Facts,
    Globs,
    Match,
    Mode,
    Name,
    Nodes,
    Policy,
    Rate,
    Rule,
    RuleSpill,
    Special,
    Weights,
    decide,
    passed_over,
    why_not,
)
from pageferry.toml_file import Bytes
from pageferry_planner.model import Strategy, WhenFull

JOB = Facts("slurm", "tux", "long", "normal", "chem", "ada", "run.sh", ("gpu", "ssd"), 4, 64)
TEXTS = ("cluster", "partition", "qos", "account", "user", "job_name")


def rule(name: str, match: Match | None = None, **said: object) -> Rule:
    return Rule(name=Name(name), match=match or Match(), **said)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "5-4", "-1", "1024", "0-2000", "4,", 4, True, [4], None])
def test_what_is_no_list_of_nodes_is_refused_with_what_would_be_right(text: object) -> None:
    with pytest.raises(ValueError, match=r'^expected a list of nodes below 1024, such as "4" or "4-5"$'):
        Nodes.parse(text)
    assert Nodes.parse("7,4-5") == (4, 5, 7)


@pytest.mark.parametrize("value", ["", "0", "0:0", "0:256", "0:1,0:1", 3, True, [[0, 1]], {"0": 1}, None])
def test_what_are_no_weights_is_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(ValueError, match=r'^expected .*1 to 255.*, such as "0:3,2:1"$'):
        Weights.parse(value)
    assert Weights.parse("2:1,0:3") == ((0, 3), (2, 1))


def globs(*words: str) -> Globs:
    return Globs(words)


def named(name: str, *words: str) -> Match:
    return msgspec.structs.replace(Match(), **{name: globs(*words)})


def test_the_first_rule_that_matches_decides_alone() -> None:
    rules = [
        rule("other", Match(partition=globs("short")), workers=1),
        rule("first", Match(partition=globs("lo*")), workers=2),
        rule("second", Match(user=globs("ada")), workers=3, mode="off"),
    ]
    found = decide(rules, JOB, Policy())
    assert (found.rule, found.workers, found.mode) == ("first", 2, Mode.MOVE)
    assert list(passed_over(rules, JOB)) == [("other", "partition is long, not short")]


def test_where_no_rule_matches_the_hosts_policy_holds() -> None:
    host = Policy(workers=7)
    assert decide([rule("a", Match(user=globs("bob")))], JOB, host) is host
    assert decide([], JOB, host) is host


def test_every_key_of_a_rule_is_in_the_policy() -> None:
    said = rule(
        "all",
        mode="observe",
        strategy="pack",
        weights=Weights(((0, 3),)),
        max_hold_seconds=5.0,
        when_hold_ends="leave",
        workers=3,
        rate=Rate(1 << 21),
        reserve=Bytes(9),
        when_full="spill",
        huge_pages="keep",
        hugetlb_surplus=True,
        hot_seconds=2.0,
        libraries=globs("/opt/*"),
        xattr=False,
        reference_count=False,
        leave_filesystems=globs("nfs"),
        park=Nodes((4, 5)),
        narrow_mems=True,
        owners_may_ask=True,
        owners_field="none",
        spill=RuleSpill(enabled=False, least_bytes=Bytes(1)),
    )
    found, host = asdict(decide([said], JOB, Policy(special=Special("2")))), asdict(Policy())
    assert found.pop("special") == "2", "the host's, whatever rules say"
    assert all(found[key] != host[key] for key in found), "each is another than the host's"
    assert found["spill_rate"] == 1 << 21
    assert (found["strategy"], found["when_full"]) == (Strategy.PACK, WhenFull.SPILL)
    keys = {field.name for field in msgspec.structs.fields(Rule)} - {"name", "match", "spill"}
    assert keys == {field.name for field in fields(Policy) if not field.name.startswith("spill_")} - {
        "rule",
        "special",
    }


@pytest.mark.parametrize("name", TEXTS)
def test_a_name_is_matched_whole_and_capital_letters_count(name: str) -> None:
    fact = str(getattr(JOB, name))
    for glob in (fact, fact[0] + "*", "?" * len(fact), f"[{fact[0]}]*"):
        assert why_not(named(name, "nothing", glob), JOB) is None
    for glob in (fact[:-1], fact + "?", fact.upper(), ""):
        assert why_not(named(name, glob), JOB) == f"{name} is {fact}, not {glob}"


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_not_known_matches_nothing_not_even_any_name(name: str) -> None:
    assert why_not(named(name, "*"), Facts("slurm")) == f"{name}: not known, wanted *"
    assert why_not(Match(), Facts("slurm")) is None


def test_any_feature_may_match_and_none_matches_nothing() -> None:
    assert why_not(Match(features=globs("s?d")), JOB) is None
    assert why_not(Match(features=globs("big")), JOB) == "features is gpu,ssd, not big"
    assert why_not(Match(features=globs("*")), replace(JOB, features=())) == "features is none, not *"
    assert why_not(Match(features=globs("*")), Facts("pbs")) == "features: not known, wanted *"


@pytest.mark.parametrize(
    ("match", "why"),
    [
        (Match(min_nodes=4, max_nodes=4, min_cpus=64, max_cpus=64), None),
        (Match(min_nodes=5), "nodes is 4, less than min_nodes = 5"),
        (Match(max_nodes=3), "nodes is 4, more than max_nodes = 3"),
        (Match(min_cpus=65), "cpus is 64, less than min_cpus = 65"),
        (Match(max_cpus=63), "cpus is 64, more than max_cpus = 63"),
        (Match(scheduler="pbs"), "scheduler is slurm, not pbs"),
    ],
)
def test_sizes_are_limits_that_include_themselves(match: Match, why: str | None) -> None:
    assert why_not(match, JOB) == why


@pytest.mark.parametrize(("key", "value"), [("narrow_mems", True), ("hot_seconds", 1.0)])
def test_a_rule_for_pbs_cannot_say_what_is_done_for_slurms_jobs_alone(key: str, value: Any) -> None:
    rules = [rule("a", **{key: value}), rule("b", Match(scheduler="pbs"), **{key: value})]
    ((found, why),) = policy.faults(rules)
    assert found == ("rule", 1, key)
    assert why.startswith("for Slurm's jobs")


def test_a_size_that_is_not_known_is_no_size() -> None:
    assert why_not(Match(max_nodes=9), Facts("slurm")) == "nodes: not known"
    assert why_not(Match(min_cpus=1), Facts("slurm")) == "cpus: not known"


def test_all_that_is_given_must_hold() -> None:
    assert why_not(Match(user=globs("ada"), qos=globs("high")), JOB) == "qos is normal, not high"


def test_a_rule_asks_of_jobs_if_it_asks_for_more_than_the_scheduler() -> None:
    assert not policy.asks_of_jobs([rule("a"), rule("b", Match(scheduler="pbs"))])
    assert policy.asks_of_jobs([rule("a"), rule("b", Match(scheduler="pbs", max_cpus=1))])


@given(st.builds(Facts, st.just("slurm"), *[st.none() | st.text()] * 6, st.none() | st.lists(st.text()).map(tuple)))
def test_facts_are_the_same_after_they_were_json(facts: Facts) -> None:
    assert Facts.from_plain(msgspec.json.decode(msgspec.json.encode(asdict(facts)))) == facts

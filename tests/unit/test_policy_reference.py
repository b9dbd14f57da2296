"""docs/policy.md says what the code reads: it is made from it, and is not another."""

from __future__ import annotations

from pathlib import Path

from pageferry.policy import Match, Mode, Policy, Rule, RuleSpill
from pageferry.policy_reference import _HOSTS, reference
from pageferry_planner.model import HugePages, Strategy

WRITTEN = Path(__file__).parents[2] / "docs/policy.md"


def test_the_reference_is_that_of_the_code() -> None:
    assert WRITTEN.read_text() == reference(), "pageferry render reference > docs/policy.md"


def test_every_key_is_in_it_with_a_meaning() -> None:
    lines = reference().splitlines()
    for kind in (Match, Rule, RuleSpill):
        for key in {*kind.__struct_fields__} - {"match", "spill"}:
            assert any(line.startswith(f"| `{key}` |") and not line.endswith("|  |") for line in lines), key


def test_the_defaults_in_it_are_the_policys() -> None:
    words: dict[object, str] = {True: "`true`", False: "`false`", None: "no limit", (): "none"}
    words |= {
        Mode.MOVE: '`"move"`',
        Strategy.RELATIVE: '`"relative"`',
        "go on": '`"go on"`',
        HugePages.SPLIT: '`"split"`',
        "Comment": '`"Comment"`',
    }
    host = Policy()
    for key in set(_HOSTS) - {"reserve", "hot_seconds", "weights"}:
        assert _HOSTS[key] == words[getattr(host, key)], key
    assert (host.hot_seconds, host.weights) == (None, ())

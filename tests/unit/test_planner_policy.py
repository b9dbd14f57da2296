"""What must hold of the rules: which one decides, and that it says so."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from pageferry_planner.model import Backing, Verdict
from pageferry_planner.policy import Facts, Rules, decide, left_alone

LIBRARY = Backing("08:01", 7, "", "/usr/lib/libc.so.6")
ALL = Rules(stay=("/usr/lib/*",))
NONE = Rules(reference_count=False, xattrs=False)
EVERY_FACT = Facts(external_pids=(4, 5, 6), xattr_trusted="stay", xattr_user="stay")


def test_without_any_opinion_a_backing_moves() -> None:
    assert decide(LIBRARY, Facts(), Rules()) == Verdict(True, "job-only")


@pytest.mark.parametrize(
    ("facts", "rules", "verdict"),
    [
        (Facts(xattr_trusted="stay"), Rules(), Verdict(False, "xattr", "trusted.pageferry=stay")),
        (Facts(xattr_trusted="move"), Rules(), Verdict(True, "xattr", "trusted.pageferry=move")),
        (Facts(xattr_user="stay"), Rules(), Verdict(False, "xattr", "user.pageferry=stay")),
        (Facts(), ALL, Verdict(False, "library-list", "/usr/lib/*")),
        (Facts(external_pids=(4,)), Rules(), Verdict(False, "reference-count", "pid 4 outside the job")),
        (
            Facts(external_pids=(4, 5, 6)),
            Rules(),
            Verdict(False, "reference-count", "pid 4 and 2 more outside the job"),
        ),
        (Facts(silent_pids=(4,)), Rules(), Verdict(False, "reference-count", "pid 4 does not answer")),
        (Facts(silent_pids=(4, 5)), Rules(), Verdict(False, "reference-count", "pid 4 and 1 more do not answer")),
        (Facts((3,), silent_pids=(4,)), Rules(), Verdict(False, "reference-count", "pid 3 outside the job")),
        (Facts(silent_pids=(4,)), NONE, Verdict(True, "job-only")),
    ],
)
def test_each_rule_can_say_that_it_decided_and_what_it_saw(facts: Facts, rules: Rules, verdict: Verdict) -> None:
    assert decide(LIBRARY, facts, rules) == verdict


@pytest.mark.parametrize(
    ("trusted", "listed", "user", "outside"),
    list(product(("", "stay", "move", "nonsense"), (False, True), ("", "stay", "move"), (False, True))),
)
def test_the_first_rule_with_an_opinion_decides(trusted: str, listed: bool, user: str, outside: bool) -> None:
    said = {
        "trusted": {"stay": False, "move": True}.get(trusted),
        "listed": False if listed else None,
        "user": False if user == "stay" else None,
        "outside": False if outside else None,
    }
    opinions = [(rule, moves) for rule, moves in said.items() if moves is not None]
    rule, moves = opinions[0] if opinions else ("none", True)
    names = {"trusted": "xattr", "listed": "library-list", "user": "xattr", "outside": "reference-count"}
    facts = Facts((4,) if outside else (), trusted, user)
    verdict = decide(LIBRARY, facts, ALL if listed else Rules())
    assert (verdict.moves, verdict.rule) == (moves, names.get(rule, "job-only"))
    if names.get(rule) == "xattr":
        assert verdict.detail.startswith(rule)


def test_the_user_s_own_attribute_never_moves_what_another_rule_keeps() -> None:
    assert not decide(LIBRARY, Facts(external_pids=(4,), xattr_user="move"), Rules()).moves
    assert not decide(LIBRARY, Facts(xattr_user="move"), ALL).moves


def test_rules_that_are_switched_off_are_not_asked() -> None:
    assert decide(LIBRARY, EVERY_FACT, NONE) == Verdict(True, "job-only")
    assert decide(LIBRARY, EVERY_FACT, replace(NONE, reference_count=True)).rule == "reference-count"
    assert decide(LIBRARY, EVERY_FACT, replace(NONE, xattrs=True)).rule == "xattr"


def test_what_lies_on_a_file_system_that_is_left_alone_stays_whatever_else_is_said() -> None:
    facts = Facts(xattr_trusted="move", filesystem="/scratch")
    assert decide(LIBRARY, facts, Rules()) == Verdict(False, "filesystem", "/scratch")


def test_a_file_system_is_left_alone_by_its_type_or_by_where_it_is_mounted() -> None:
    rules = Rules(filesystems=("nfs*", "/scratch"))
    assert left_alone(("nfs4", "/home"), rules) == "nfs4"
    assert left_alone(("ext4", "/", "/scratch"), rules) == "/scratch"
    assert left_alone(("ext4", "/scratch2"), rules) == ""
    assert left_alone(("nfs4",), Rules()) == ""


@pytest.mark.parametrize(
    ("path", "glob", "matches"),
    [
        ("/usr/lib/libc.so.6", "/usr/lib/*", True),
        ("/usr/lib/libc.so.6 (deleted)", "*/libc.so.6", True),
        ("/USR/LIB/libc.so.6", "/usr/lib/*", False),
        ("/home/usr/lib/x", "/usr/lib/*", False),
        (r"/usr/lib/two\012lines", "/usr/lib/*", True),
        ("/usr/lib/carriage\rreturn", "/usr/lib/*return", True),
        ("/usr/lib/\udcff", "/usr/lib/?", True),
    ],
)
def test_globs_of_the_list_match_whole_paths(path: str, glob: str, matches: bool) -> None:
    verdict = decide(replace(LIBRARY, path=path), Facts(), Rules(stay=("/nothing", glob)))
    assert verdict == (Verdict(False, "library-list", glob) if matches else Verdict(True, "job-only"))

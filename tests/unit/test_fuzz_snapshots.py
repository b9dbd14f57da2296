"""Snapshot files, changed at random: each gives a plan whose account adds up, or is refused in one line."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import ferry, report
from pageferry.errors import PageferryError, UsageError
from pageferry.replay.read import read
from pageferry.replay.write import Recorded, lines
from pageferry_planner.model import Strategy, Target, Verdict, WhenFull
from pageferry_planner.policy import Rules
from support.mutations import NUMBERS, clean, fuzz, mutated
from support.plans import HUGE, anonymous, snapshot_of
from support.recordings import inputs_of, recordings

SECONDS = 120
"""Of a plan that has as many parts as a file may have."""

MOVES, STAYS = Verdict(True, "job-only"), Verdict(False, "library-list", "*.so")
SHARED = snapshot_of(
    [
        anonymous(0, 0, HUGE, 0),
        anonymous(1, 7, 40, 1),
        (0, 5000, 60, 0, 0, 0),
        (1, 9000, 30, 1, 0, 100),
        (1, 9100, 3, 3, 1, 0),
    ],
    homes=[frozenset({0}), frozenset({1, 2})],
    verdicts=[MOVES, STAYS],
    vmas=[(0, 5000, 100, 0, 0), (1, 9000, 130, 0, 0), (1, 9100, 3, 1, 0)],
)
TARGETS = [Target((2, 3), strategy, when_full=WhenFull.PARTIAL, spill=frozenset({1})) for strategy in Strategy]
TARGETS.append(Target((1,), Strategy.LOCAL, weights=((1, 3),), special=frozenset({3})))
RECORDED = [Recorded("job 7", replace(inputs_of(SHARED), request=ferry.Request(target, Rules()))) for target in TARGETS]
TEXTS = [b"".join(lines(recorded)) for recorded in RECORDED]
ALLOWED = tuple(
    number for number in NUMBERS if number.isdigit() and number.isascii() and 0 <= int(number[:20]) < 1 << 52
)
TABLES = ("vmas", "runs")
EXTREME = (-1, 0, 1, 2, 3, 511, 512, 513, 1 << 20, 1 << 31, 1 << 51, (1 << 52) - 1)


def check(path: Path, content: bytes) -> None:
    """Assert that a file is refused, or gives a plan that says of each page what becomes of it."""
    path.write_bytes(content)
    found = clean(lambda: read(path), [path], SECONDS)
    if not isinstance(found, Recorded):
        assert isinstance(found, UsageError)
        assert str(found).startswith(f"{path}:")
        return
    snapshot = found.inputs.snapshot
    plan = clean(lambda: ferry.plan_from(found.inputs), [], SECONDS)
    if isinstance(plan, PageferryError):
        return
    json.dumps(report.plan_json(snapshot, plan))
    told = plan.moves.pages() + plan.in_place + sum(plan.excluded.values()) + plan.no_room + plan.no_huge_page
    assert told == snapshot.runs.pages()
    assert set(plan.target.tolist()) <= {node.number for node in found.inputs.topology.nodes}
    assert len(plan.target) == len(plan.moves)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshots") / "file"


def test_the_files_that_are_changed_are_good(path: Path) -> None:
    """Or what follows would prove nothing."""
    for text in TEXTS:
        path.write_bytes(text)
        assert ferry.plan_from(read(path).inputs).moves.pages()


@given(mutated(TEXTS, [*NUMBERS, *ALLOWED * 4]))
@fuzz
def test_a_file_that_was_changed_gives_a_plan_or_is_refused(path: Path, content: bytes) -> None:
    check(path, content)


@given(recordings() | st.sampled_from(RECORDED), st.integers(0, 1 << 32))
@fuzz
def test_tables_with_other_numbers_give_a_plan_or_are_refused(path: Path, recorded: Recorded, seed: int) -> None:
    chance = random.Random(seed)
    objects: list[dict[str, Any]] = [json.loads(line) for line in lines(recorded)]
    tables = [line for line in objects if not line.keys().isdisjoint(TABLES) and "page_bytes" not in line]
    for _ in range(chance.choice((1, 1, 2, 5)) if tables else 0):
        table = chance.choice(tables)
        column = table[chance.choice([name for name in table if name not in TABLES])]
        column[chance.randrange(len(column))] = chance.choice(EXTREME)
    objects[0]["target"]["strategy"] = chance.choice([*Strategy]).value
    check(path, b"".join(json.dumps(line).encode() + b"\n" for line in objects))

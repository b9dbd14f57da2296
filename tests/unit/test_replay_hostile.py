"""What must hold of files that are no snapshots: one line says where what is wrong, and little is allocated for it."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pageferry.errors import UsageError
from pageferry.kernel.lists import format_list
from pageferry.replay import lines as form
from pageferry.replay.read import read
from pageferry.replay.write import Recorded, lines
from support.recordings import plan_text, recordings

on_files = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
LITTLE = 64 << 20

VALUES: tuple[Any, ...] = (-2, -1, 0, 1, 3, 511, 1 << 51, 1 << 62, 1 << 64, 10**40, 1.5, float("nan"), True, None, "")
VALUES += ("x" * 40_000, "0-1023", "3-1", "\ud800", "\udc80", [], [[]], [0] * 5000, {}, {"page": 1}, "pack", "spill")


def refused(path: Path, content: bytes | Iterable[bytes]) -> str:
    """Write a file and return what is said of it: that it is read, or one line that names it."""
    path.write_bytes(content if isinstance(content, bytes) else b"".join(content))
    try:
        plan_text(read(path).inputs)
    except UsageError as error:
        said = str(error)
        assert said.startswith(f"{path}:")
        assert len(said) < len(str(path)) + 400
        assert said.isprintable(), "whatever the file holds"
        assert error.exit_code == 2
        return said.removeprefix(f"{path}:")
    return "read"


@given(recordings(), st.randoms(use_true_random=False))
@on_files
def test_a_file_that_ends_early_is_not_whole(tmp_path: Path, recorded: Recorded, chance: random.Random) -> None:
    whole = b"".join(lines(recorded))
    cut = whole[: chance.randrange(len(whole))]
    line = cut.count(b"\n") + 1
    assert refused(tmp_path / "file", cut) == f"{line}: the file ends here, and is not whole"
    assert "more lines than the first one says" in refused(tmp_path / "file", whole + b"{}\n")


@given(recordings(), st.randoms(use_true_random=False))
@on_files
def test_bytes_that_were_changed_are_refused_or_make_another_plan(
    tmp_path: Path, recorded: Recorded, chance: random.Random
) -> None:
    damaged = bytearray(b"".join(lines(recorded)))
    for _ in range(chance.choice((1, 1, 2, 20))):
        damaged[chance.randrange(len(damaged))] = chance.choice((chance.randrange(256), *b'0123456789",[]{}\n'))
    refused(tmp_path / "file", bytes(damaged))


@given(recordings(), st.randoms(use_true_random=False))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_that_were_changed_are_refused_or_make_another_plan(
    tmp_path: Path, recorded: Recorded, chance: random.Random
) -> None:
    objects = [json.loads(line) for line in lines(recorded)]
    for _ in range(chance.choice((1, 1, 3))):
        at = chance.randrange(len(objects))
        _spoil(objects[at], chance)
    said = refused(tmp_path / "file", (json.dumps(line).encode() + b"\n" for line in objects))
    assert said == "read" or said[0].isdigit() or "its runs have more" in said


def _spoil(value: Any, chance: random.Random) -> None:
    """Change something in an object or a list, at any depth."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.7:
        _spoil(value[key], chance)
    elif isinstance(value, dict) and chance.random() < 0.1:
        del value[key]
    elif isinstance(value, dict) and chance.random() < 0.1:
        value["\x1b[2J\nkey"] = 1
    else:
        value[key] = chance.choice(VALUES)


TARGET = {
    "nodes": [1],
    "strategy": "local",
    "sources": None,
    "when_full": "partial",
    "spill": [],
    "order": "worth",
}
HEAD = {
    "pageferry_snapshot": 1,
    "pageferry": "0.1.0",
    "of": "job 7",
    "anonymised": False,
    "page_bytes": 4096,
    "asked_per_process": 0,
    "reserve_bytes": None,
    "target": TARGET,
    "rules": {"stay": [], "reference_count": True, "xattrs": True},
    "nodes": 2,
    "processes": 1,
    "backings": 1,
    "vmas": 0,
    "runs": 0,
}
SIZES = {"total_bytes": 1 << 40, "free_bytes": 1 << 40, "file_cache_bytes": 0, "kept_free_bytes": 0}
NODES = [{"node": 0, **SIZES, "distances": [10, 20]}, {"node": 1, **SIZES, "distances": [20, 10]}]
PROCESS = {"pid": 1, "start_time": 1, "name": "rank", "nodes": "0", "mems_allowed": "0-1"}
BACKING = {
    "device": "08:01",
    "inode": 1,
    "space": "",
    "path": "/a",
    "facts": {},
    "moves": True,
    "rule": "job-only",
    "detail": "",
}


def file_of(head: dict[str, Any], *more: dict[str, Any], start: Iterable[Any] = (*NODES, PROCESS, BACKING)) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in (HEAD | head, *start, *more))


def rows(kind: str, first: int, **columns: list[int]) -> dict[str, Any]:
    last = {"vmas": "private", "runs": "node"}[kind]
    count = max(map(len, columns.values()), default=1)
    zeros = {name: [0] * count for name in ("process", "page", "backing", "index", last)}
    return {kind: first} | zeros | {"count": [1] * count} | columns


def test_a_file_from_before_there_were_weights_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(file_of({}))
    assert read(tmp_path / "file").inputs.request.target.weights == ()
    (tmp_path / "file").write_bytes(file_of({"target": TARGET | {"weights": [[1, 255], [0, 1]]}}))
    assert read(tmp_path / "file").inputs.request.target.weights == ((1, 255), (0, 1))


def of_folios(**columns: int) -> dict[str, Any]:
    return rows("runs", 0) | {name: [value] for name, value in ({"folio": 0} | columns).items()}


def test_the_smallest_file_is_read(tmp_path: Path) -> None:
    """Or what follows would prove nothing."""
    assert refused(tmp_path / "file", file_of({})) == "read"
    table = [rows("vmas", 0, count=[512]), rows("runs", 0, count=[3], page=[7], index=[7])]
    assert refused(tmp_path / "file", file_of({"vmas": 1, "runs": 1}, *table)) == "read"
    assert refused(tmp_path / "file", file_of({"huge": None}, start=(*NODES, PROCESS, BACKING))) == "read"
    target = HEAD | {"target": HEAD["target"] | {"strategy": "relative"}}  # type: ignore[operator]
    for row in (of_folios(count=8, unit=4, kind=1), of_folios(count=3, unit=4, kind=2, folio=9)):
        content = file_of(target | {"vmas": 1, "runs": 1, "folios": True}, rows("vmas", 0), row)
        assert refused(tmp_path / "file", content) == "read"


@pytest.mark.parametrize("strategy", ["local", "relative", "interleave", "pack", "weighted"])
def test_a_file_that_no_mapping_shows_has_no_memory_that_may_move(tmp_path: Path, strategy: str) -> None:
    run, head = rows("runs", 0, count=[3]), {"runs": 1, "target": TARGET | {"strategy": strategy}}
    assert refused(tmp_path / "file", file_of(head, run)) == "6: backing: a file that no mapping shows"
    other = file_of(
        head | {"vmas": 1, "backings": 2}, rows("vmas", 0, backing=[1]), run, start=(*NODES, PROCESS, BACKING, BACKING)
    )
    assert refused(tmp_path / "file", other) == "8: backing: a file that no mapping shows"
    elsewhere = rows("vmas", 0, index=[50])
    assert refused(tmp_path / "file", file_of(head | {"vmas": 1}, elsewhere, run)) == "read", (
        "what is mapped of it may change"
    )
    stays = file_of(head, run, start=(*NODES, PROCESS, BACKING | {"moves": False}))
    assert refused(tmp_path / "file", stays) == "read", "it may be mapped outside the job alone"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "1: the file ends here, and is not whole"),
        (b"\n", "1: not a line of JSON"),
        (b"\x7fELF\x02\x01\n", "1: not a line of JSON"),
        (b"\x1f\x8b\xff\n", "1: not a line of JSON in ASCII"),
        (b"[" * 100_000 + b"\n", "1: not a line of JSON"),
        (b"9" * 5000 + b"\n", "1: not a line of JSON"),
        (b'{"a": 1}\n', "1: not a snapshot of pageferry's"),
        (b"[]\n", "1: not a snapshot of pageferry's"),
        (file_of({"pageferry_snapshot": 2}), "1: a snapshot of version 2; this pageferry reads version 1"),
        (file_of({"pageferry_snapshot": True}), "1: not a snapshot of pageferry's"),
        (file_of({"runs": 1 << 40}), "1: expected int <= 2097152 - at $.runs"),
        (file_of({"processes": 0}), "1: expected int >= 1 - at $.processes"),
        (file_of({"\x1b[2J": 1}), "1: object contains unknown field \\x1b[2J"),
        (file_of({"target": TARGET | {"weights": [[0, 0]]}}), "1: expected int >= 1 - at $.target.weights[0][1]"),
        (file_of({"target": TARGET | {"weights": [[0, 256]]}}), "1: expected int <= 255 - at $.target.weights[0][1]"),
        (file_of({"target": TARGET | {"weights": [[1024, 1]]}}), "1: expected int <= 1023 - at $.target.weights[0][0]"),
        (file_of({"target": TARGET | {"weights": [[0]]}}), "1: expected array of length 2"),
        (file_of({"nodes": 3}), "2: not one distance for each of the 3 nodes"),
        (file_of({}, start=[NODES[1], NODES[0]]), "3: nodes are not in ascending order"),
        (file_of({}, start=[*NODES, PROCESS | {"nodes": "1-0"}]), "4: reversed range 1-0 in the list '1-0'"),
        (file_of({}, start=[*NODES, PROCESS, BACKING | {"rule": "\x1b[2J"}]), "5: expected str matching regex"),
        (file_of({}, start=[*NODES, PROCESS, BACKING | {"rule": "a\n"}]), "5: expected str matching regex"),
        (file_of({}, start=[*NODES, PROCESS, BACKING | {"path": "\ud800"}]), "5: not a line of JSON"),
        (file_of({"runs": 1}, rows("runs", 1, count=[1])), "6: not the next rows, from 0 on, of 1"),
        (file_of({"runs": 1}, rows("runs", 0, count=[1, 1])), "6: not the next rows"),
        (file_of({"runs": 2}, rows("runs", 0, count=[1, 1], page=[0])), "6: not the next rows"),
        (file_of({"runs": 1}, rows("runs", 0, count=[0])), "6: count: a number that nothing has"),
        (file_of({"runs": 1}, rows("runs", 0, process=[1])), "6: process: a number that nothing has"),
        (file_of({"runs": 1}, rows("runs", 0, backing=[1])), "6: backing: a number that nothing has"),
        (file_of({"runs": 1}, rows("runs", 0, page=[-1])), "6: page: a number that nothing has"),
        (file_of({"runs": 1}, rows("runs", 0, node=[5])), "6: node: a number that no node has"),
        (file_of({"runs": 1}, rows("runs", 0, referenced=[2])), "6: referenced: more pages than there are"),
        (file_of({"runs": 1}, of_folios(count=4, unit=0, kind=1)), "6: unit: a number that nothing has"),
        (file_of({"runs": 1}, of_folios(count=4, unit=4, kind=4)), "6: kind: a number that nothing has"),
        (file_of({"runs": 1}, of_folios(count=4, unit=1, kind=1)), "6: unit, kind, folio: no folios"),
        (file_of({"runs": 1}, of_folios(count=4, unit=4, kind=0)), "6: unit, kind, folio: no folios"),
        (file_of({"runs": 1}, of_folios(count=5, unit=4, kind=1)), "6: unit, kind, folio: no folios"),
        (file_of({"runs": 1}, of_folios(count=4, unit=4, kind=2)), "6: unit, kind, folio: no folios"),
        (file_of({"runs": 1}, of_folios(count=4, unit=4, kind=3, folio=1)), "6: unit, kind, folio: no folios"),
        (file_of({"runs": 1}, rows("runs", 0, unit=[1])), "6: unit, kind, folio: no folios"),
        (file_of({"huge": 1}), "1: expected null"),
        (file_of({"vmas": 1}, rows("vmas", 0, private=[2])), "6: private: a number that nothing has"),
        (file_of({"vmas": 1}, rows("vmas", 0, page=[1 << 60])), "6: expected int <= 4503599627370495 - at $.page[0]"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    assert refused(tmp_path / "file", content).startswith(says)


def many_lists() -> bytes:
    process = [PROCESS | {"nodes": format_list(set(range(1024)) - {hole})} for hole in range(40)]
    return file_of({"processes": 5000}, start=[*NODES, *process])


def many_outsiders() -> bytes:
    backing = BACKING | {"facts": {"external_pids": [1] * 10_000}}
    return file_of({"backings": 100}, start=[*NODES, PROCESS, *[backing] * 6])


def long_line() -> bytes:
    return file_of({"of": "x" * (form.MOST_LINE_BYTES + 1)})


def huge_runs() -> bytes:
    count = [(1 << 52) - 1] * 4096
    runs = (rows("runs", first, count=count) for first in (0, 4096))
    return file_of({"vmas": 1, "runs": 8192}, rows("vmas", 0), *runs)


def runs_cut_by_all_mappings() -> bytes:
    vmas = [rows("vmas", first, index=list(range(first, first + 4096))) for first in range(0, 20_480, 4096)]
    return file_of({"vmas": 20_480, "runs": 4096}, *vmas, rows("runs", 0, count=[20_000] * 4096))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (many_lists, "too many different lists of nodes"),
        (many_outsiders, "too many processes outside the job"),
        (long_line, "too long for a snapshot"),
        (huge_runs, "its runs have more pages, or parts, than any host's memory"),
        (runs_cut_by_all_mappings, "its runs have more pages, or parts, than any host's memory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_would_grow_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, says: str
) -> None:
    """The greater limits are taken down to what a test has the time for."""
    monkeypatch.setattr(form, "MOST_MEMBERS", 1 << 15)
    monkeypatch.setattr(form, "MOST_OUTSIDERS", 1 << 15)
    made = content()
    tracemalloc.start()
    try:
        said = refused(tmp_path / "file", made)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said.endswith(says)
    assert peak < LITTLE


def test_what_never_ends_is_not_read_to_its_end() -> None:
    for device in ("/dev/zero", "/dev/urandom"):
        with pytest.raises(UsageError, match=rf"^{device}: "):
            read(Path(device))

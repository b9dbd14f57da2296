"""What must hold of snapshot files: what was written is read again, and gives the same plan to the byte."""

from __future__ import annotations

import dataclasses
import json
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pageferry import ferry, folios, targets
from pageferry.cli import main as cli
from pageferry.cpus.assign import Cpusets
from pageferry.errors import ConfigError, KernelError, PageferryError, UsageError
from pageferry.kernel import topology, weights
from pageferry.kernel.topology import Topology
from pageferry.replay import lines as form
from pageferry.replay.read import read
from pageferry.replay.write import Recorded, lines, save
from pageferry.snapshot import Taken
from pageferry_planner import model
from pageferry_planner.model import Strategy, WhenFull
from pageferry_planner.policy import Facts
from support.plans import HUGE, anonymous, snapshot_of
from support.recordings import inputs_of, plain, plan_text, recording_of, recordings

shared = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def again(recorded: Recorded, folder: Path) -> Recorded:
    save(folder / "snapshot", lines(recorded))
    return read(folder / "snapshot")


@given(recordings())
@shared
def test_what_was_written_is_read_again_and_gives_the_same_plan_to_the_byte(tmp_path: Path, recorded: Recorded) -> None:
    found = again(recorded, tmp_path)
    assert plain(found.inputs) == plain(recorded.inputs)
    assert plan_text(found.inputs) == plan_text(recorded.inputs)
    assert (found.of, found.anonymised) == (recorded.of, False)


@given(recordings())
@settings(max_examples=30)
def test_a_file_is_text_that_a_terminal_shows_as_it_stands(recorded: Recorded) -> None:
    for line in lines(recorded):
        assert line.endswith(b"\n")
        assert line[:-1].decode("ascii").isprintable()


def test_tables_of_more_rows_than_a_line_takes_are_read_as_they_were(tmp_path: Path) -> None:
    rows = [anonymous(0, 3 * number, 1 + number % 2, number % 4) for number in range(2 * form.PIECE_ROWS + 1)]
    found = again(recording_of(rows), tmp_path).inputs.snapshot.runs
    assert found.page.tolist() == [row[1] for row in rows]
    assert found.node.tolist() == [row[3] for row in rows]


def test_all_that_the_planner_takes_is_in_the_file() -> None:
    """A field that the planner is given one day must be written down, or plans are no longer the same."""
    written: dict[Any, type[form.Line]] = {
        model.Process: form.ProcessLine,
        model.Ranges: form.VmaRows,
        model.Runs: form.RunRows,
        model.Target: form.TargetPart,
    }
    for value, line in written.items():
        assert {field.name for field in dataclasses.fields(value)} == set(fields(line)) - {
            "vmas",
            "runs",
            "referenced",
        }
    of_backings = {*names(model.Backing), *names(model.Verdict), "facts"}
    assert of_backings == set(fields(form.BackingLine))
    assert set(names(model.Snapshot)) - {*fields(form.Head), *fields(form.RunRows)} == {"verdicts"}
    assert set(names(ferry.Request)) - set(fields(form.Head)) == {"limits", "hot_seconds", "compacts"}, (
        "a plan does not depend on these: on what was seen of use, not on how long it was looked at"
    )


def fields(line: type[msgspec.Struct]) -> tuple[str, ...]:
    return line.__struct_fields__


def names(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value)]


def test_an_older_file_names_no_special_nodes(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    head, *rest = lines(recording_of([anonymous(0, 0, 9, 0)], special=frozenset({3})))
    older = json.loads(head)
    assert older["target"].pop("special") == [3]
    save(path, [json.dumps(older).encode() + b"\n", *rest])
    assert read(path).inputs.request.target.special == frozenset()


def test_a_file_is_its_owners_alone_and_replaces_another_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    path.write_text("old")
    path.chmod(0o644)

    def fails() -> Any:
        yield b"new"
        raise UsageError("too much")

    with pytest.raises(UsageError):
        save(path, fails())
    assert path.read_text() == "old"
    save(path, [b"new"])
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path], "nothing is left half written"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PageferryError, match="/no/such/folder/snapshot: No such file or directory"):
        save(Path("/no/such/folder/snapshot"), [b""])
    with pytest.raises(UsageError, match="there, and not a file"):
        save(Path("/dev/null"), [b""])
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_job_that_is_too_much_for_a_file_is_refused() -> None:
    recorded = recording_of([anonymous(0, 3 * number, 1, 0) for number in range(1000)])
    with pytest.raises(UsageError, match="job 7 is too much for a snapshot: more than 0 MiB"):
        list(lines(recorded, most_bytes=10_000))
    many = np.zeros(form.MOST_ROWS + 1, np.int64)
    wide = dataclasses.replace(recorded.inputs.snapshot, runs=model.Runs.of_pages(many, many, many, many, many, many))
    with pytest.raises(UsageError, match=f"more than {form.MOST_ROWS}"):
        list(lines(Recorded("job 7", dataclasses.replace(recorded.inputs, snapshot=wide))))


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.commands, [str(word) for word in words], standalone_mode=False)


@contextmanager
def host_of(recorded: Recorded, kernels: tuple[tuple[int, int], ...] = ()) -> Any:
    """Have the commands find the job and the host that were recorded, and weights of its kernel."""
    made = recorded.inputs

    @contextmanager
    def take(*_: object) -> Any:
        yield Taken(made.snapshot, made.facts, (), None)  # type: ignore[arg-type]

    found = targets.Found(recorded.of, frozenset({1}), (), Cpusets())
    with ExitStack() as patches:
        for place, name, value in (
            (ferry, "take", take),
            (folios, "with_folios", lambda taken, _: taken),
            (ferry, "read_topology", lambda: made.topology),
            (topology, "read_topology", lambda: made.topology),
            (ferry, "read_kept_free", lambda: made.kept_free),
            (targets, "find", lambda *_: found),
            (weights, "read_weights", lambda: kernels),
        ):
            patches.enter_context(patch.object(place, name, value))
        yield


@given(recordings(), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_command_prints_for_a_file_what_it_printed_for_the_job(
    tmp_path: Path, recorded: Recorded, asked_then: bool
) -> None:
    """Whether the snapshot was told what was wanted, or the plan that is made from it."""
    request = recorded.inputs.request
    words: list[object] = ["--to", ",".join(map(str, request.target.nodes)), "--strategy", request.target.strategy]
    words += ["--when-full", request.target.when_full, "--spill-to", "0-3", "--order", request.target.order]
    words += ["--from", ",".join(map(str, sorted(request.target.sources)))] if request.target.sources else []
    if request.target.strategy is Strategy.WEIGHTED and request.target.weights:
        words += ["--weights", ",".join(f"{node}:{weight}" for node, weight in request.target.weights)]
    words += ["--reserve", request.reserve_bytes] if request.reserve_bytes is not None else []
    path = tmp_path / "snapshot"
    with host_of(recorded):
        then = run("plan", "7", "--json", *words)
        assert run("snapshot", "7", "--out", path, *(words if asked_then else ())).return_value == 0
    now = run("plan", "--from-snapshot", path, "--json", *(() if asked_then else words))
    assert now.stdout == then.stdout
    assert now.return_value == then.return_value
    assert repr(now.exception) == repr(then.exception)


def test_what_is_asked_anew_goes_before_what_was_asked_then(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    save(path, lines(recording_of([anonymous(0, 0, 1000, 0)], when_full=WhenFull.REFUSE)))

    def target(*words: object) -> dict[str, Any]:
        said = run("plan", "--from-snapshot", path, "--json", *words)
        assert said.exception is None
        plan: dict[str, Any] = json.loads(said.stdout)
        return {"to": plan["moves"][0]["to"] if plan["moves"] else None, "code": said.return_value}

    assert target() == {"to": 2, "code": 0}
    assert target("--to", "3") == {"to": 3, "code": 0}
    assert target("--reserve", "1T") == {"to": None, "code": 1}
    assert target("--reserve", "1T", "--when-full", "partial") == {"to": None, "code": 0}
    assert target("--from", "1", "--to", "0,1", "--strategy", "pack") == {"to": None, "code": 0}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--strategy", "weighted", "--weights", "1:3,0:2"], ((0, 2), (1, 3))),
        (["--strategy", "weighted"], ((0, 7), (1, 9))),
        ([], ()),
    ],
    ids=["those of the command line", "the kernel's where none are given", "nobody's where none are asked for"],
)
def test_weights_of_the_command_line_go_before_the_kernels_and_are_in_the_file(
    tmp_path: Path, words: list[str], found: tuple[tuple[int, int], ...]
) -> None:
    with host_of(recording_of([anonymous(0, 0, 9, 0)]), kernels=((0, 7), (1, 9))):
        assert run("snapshot", "7", "--out", tmp_path / "file", *words).return_value == 0
    assert read(tmp_path / "file").inputs.request.target.weights == found


def test_weights_are_asked_anew_of_a_file_or_are_those_of_then(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    save(path, lines(recording_of([anonymous(0, 0, 12 * HUGE, 3)], nodes=(0, 1), weights=((0, 3),))))

    def dealt(*words: str) -> dict[int, int]:
        plan = json.loads(run("plan", "--from-snapshot", path, "--json", *words).stdout)
        return {move["to"]: move["bytes"] // (4096 * HUGE) for move in plan["moves"]}

    assert dealt("--strategy", "weighted") == {0: 9, 1: 3}
    assert dealt("--strategy", "weighted", "--weights", "0-1:9") == {0: 6, 1: 6}
    assert dealt("--strategy", "weighted", "--weights", "1:5", "--to", "1,2") == {1: 10, 2: 2}
    said = run("plan", "--from-snapshot", path, "--weights", "1:5")
    assert isinstance(said.exception, UsageError), "they are for one strategy alone"
    save(path, lines(recording_of([anonymous(0, 0, 12 * HUGE, 3)], nodes=(0, 1), strategy=Strategy.WEIGHTED)))
    assert dealt("--weights", "1:5") == {0: 2, 1: 10}


DDR_AND_HBM = [anonymous(0, 0, 1000, 0), anonymous(0, 5000, 600, 2)]
"""A job of a host whose nodes 2 and 3 are HBM; 600 pages were bound there."""


def hbm_host(
    *, cpus: bool = True, full: Sequence[int] = (), distances: Mapping[int, Mapping[int, int]] = MappingProxyType({})
) -> Recorded:
    recorded = recording_of(DDR_AND_HBM, nodes=(1,))
    nodes = [
        dataclasses.replace(
            node,
            cpus=frozenset({node.number} if cpus and node.number < 2 else ()),
            free_bytes=0 if node.number in full else node.free_bytes,
            distances=distances.get(node.number, node.distances),
        )
        for node in recorded.inputs.topology.nodes
    ]
    return dataclasses.replace(recorded, inputs=dataclasses.replace(recorded.inputs, topology=Topology(tuple(nodes))))


def site_of(folder: Path, special: str) -> Path:
    path = folder / "site.toml"
    path.write_text(f'[nodes]\nspecial = "{special}"\n')
    return path


def pages(said: Any) -> tuple[int, int]:
    """Return how many pages a plan moves, and how many stay because their node is special."""
    assert said.exception is None
    plan = json.loads(said.stdout)
    return plan["move_bytes"] // 4096, plan["special_bytes"] // 4096


@pytest.mark.parametrize(
    ("special", "words", "moves", "stays"),
    [
        ("2-3", (), 1000, 600),
        ("cpuless", (), 1000, 600),
        ("2-3,252-255", (), 1000, 600),
        ("3", (), 1600, 0),
        ("", (), 1600, 0),
        ("2-3", ("--from", "0,2"), 1600, 0),
        ("2-3", ("--to", "3"), 1000, 600),
        ("2-3", ("--to", "2"), 1000, 0),
        ("2-3", ("--to", "0,1", "--strategy", "interleave"), 512 - 24, 600),
    ],
)
def test_what_a_site_calls_special_holds_for_the_plan_of_a_job_and_of_its_file(
    tmp_path: Path, special: str, words: tuple[str, ...], moves: int, stays: int
) -> None:
    path, recorded, site = tmp_path / "snapshot", hbm_host(), site_of(tmp_path, special)
    to = words if "--to" in words else ("--to", "1", *words)
    with host_of(recorded):
        assert pages(run("plan", "7", "--json", "--config", site, *to)) == (moves, stays)
        assert run("snapshot", "7", "--config", site, "--out", path).return_value == 0
    assert pages(run("plan", "--from-snapshot", path, "--json", *to)) == (moves, stays), "as the file says"
    save(path, lines(recorded))
    assert pages(run("plan", "--from-snapshot", path, "--json", "--config", site, *words)) == (moves, stays)


def test_the_settings_of_this_host_are_not_those_of_a_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, site = tmp_path / "snapshot", site_of(tmp_path, "2-3")
    save(path, lines(hbm_host()))
    monkeypatch.setenv("PAGEFERRY_CONFIG", str(site))
    assert pages(run("plan", "--from-snapshot", path, "--json")) == (1600, 0)
    with host_of(hbm_host()):
        assert pages(run("plan", "7", "--to", "1", "--json")) == (1000, 600)


def test_an_older_file_does_not_say_which_nodes_have_no_cpus(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    save(path, lines(hbm_host(cpus=False)))
    said = run("plan", "--from-snapshot", path, "--config", site_of(tmp_path, "cpuless"))
    assert isinstance(said.exception, UsageError)
    assert pages(run("plan", "--from-snapshot", path, "--json", "--config", site_of(tmp_path, "2"))) == (1000, 600)


@pytest.mark.parametrize("special", ["2-3", "cpuless"])
def test_nothing_spills_to_a_special_node_that_is_not_named(tmp_path: Path, special: str) -> None:
    path, site = tmp_path / "snapshot", site_of(tmp_path, special)
    recorded = hbm_host(full=(0, 1), distances={1: {0: 90, 1: 10, 2: 20, 3: 40}})
    save(path, lines(recorded))
    words = ("--to", "1", "--when-full", "spill", "--from", "0,1", "--json")
    for more, moved in (((), 1000), (("--config", site), 0), (("--config", site, "--spill-to", "2"), 1000)):
        assert pages(run("plan", "--from-snapshot", path, *words, *more))[0] == moved
        with host_of(recorded):
            assert pages(run("plan", "7", *words, *more))[0] == moved


def test_a_plan_is_refused_where_the_settings_have_faults(tmp_path: Path) -> None:
    site = site_of(tmp_path, "2-")
    with host_of(hbm_host()):
        said = run("plan", "7", "--to", "1", "--config", site)
    assert isinstance(said.exception, ConfigError)
    assert str(said.exception).startswith(f"{site}:2: nodes.special")


def test_rules_are_asked_anew_of_the_files_that_the_snapshot_names(tmp_path: Path) -> None:
    snapshot = snapshot_of(
        [(0, 0, 9, 0, 0, 0), (0, 600, 5, 0, 1, 0)], verdicts=[model.Verdict(False, "reference-count", "pid 9")] * 2
    )
    made = inputs_of(snapshot)
    made = dataclasses.replace(made, facts=(Facts((9,)), Facts((9, 10), xattr_user="stay")))
    path = tmp_path / "snapshot"
    save(path, lines(Recorded("job 7", made)))

    def stays(*words: object) -> dict[str, int]:
        plan = json.loads(run("plan", "--from-snapshot", path, "--json", *words).stdout)
        return {rule: size // 4096 for rule, size in plan["excluded_bytes"].items()}

    assert stays() == {"reference-count": 14}
    assert stays("--no-reference-count") == {"xattr": 5}
    assert stays("--no-reference-count", "--no-xattrs") == {}
    assert stays("--no-xattrs", "--stay", "/data/0") == {"library-list": 9, "reference-count": 5}

    assert run("snapshot", "--from-snapshot", path, "--anonymise", "--out", path).return_value == 0
    assert stays() == {"reference-count": 14}
    said = run("plan", "--from-snapshot", path, "--stay", "/data/*")
    assert isinstance(said.exception, UsageError)
    assert str(said.exception) == "--stay: the file's names were replaced, so its rules cannot be asked anew"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plan", "--to", "1", "7", "--from-snapshot", "FILE"], "name one target"),
        (["plan", "--to", "1", "--pid", "7", "--from-snapshot", "FILE"], "name one target"),
        (["snapshot", "--cgroup", "x", "--from-snapshot", "FILE"], "name one target"),
        (["plan", "--from-snapshot", "FILE"], "--to: name the target nodes; the snapshot was made without"),
        (["plan", "--from-snapshot", "FILE", "--to", "9"], r"no such node on this host: 9 \(nodes 0-3\)"),
        (["plan", "--from-snapshot", "/no/such\nfile"], r"/no/such\\nfile: No such file or directory"),
        (["plan", "--from-snapshot", "/"], "/: not a regular file"),
        (["snapshot"], "name one target"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(tmp_path: Path, words: list[str], says: str) -> None:
    path = tmp_path / "snapshot"
    save(path, lines(recording_of([anonymous(0, 0, 9, 0)], nodes=())))
    said = run(*(str(path) if word == "FILE" else word for word in words))
    assert isinstance(said.exception, UsageError)
    with pytest.raises(UsageError, match=says):
        raise said.exception


def test_a_node_outside_the_cpuset_is_refused_as_it_was_on_the_host(tmp_path: Path) -> None:
    recorded = recording_of([anonymous(0, 0, 9, 0)], nodes=(3,))
    snapshot = recorded.inputs.snapshot
    confined = dataclasses.replace(snapshot.processes[0], mems_allowed=frozenset({0, 1}))
    snapshot = dataclasses.replace(snapshot, processes=(confined,))
    path = tmp_path / "snapshot"
    save(path, lines(Recorded("job 7", dataclasses.replace(recorded.inputs, snapshot=snapshot))))
    said = run("plan", "--from-snapshot", path)
    assert isinstance(said.exception, KernelError)
    assert "node 3 is outside the job's cpuset (mems 0-1)" in str(said.exception)


NOTHING_OF_THE_HOST = """
import os, sys
def watch(event, arguments):
    for argument in arguments:
        if isinstance(argument, (str, bytes)) and os.fsdecode(argument).startswith(("/proc", "/sys")):
            os.write(2, f"{event}: {argument}".encode())
            os._exit(99)
sys.addaudithook(watch)
from pageferry.cli.main import main
try:
    main()
finally:
    loaded = {name.split(".")[0] for name in sys.modules}
    print(*sorted(loaded & {"numpy", "psutil", "rich", "jinja2"}), file=sys.stderr)
"""


def test_a_plan_from_a_file_looks_at_nothing_of_this_host_and_needs_numpy_alone(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    save(path, lines(recording_of([anonymous(0, 0, 1000, 0)])))
    command = [sys.executable, "-c", NOTHING_OF_THE_HOST, "plan", "--from-snapshot", str(path), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["move_bytes"] == 1000 * 4096
    assert said.stderr.split() == ["numpy"]

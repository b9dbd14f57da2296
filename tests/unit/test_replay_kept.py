"""What must hold of the snapshots that errands keep: few, private, named in the log, and never in a move's way."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pageferry import ferry
from pageferry.agent import chores
from pageferry.agent.chronicle import Chronicle
from pageferry.applied import Destination
from pageferry.config import Settings
from pageferry.errors import KernelError
from pageferry.history.store import Store
from pageferry.pbs import serve
from pageferry.pbs.case import Case
from pageferry.pbs.event import Kind, PbsJob
from pageferry.policy import Policy
from pageferry.replay import kept
from pageferry.replay.read import read
from pageferry.replay.write import Recorded
from support.plans import anonymous
from support.recordings import plan_text, recording_of


@pytest.fixture
def recorded() -> Recorded:
    return recording_of([anonymous(0, 0, 1000, 0)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_what_is_kept_gives_the_plan_and_the_log_names_it(
    folder: Path, recorded: Recorded, log: pytest.LogCaptureFixture
) -> None:
    kept.keep(folder, "12[3].server/../x", recorded.inputs)
    (path,) = folder.iterdir()
    assert log.messages == [f"job 12[3].server/../x: snapshot: {path}"]
    assert plan_text(read(path).inputs) == plan_text(recorded.inputs)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "-job-12_3_.server_.._x-" in path.name


def old(folder: Path, number: int, size: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"old-{number}"
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, ns=(number, number))
    return path


def test_the_oldest_give_way_when_there_are_too_many(folder: Path, recorded: Recorded) -> None:
    files = [old(folder, number, 10) for number in range(kept.MOST_FILES + 3)]
    kept.keep(folder, 7, recorded.inputs)
    left = set(folder.iterdir())
    assert len(left) == kept.MOST_FILES
    assert left >= set(files[4:])


def test_the_oldest_give_way_when_they_are_too_big(folder: Path, recorded: Recorded) -> None:
    files = [old(folder, number, kept.MOST_BYTES // 4) for number in range(5)]
    kept.keep(folder, 7, recorded.inputs)
    assert set(folder.iterdir()) >= set(files[2:])
    assert not any(file.exists() for file in files[:2])


@pytest.mark.parametrize("obstacle", ["a file in its place", "no space", "a fault of ours"])
def test_what_cannot_be_kept_is_said_and_nothing_else(
    folder: Path,
    recorded: Recorded,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: str,
) -> None:
    if obstacle == "a file in its place":
        folder.write_text("")
    elif obstacle == "no space":
        monkeypatch.setattr("os.fdopen", lambda *_: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115
    else:
        monkeypatch.setattr("pageferry.replay.write.lines", lambda *_: [None])
    kept.keep(folder, 7, recorded.inputs)
    (said,) = log.messages
    assert said.startswith("job 7: no snapshot: ")
    assert not folder.is_dir() or list(folder.iterdir()) == [], "nothing is left half written"


def test_a_job_that_is_too_much_for_its_share_is_not_kept(
    folder: Path, recorded: Recorded, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 4000)
    kept.keep(folder, 7, recorded.inputs)
    assert log.messages == ["job 7: no snapshot: job 7 is too much for a snapshot: more than 0 MiB of text"]
    assert list(folder.iterdir()) == []


class Stand:
    """Stands in for the ferry: it says what a plan was made from, as `move` does, and then fails."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def move(self, _pids: object, _request: object, _progress: object, seen: Any) -> Any:
        seen(self.recorded.inputs)
        raise KernelError("the move failed")


@pytest.mark.parametrize("level", ["debug", "info"])
def test_an_errand_keeps_what_its_plan_was_made_from_also_if_it_fails(
    tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    caplog.set_level(level.upper())
    monkeypatch.setattr(ferry, "move", Stand(recorded).move)
    monkeypatch.setattr(Case, "pids", lambda _case: frozenset({1}))
    chronicle = Chronicle(Store(tmp_path / "history.sqlite3"))
    words = (Destination((0,)), Policy(), chronicle.snapshots)
    with pytest.raises(KernelError, match="the move failed"):
        chores.move(4711, *words)(lambda _message: None)
    case = Case(Kind.RESIZE, PbsJob("12.server"), frozenset(), Settings(), snapshots=chronicle.snapshots)
    with pytest.raises(KernelError, match="the move failed"):
        serve._move(case, Policy(), Destination((0,)), lambda: None, None)
    folder = tmp_path / "snapshots"
    names = [read(path).of for path in sorted(folder.iterdir(), key=str)] if folder.exists() else []
    assert sorted(names) == (["job 12.server", "job 4711"] if level == "debug" else [])

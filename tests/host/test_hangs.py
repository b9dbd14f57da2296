"""What never answers costs nobody else anything: a process that holds its mmap_lock, a dead file system."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guest import rights
from guest.ranks import READ, SHARED, Job, job
from pageferry import ferry
from pageferry.agent.errand import Result, Say, begin
from pageferry.errors import Silent
from pageferry.schedulers.pbs import claimed_pids
from pageferry_planner.model import ANONYMOUS, Snapshot, Verdict
from pageferry_planner.policy import Rules
from support.fuse import BYTES, fuse, stop
from support.stuck import frozen, stuck, wait_uninterruptible

SECONDS = 5.0
PAGES = 64


@pytest.fixture(params=["unit", "root"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rights a look has: those of the agent's unit, or all."""
    monkeypatch.setenv(rights.VARIABLE, request.param)


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[int]:
    """A process that does not answer."""
    with stuck(tmp_path) as pid:
        yield pid


def survey(pids: tuple[int, ...]) -> Snapshot:
    return rights.call(ferry.survey, pids, Rules())[0]


@pytest.mark.usefixtures("whose")
def test_a_job_with_a_process_that_does_not_answer_ends_with_a_reason_in_time(silent: int) -> None:
    with job() as made:
        began = time.monotonic()
        with pytest.raises(Silent) as raised:
            survey((*made.pids, silent))
        assert time.monotonic() - began < SECONDS
    assert f"process {silent} " in str(raised.value)
    assert raised.value.exit_code == 4


def test_the_command_ends_as_well_although_its_read_still_waits(silent: int) -> None:
    words = [sys.executable, "-m", "pageferry", "status", "--pid", str(silent)]
    answer = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert answer.returncode == 4
    assert answer.stderr.startswith(f"pageferry: process {silent} ")


@pytest.mark.usefixtures("whose")
def test_an_innocent_job_is_looked_at_in_time_and_what_the_other_may_map_stays(silent: int) -> None:
    with job() as made:
        made.first.map(PAGES).write()
        path = made.first.memfd(PAGES)
        made.first.map(PAGES, path, flags=SHARED).write()
        began = time.monotonic()
        found = survey(made.pids)
        assert time.monotonic() - began < SECONDS
    assert {process.pid for process in found.processes} == set(made.pids)
    (memory,) = (number for number, backing in enumerate(found.backings) if backing.path.startswith("/memfd:job"))
    assert found.verdicts[memory] == Verdict(False, "reference-count", f"pid {silent} does not answer")
    of_nobody_else = found.runs.count[found.movable() & (found.runs.backing == ANONYMOUS)]
    assert of_nobody_else.sum() > PAGES


def test_the_processes_of_a_pbs_job_are_found_beside_one_that_does_not_answer(silent: int) -> None:
    began = time.monotonic()
    assert silent not in claimed_pids("4711.server")
    assert time.monotonic() - began < SECONDS


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[tuple[Job, Path]]:
    """A job that has mapped a file of an overlay; the FUSE file system that the file is on no longer answers."""
    lower, top = tmp_path / "lower", tmp_path / "overlay"
    for path in (lower, tmp_path / "layers", top):
        path.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(fuse(lower))
        layers = tmp_path / "layers"
        subprocess.run(["mount", "-t", "tmpfs", "layers", str(layers)], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(layers)], check=True)
        for name in ("upper", "work"):
            (layers / name).mkdir()
        options = f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(top)], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(top)], check=True)
        made = stack.enter_context(job())
        made.first.map(BYTES // 4096, top / "file", prot=READ, flags=SHARED).read(0, 7)
        stop(server)
        stack.callback(server.kill)
        yield made, top / "file"


@pytest.mark.usefixtures("whose")
def test_a_dead_file_system_below_an_overlay_costs_the_look_a_few_seconds_and_no_page(dead: tuple[Job, Path]) -> None:
    made, _ = dead
    began = time.monotonic()
    found = survey(made.pids)
    assert time.monotonic() - began < SECONDS
    (file,) = (number for number, backing in enumerate(found.backings) if backing.path.endswith("/overlay/file"))
    assert found.runs.count[found.runs.backing == file].sum() >= 7


def test_a_worker_of_the_agent_that_cannot_end_has_given_its_result(tmp_path: Path) -> None:
    with frozen(tmp_path) as place:

        def work(_say: Say) -> dict[str, bool]:
            thread = threading.Thread(target=(place / "file").touch, daemon=True)
            thread.start()
            assert thread.native_id is not None
            wait_uninterruptible(thread.native_id)
            return {"done": True}

        errand = begin(work)
        while errand.result is None:
            assert select.select([errand.fd], [], [], SECONDS)[0]
            assert list(errand.read()) == []
        assert errand.result == Result({"done": True}, None)
        assert not errand.reap()
    os.waitpid(errand.pid, 0)

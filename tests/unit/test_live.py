"""What must hold of one frame of the live view: what matters is in it, whatever the terminal's size and the names."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from pageferry.cli.live import frame
from pageferry.overview import HappenedNow, JobNow, NodeNow, Overview

GIB = 1 << 30
NODES = (NodeNow(0, True, 64 * GIB, 16 * GIB), NodeNow(1, False, 64 * GIB, 60 * GIB))
MOVE = {"event": "suspend", "nodes": [2, 3], "seconds": 1.5, "done_bytes": 1 * GIB, "of_bytes": 4 * GIB}


def job(name: str, **what: Any) -> JobNow:
    usual: dict[str, Any] = {
        "id": name,
        "scheduler": "slurm",
        "state": "runs",
        "stage": None,
        "cpus": "0-3",
        "cpu_nodes": (0,),
        "home_nodes": (0,),
        "bytes": {0: 8 * GIB},
        "remote_bytes": 0,
        "move": None,
    }
    return JobNow(**(usual | what))


def shown(
    *jobs: JobNow,
    agent: str | None = None,
    events: tuple[HappenedNow, ...] = (),
    height: int | None = None,
    nodes: tuple[NodeNow, ...] = NODES,
) -> str:
    overview = Overview(1_700_000_000.0, "node01", agent, nodes, jobs, events)
    console = Console(file=io.StringIO(), width=160, highlight=False, markup=False, emoji=False, force_terminal=False)
    console.print(frame(overview, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, first: str) -> list[str]:
    """Return the cells of the line that begins with a word."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return re.split(r"\s{2,}", line.strip())


def test_nodes_have_what_is_free_and_in_all() -> None:
    text = shown(job("7"))
    assert text.startswith("node01, ")
    assert row(text, "0")[:4] == ["0", "yes", "64 GiB", "16 GiB"]
    assert row(text, "1")[:4] == ["1", "-", "64 GiB", "60 GiB"]
    assert row(text, "0")[4].count("█") > row(text, "1")[4].count("█")


def test_special_nodes_and_what_is_on_them_are_shown_where_there_are_any() -> None:
    assert "special" not in shown(job("7", special_bytes=0))
    nodes = (NODES[0], replace(NODES[1], special=True))
    text = shown(job("7", special_bytes=3 * GIB), job("8", special_bytes=None), nodes=nodes)
    assert row(text, "1")[1] == "special"
    assert row(text, "7")[6:8] == ["0 KiB", "3 GiB"]
    assert row(text, "8")[6:8] == ["0 KiB", "-"]


def test_a_job_has_its_state_places_memory_and_move() -> None:
    text = shown(
        job("7", state="held", stage="moves", cpus="8-15", cpu_nodes=(2, 3), remote_bytes=GIB, move=MOVE),
        job("8"),
        job("9", cpus=None, cpu_nodes=(), home_nodes=(), bytes={}, remote_bytes=None, state=None),
    )
    assert row(text, "7") == [
        *("7", "held", "8-15", "2-3", "0", "8 GiB", "1 GiB"),
        "moves to 2-3 (suspend, 2 s) 1 GiB of 4 GiB, 25 %",
    ]
    assert row(text, "8") == ["8", "runs", "0-3", "0", "0", "8 GiB", "0 KiB"]
    assert row(text, "9") == ["9", "-", "any", "any", "-", "-", "-"]


@pytest.mark.parametrize("of_bytes", [None, 0])
def test_a_move_whose_progress_nobody_knows_is_shown_without(of_bytes: int | None) -> None:
    text = shown(job("7", stage="asks Slurm", move=MOVE | {"done_bytes": of_bytes, "of_bytes": of_bytes, "nodes": []}))
    assert row(text, "7")[-1] == "asks Slurm (suspend, 2 s)"


def test_what_there_is_to_see_comes_first_and_what_has_no_room_is_counted() -> None:
    jobs = [job(str(number)) for number in range(100, 150)]
    jobs += [job("200", state="waits"), job("201", remote_bytes=GIB), job("202", move=MOVE)]
    text = shown(*jobs, height=30)
    lines = text.splitlines()
    assert len(lines) <= 30
    (heading,) = [number for number, line in enumerate(lines) if line.startswith("job ")]
    assert [line.split()[0] for line in lines[heading + 1 : heading + 5]] == ["200", "202", "201", "100"]
    (more,) = [line.strip() for line in lines if line.startswith("and ")]
    shown_jobs = [line for line in lines if re.match(r"\d{3} ", line)]
    assert more == f"and {len(jobs) - len(shown_jobs)} more"
    everything = shown(*jobs)
    assert all(row(everything, one.id) for one in jobs)


def test_without_jobs_or_agent_it_says_so() -> None:
    text = shown(agent="the agent does not run: nobody listens at /run/pageferry/agent.sock")
    assert "no batch job to be seen on this host" in text
    assert "without an agent's word: the agent does not run" in text


def test_what_happened_is_told_with_its_time_and_job() -> None:
    text = shown(
        events=(HappenedNow(1_700_000_000.0, "7", "held: Slurm suspends it"), HappenedNow(1.0, None, "started"))
    )
    assert re.search(r"^\d\d:\d\d:\d\d +7 +held: Slurm suspends it *$", text, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d +- +started *$", text, re.MULTILINE)


def test_hostile_names_and_texts_are_shown_as_they_stand() -> None:
    evil = "\x1b[2J[red]x[/red]:smile:\n"
    text = shown(job(evil), agent=evil, events=(HappenedNow(0.0, evil, evil),))
    assert "\x1b" not in text
    assert text.count(r"\x1b[2J[red]x[/red]:smile:\n") == 4

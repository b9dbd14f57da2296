"""The command line on several nodes, as an operator types it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guest.nursery import run as pageferry
from guest.ranks import BIND, SHARED, Job, job
from guest.vm.layouts import Layout
from guest.witness import census, queried_nodes, vmstat

CGROUP = Path("/sys/fs/cgroup/pageferry-command")


def answer(*words: object, code: int = 0) -> Any:
    said = pageferry(*words, "--json")
    assert said.returncode == code, said.stderr
    return json.loads(said.stdout)


def pids(made: Job) -> list[str]:
    return [f"--pid={pid}" for pid in made.pids]


def shared_by_three(made: Job) -> None:
    """64 pages that three ranks share, all of them touched by all, and 8 private ones of each."""
    memory = made.first.map(64, flags=SHARED | 0x20).write()
    for rank in made.fork(2):
        memory.of(rank).read()
        rank.map(8).write()


def test_a_plan_says_what_a_move_then_does_and_a_second_move_finds_nothing_to_do() -> None:
    with job(node=0) as made:
        shared_by_three(made)
        before = census(made.pids)
        plan = answer("plan", *pids(made), "--to", "2")
        assert plan["requested_pages"] == plan["move_bytes"] // 4096
        assert plan["total_bytes"] == before.total * 4096
        assert {(move["from"], move["to"]) for move in plan["moves"]} == {(0, 2)}
        shared = [move for move in plan["moves"] if move["what"].startswith("/dev/zero")]
        assert [move["bytes"] for move in shared] == [64 * 4096], "one carrier, each page once"
        assert plan["asked_per_process_pages"] >= plan["requested_pages"] + 2 * 64

        moved = answer("move", *pids(made), "--to", "2")
        assert moved["complete"]
        assert "seconds_stopped" not in moved
        assert moved["pages"]["moved"] == moved["requested_pages"] == plan["requested_pages"]
        assert sum(moved["pages"].values()) == moved["total_pages"] == before.total

        again = pageferry("move", *pids(made), "--to", "2")
        assert again.returncode == 0, again.stderr
        assert "moved" not in again.stdout
        assert "requested 0 pages" in again.stdout


def test_what_moved_ahead_is_moved_once_and_the_rest_while_the_job_stands_still() -> None:
    with job(node=0) as made:
        shared_by_three(made)
        before, counters = census(made.pids), vmstat()
        moved = answer("move", *pids(made), "--to", "2", "--precopy")
        assert moved["complete"]
        assert moved["total_pages"] == before.total
        assert moved["requested_pages"] == moved["pages"]["moved"] == (vmstat() - counters)["pgmigrate_success"]
        assert moved["precopied_bytes"] == moved["moved_bytes"] > 0
        assert moved["seconds_stopped"] > 0


@pytest.mark.parametrize("anonymise", [(), ("--anonymise",)])
def test_a_plan_from_a_snapshot_is_the_plan_for_the_job(tmp_path: Path, anonymise: tuple[str, ...]) -> None:
    path = tmp_path / "snapshot"
    with job(node=0) as made:
        shared_by_three(made)
        plan = answer("plan", *pids(made), "--to", "2")
        said = pageferry("snapshot", *pids(made), "--to", "2", "--out", path, *anonymise)
        assert said.returncode == 0, said.stderr
    again = answer("plan", "--from-snapshot", path)
    for numbers in (plan, again):
        for node in numbers["nodes"].values():
            del node["room_bytes"]  # what is free changes from one look to the next
        for row in numbers["stays"]:
            del row["detail"]  # and so do the processes outside
        for row in (*numbers["moves"], *numbers["stays"]) if anonymise else ():
            del row["what"]
    assert again == plan


def test_status_shows_what_is_away_from_its_cpus() -> None:
    with job(node=0) as made:
        made.first.map(256).write(node=3)
        (status,) = answer("status", *pids(made))
        assert status["cpu_nodes"] == [0]
        assert status["remote_bytes"] >= 256 * 4096
        assert "away from its CPUs" in pageferry("status", *pids(made)).stdout


def test_a_policy_that_stays_behind_is_named_by_the_outcome_and_by_status_also_once_the_job_has_grown() -> None:
    with job(node=0) as made:
        made.fork()
        made.first.ask("set_mempolicy", BIND, [0])
        made.first.map(256).write()
        (before,) = answer("status", *pids(made))
        moved = answer("move", *pids(made), "--to", "2")
        grown = made.first.map(256).write()
        (after,) = answer("status", *pids(made))
        told = [[(row["pid"], row["mode"], row["nodes"], row["stays_behind"]) for row in answer["policies"]]
                for answer in (before, moved, after)]  # fmt: skip
        assert told == [[(made.first.pid, "bind", [0], stays)] for stays in (False, True, True)]
        assert set(queried_nodes(made.first.pid, [grown.address])) == {0}, "what it allocates goes where it came from"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--to", "9"], 2, "no such node on this host: 9 (nodes 0-3)"),
        (["--to", "1", "--cpus", "99"], 2, "no such CPU on this host: 99"),
        (["--to", "1", "--cpus", ""], 2, "--cpus: names nothing"),
    ],
)
def test_what_this_host_does_not_have_is_named_and_nothing_moves(words: list[str], code: int, says: str) -> None:
    with job(node=0) as made:
        before = census(made.pids)
        said = pageferry("move", *pids(made), *words)
        assert said.returncode == code
        assert said.stderr.startswith("pageferry: ")
        assert says in said.stderr
        assert census(made.pids).on(0) == before.on(0)


@pytest.mark.long
def test_another_users_processes_are_refused_and_what_is_missing_is_named() -> None:
    with job(node=0) as made:
        for verb in ("plan", "move"):
            said = pageferry(verb, *pids(made), "--to", "1", user=65534)
            assert said.returncode == 4
            *gaps, error = said.stderr.splitlines()
            assert "Permission denied" in error
            assert all(gap.startswith("pageferry: without CAP_") for gap in gaps)
            assert len(gaps) == 6


AS_A_USER = """
import ctypes, json, mmap, os, signal, sys
from pageferry import ferry, report, strays, targets, toml_file
from pageferry.cpus import assign
from pageferry.cli import main as cli
from pageferry.gate import gate
import psutil
os.sched_setaffinity(0, {0})
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1)  # a program that a user starts may be read by that user
memory = mmap.mmap(-1, 256 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
child = os.fork()
if not child:
    memory[:] = bytes([7]) * len(memory)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
sys.argv = ["pageferry", "move", f"--pid={child}", "--to", "1", "--no-reference-count", "--json"]
try:
    cli.main()
finally:
    os.kill(child, signal.SIGKILL)
"""


def test_a_user_without_capabilities_moves_what_only_their_process_has() -> None:
    # From its start on: what its modules take must not lie on the target by chance.
    command = ["taskset", "-c", "0", sys.executable, "-c", AS_A_USER]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert made.returncode == 1, made.stderr
    assert "without CAP_SYS_NICE: pages that several processes map are not moved" in made.stderr
    tally = json.loads(made.stdout)
    assert tally["pages"]["moved"] >= 256
    assert tally["pages"]["denied"] > 0, "what parent and child share"
    assert sum(tally["pages"].values()) == tally["total_pages"]


@pytest.mark.every_machine
def test_a_target_without_room_is_refused_with_code_1() -> None:
    with job(node=0) as made:
        before = census(made.pids)
        said = pageferry("move", *pids(made), "--to", "3", "--reserve", "1T")
        assert said.returncode == 1
        assert "refused: node 3 lacks" in said.stdout
        assert census(made.pids).on(3) == before.on(3)


def test_a_budget_that_is_used_up_is_code_1_and_says_what_was_not_reached() -> None:
    with job(node=0) as made:
        made.first.map(64).write()
        tally = answer("move", *pids(made), "--to", "1", "--budget", "0", code=1)
        assert tally["pages"]["not_reached"] >= 64
        assert tally["pages"]["moved"] == 0


def test_a_frozen_move_leaves_the_group_running_and_gives_it_its_cpus() -> None:
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpuset")
    CGROUP.mkdir()
    try:
        with job(node=0) as made:
            (CGROUP / "cpuset.cpus").write_text("0-1")
            (CGROUP / "cgroup.procs").write_text(str(made.first.pid))
            made.first.map(64).write()
            tally = answer("move", "--cgroup", CGROUP.name, "--to", "2", "--cpus", "4-5", "--freeze")
            assert tally["complete"]
            assert (CGROUP / "cpuset.cpus").read_text().strip() == "4-5"
            assert os.sched_getaffinity(made.first.pid) == {4, 5}
            assert (CGROUP / "cgroup.freeze").read_text().strip() == "0"
            made.first.ask("seal")  # it runs
    finally:
        CGROUP.rmdir()


@pytest.mark.long
def test_ctrl_c_ends_in_a_report_and_an_exit_code() -> None:
    with job(node=0) as made:
        made.first.map(40000).write()
        command = [sys.executable, "-m", "pageferry", "move", *pids(made), "--to", "1", "--workers", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            process.stderr.readline()  # a first batch is done
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        assert "Traceback" not in err
        assert "total" in out
        assert process.returncode in {0, 1}
        assert ("not_reached" in out) == (process.returncode == 1)
        made.first.ask("seal")


@pytest.mark.cpuless
def test_a_node_without_cpus_takes_memory(layout: Layout) -> None:
    with job(node=0) as made:
        shared_by_three(made)
        tally = answer("move", *pids(made), "--to", "3")
        assert tally["complete"]
        assert census(made.pids).not_on(3) <= tally["pages"]["excluded"]
        (status,) = answer("status", *pids(made))
        assert status["nodes"]["3"]["movable_bytes"] == status["remote_bytes"] >= tally["moved_bytes"]


@pytest.mark.cpuless
def test_memory_on_a_special_node_stays_until_a_move_names_its_node(layout: Layout, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[nodes]\nspecial = "cpuless"\n')
    with job(node=0) as made:
        shared_by_three(made)
        made.first.map(100).write(node=3)
        words = (*pids(made), "--to", "1", "--config", site)
        assert answer("plan", *words)["special_bytes"] == 100 * 4096
        tally = answer("move", *words)
        assert tally["complete"]
        assert tally["pages"]["moved"] > 0
        (status,) = answer("status", *pids(made), "--config", site)
        assert status["special_bytes"] == status["nodes"]["3"]["movable_bytes"] == 100 * 4096
        assert status["nodes"]["3"]["special"]
        tally = answer("move", *words, "--from", "3")
        assert (tally["complete"], tally["pages"]["moved"]) == (True, 100)
        (status,) = answer("status", *pids(made), "--config", site)
        assert (status["special_bytes"], status["nodes"]["3"]["movable_bytes"]) == (0, 0)


def test_doctor_finds_slurm_and_nothing_that_fails(slurm: object) -> None:
    said = pageferry("doctor")
    assert said.returncode == 0, said.stdout
    for line in ("NUMA nodes: 4 with memory (0-3)", "ProctrackType: proctrack/cgroup", "ConstrainCores: yes"):
        assert f"ok    {line}" in said.stdout

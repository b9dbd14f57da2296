"""What must hold of an agent's holds on this kernel: whoever is killed, whatever is full, no job is left held.

Jobs are groups of our own making, named as Slurm names them, with processes that answer as long as they are not held.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from pageferry.errors import KernelError
from pageferry.gate import guardian, holdable, holds
from pageferry.gate.gate import Gate, release_all
from pageferry.kernel import cgroup, freezer, private_cgroup
from support.children import child
from support.slurm_groups import SECONDS, SlurmJob, slurm_job

KILLS = int(os.environ.get("PAGEFERRY_KILLS", "20"))
"""How often agents are killed at random; a soak test asks for more."""


@pytest.fixture(params=["v2", "v1"])
def job(request: pytest.FixtureRequest) -> Iterator[SlurmJob]:
    with slurm_job(request.param) as made:
        yield made


@pytest.fixture
def job_v2() -> Iterator[SlurmJob]:
    with slurm_job("v2") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "holds"


@pytest.fixture
def gate(folder: Path) -> Iterator[Gate]:
    made = Gate(folder)
    yield made
    made.close()


@contextmanager
def opened(folder: Path, pulse_seconds: float = 15.0) -> Iterator[Gate]:
    made = Gate(folder, pulse_seconds)
    try:
        yield made
    finally:
        made.close()


def wait_frozen(gate: Gate, job: SlurmJob) -> None:
    hold = gate.held()[job.number]
    for group in (*hold.groups, *([hold.private] if hold.private else [])):
        assert freezer.wait_frozen(group.path, True, SECONDS)
    assert gate.frozen(job.number)


def wait_readable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(SECONDS * 1000)


def is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def guardian_of(pid: int) -> psutil.Process:
    (found,) = [
        process
        for process in psutil.Process(pid).children()
        if process.status() != psutil.STATUS_ZOMBIE and guardian.__file__ in process.cmdline()
    ]
    return found


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != guardian.LOG)


def unified() -> Path:
    mount = cgroup.read_hierarchies().unified
    assert mount is not None
    return mount


def test_a_held_job_stands_still_and_answers_when_released(gate: Gate, job: SlurmJob, folder: Path) -> None:
    origins = {process.pid: private_cgroup.group_of(process.pid, unified()) for process in job.processes}
    hold = gate.hold(job.number)
    wait_frozen(gate, job)
    assert job.is_still()
    assert gate.held() == {job.number: hold}
    assert len(hold.groups) + len(hold.moved) == len(job.tasks)
    assert records(folder) == [f"{job.number}.hold"]
    gate.release(job.number)
    assert job.answers()
    assert gate.held() == {}
    assert records(folder) == []
    assert not gate.frozen(job.number)
    assert {process.pid: private_cgroup.group_of(process.pid, unified()) for process in job.processes} == origins
    assert not private_cgroup.group_path(unified(), job.number).exists()
    gate.release(job.number)


def test_only_the_groups_of_tasks_are_frozen(gate: Gate, job_v2: SlurmJob) -> None:
    gate.hold(job_v2.number)
    asked = [path for path in cgroup.walk(job_v2.group) if (path / "cgroup.freeze").read_text() == "1\n"]
    assert sorted(asked) == sorted(job_v2.tasks)


def test_a_freeze_that_is_not_ours_is_not_undone(gate: Gate, job_v2: SlurmJob) -> None:
    freezer.freeze(job_v2.tasks[0])
    hold = gate.hold(job_v2.number)
    assert [group.path for group in hold.groups] == [job_v2.tasks[1]]
    gate.release(job_v2.number)
    assert (job_v2.tasks[0] / "cgroup.freeze").read_text() == "1\n"
    freezer.thaw(job_v2.tasks[0])
    assert job_v2.answers()


@pytest.mark.parametrize("slurm_thaws_first", [True, False])
def test_slurms_own_freeze_and_ours_do_not_undo_each_other(gate: Gate, job: SlurmJob, slurm_thaws_first: bool) -> None:
    gate.hold(job.number)
    slurms = [task.parent if job.version == "v2" else task for task in job.tasks]
    name, on, off = ("cgroup.freeze", "1", "0") if job.version == "v2" else ("freezer.state", "FROZEN", "THAWED")
    for group in slurms:
        (group / name).write_text(on)
    if slurm_thaws_first:
        for group in slurms:
            (group / name).write_text(off)
        wait_frozen(gate, job)
        assert job.is_still()
        gate.release(job.number)
    else:
        gate.release(job.number)
        assert job.is_still()
        for group in slurms:
            (group / name).write_text(off)
    assert job.answers()


def test_a_job_that_the_version_1_freezer_has_frozen_is_held_and_known_to_stand(gate: Gate) -> None:
    with slurm_job("v1") as job:
        for task in job.tasks:
            (task / "freezer.state").write_text("FROZEN")
        gate.hold(job.number)
        while any(freezer.read_freezer_state(task).state != "FROZEN" for task in job.tasks):
            pass
        assert gate.frozen(job.number)
        for task in job.tasks:
            (task / "freezer.state").write_text("THAWED")
        wait_frozen(gate, job)
        assert job.is_still()
        gate.release(job.number)
        assert job.answers()


def test_what_appears_during_a_hold_is_held_once(gate: Gate, job: SlurmJob) -> None:
    gate.hold(job.number)
    assert gate.extend(job.number) == 0
    with ExitStack() as stack:
        task = job.start_task(stack, "step_7")
        assert gate.extend(job.number) == 1
        wait_frozen(gate, job)
        assert gate.extend(job.number) == 0
        gate.release(job.number)
        assert gate.extend(job.number) == 0
        if job.version == "v2":
            assert freezer.wait_frozen(task, False, SECONDS)
    assert job.answers()


def test_an_empty_group_that_is_held_holds_what_is_put_there(gate: Gate, job_v2: SlurmJob) -> None:
    gate.hold(job_v2.number)
    task = job_v2.group / "step_8/user/task_0"
    task.mkdir(parents=True)
    assert gate.extend(job_v2.number) == 1
    with child() as process:
        (task / "cgroup.procs").write_text(str(process.pid))
        assert freezer.wait_frozen(task, True, SECONDS)
        gate.release(job_v2.number)
        assert freezer.wait_frozen(task, False, SECONDS)
        process.kill()
        process.wait()


def test_children_of_moved_processes_come_back_with_them(gate: Gate) -> None:
    program = "import os, sys; sys.stdin.readline(); os.fork(); print(1, flush=True); sys.stdin.read()"
    with slurm_job("v1", tasks=1) as job, child(sys.executable, "-c", program) as parent:
        (job.tasks[0] / "cgroup.procs").write_text(str(parent.pid))
        gate.hold(job.number)
        hold = gate.held()[job.number]
        assert hold.private is not None
        freezer.thaw(hold.private.path)
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        parent.stdout.readline()
        assert gate.extend(job.number) == 0, "a child of a held process is held with it"
        gate.release(job.number)
        assert not hold.private.path.exists()


def test_a_job_that_ends_while_it_is_held_is_no_hindrance(gate: Gate, job: SlurmJob, folder: Path) -> None:
    gate.hold(job.number)
    for process, task in zip(job.processes, job.tasks, strict=True):
        process.kill()
        process.wait()
        for group in (task, *([task.parent, task.parent.parent] if job.version == "v2" else [])):
            group.rmdir()
    assert gate.frozen(job.number)
    assert gate.extend(job.number) == 0
    gate.release(job.number)
    assert records(folder) == []


def test_a_job_that_is_not_here_has_a_hold_without_groups(gate: Gate, folder: Path) -> None:
    assert gate.hold(999).groups == ()
    gate.release(999)
    assert records(folder) == []


def test_a_job_that_has_an_earlier_ones_id_is_left_alone(folder: Path) -> None:
    with slurm_job("v2") as first:
        number, earlier = first.number, [holdable.identified(task) for task in first.tasks]
    with slurm_job("v2", number=number) as second:
        assert [group.path for group in earlier] == list(second.tasks)
        for task in second.tasks:
            freezer.freeze(task)
        holds.make_folder(folder)
        holds.write(folder, holds.Hold(number, 1.0, 1.0, tuple(earlier)))
        with opened(folder) as gate:
            assert gate.recover() == ()
        holds.write(folder, holds.Hold(number, 1.0, 1.0, tuple(earlier)))
        assert release_all(folder) == ()
        assert all((task / "cgroup.freeze").read_text() == "1\n" for task in second.tasks)
        assert records(folder) == []


# ---- who may die

AGENT = """
import os, signal, sys
from pathlib import Path
from pageferry.gate import gate
from pageferry.gate import guardian
from pageferry.gate import holdable
from pageferry.gate import holds
from pageferry.gate.guard import Guard

folder, job, where, number = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
pulse_seconds = float(sys.argv[5])

def end_at(place, name, after):
    plain = getattr(place, name)
    def ending(*words):
        if not after:
            os.kill(os.getpid(), number)
        result = plain(*words)
        if after:
            os.kill(os.getpid(), number)
        return result
    setattr(place, name, ending)

agent = gate.Gate(folder, pulse_seconds)
match where:
    case "recorded": end_at(holds, "write", True)
    case "told": end_at(Guard, "hold", True)
    case "partly set": end_at(holdable, "freeze", True)
    case "set": end_at(holdable, "set_hold", True)
try:
    agent.hold(job)
except Exception as error:
    print(type(error).__name__, error, flush=True)
match where:
    case "half undone": end_at(guardian, "undo", False)
    case "undone": end_at(guardian, "undo", True)
    case "released": end_at(guardian, "release", True)
    case "working":
        if not os.fork():
            print("held", flush=True)
            signal.pause()
if where in {"half undone", "undone", "released"}:
    agent.release(job)
if where == "random":
    print("begun", flush=True)
    while True:
        agent.hold(job)
        agent.extend(job)
        agent.release(job)
if where != "working":
    print("held" if agent.held() else "not held", flush=True)
sys.stdin.readline()
print(len(agent.reguard()), len(agent.held()), flush=True)
sys.stdin.readline()
"""


@contextmanager
def agent(
    folder: Path, job: SlurmJob, where: str = "", number: int = signal.SIGKILL, pulse_seconds: float = 15.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Start an agent that holds the job, and sends itself a signal at one place on its way."""
    words = [str(folder), str(job.number), where, str(int(number)), str(pulse_seconds)]
    with child(sys.executable, "-c", AGENT, *words) as process:
        yield process


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    return line(process)


def assert_nothing_is_left(folder: Path, job: SlurmJob, released: bool) -> None:
    """A new agent waits until the last one's guardian is done; then the job runs on, and it is said why."""
    with opened(folder) as after:
        assert after.recover() == ()
        assert job.answers()
        assert records(folder) == []
        said = after.news()
        assert len(said) == released
        assert all(f"died: released job {job.number}" in text for text in said)
        assert after.news() == ()
    if job.version == "v1":
        assert all(private_cgroup.group_of(process.pid, unified()) == unified() for process in job.processes)
        assert not private_cgroup.group_path(unified(), job.number).exists()


PLACES = ["recorded", "told", "partly set", "set", "held", "half undone", "undone", "released"]


@pytest.mark.parametrize("where", PLACES)
def test_an_agent_that_is_killed_anywhere_on_its_way_leaves_the_job_running(
    folder: Path, job: SlurmJob, where: str
) -> None:
    with agent(folder, job, where) as process:
        if where == "held":
            assert line(process) == b"held"
            assert job.is_still()
            process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
    # Before the guardian is told there is only a record, which the next agent drops or takes over.
    if where == "recorded":
        with opened(folder) as after:
            for hold in after.recover():
                after.release(hold.job)
        assert records(folder) == []
    assert_nothing_is_left(folder, job, released=where != "recorded")


def test_an_agent_that_is_killed_at_any_moment_leaves_the_job_running(folder: Path, job: SlurmJob) -> None:
    moments = random.Random(job.number)
    for _ in range(KILLS):
        with agent(folder, job, "random") as process:
            assert line(process) == b"begun"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, 0.05))
            process.kill()
            process.wait()
        with opened(folder) as after:
            left = after.recover()
            assert job.answers(), "what was only recorded, and not told to the guardian yet, is not set"
            for hold in left:
                after.release(hold.job)
            after.news()
        assert records(folder) == []


def test_a_forked_child_of_a_dead_agent_does_not_keep_the_job_held(folder: Path, job: SlurmJob) -> None:
    with agent(folder, job, "working") as process:
        assert line(process) == b"held"
        (worker,) = [one for one in psutil.Process(process.pid).children() if guardian.__file__ not in one.cmdline()]
        process.kill()
        process.wait()
        assert_nothing_is_left(folder, job, released=True)
        assert worker.is_running()
        worker.kill()


def test_an_agent_that_hangs_is_released_and_knows_it_afterwards(folder: Path, job: SlurmJob) -> None:
    with agent(folder, job, pulse_seconds=0.5) as process:
        assert line(process) == b"held"
        guard = guardian_of(process.pid)
        process.send_signal(signal.SIGSTOP)
        assert job.answers()
        wait_ended(guard)
        process.send_signal(signal.SIGCONT)
        assert ask(process) == b"1 0"
    with opened(folder) as after:
        assert after.recover() == ()
        assert "has not been heard for 0.5 s: released job" in after.news()[0]


@pytest.mark.parametrize("where", ["recorded", "told", "partly set", "set"])
def test_an_agent_that_hangs_before_its_hold_is_set_does_not_set_it_unguarded(
    folder: Path, job: SlurmJob, where: str
) -> None:
    with agent(folder, job, where, signal.SIGSTOP, pulse_seconds=0.5) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        guard = guardian_of(process.pid)
        if where == "recorded":  # the guardian has nothing yet: it is as if the agent had only been slow
            process.send_signal(signal.SIGCONT)
            assert line(process) == b"held"
            return
        wait_ended(guard)
        # "partly set" and "told" stop it once more for each group, and each round.
        while not is_readable_line(process):
            process.send_signal(signal.SIGCONT)
        said = line(process)
        assert said.startswith(b"KernelError")
        assert line(process) == b"not held"
        assert job.answers()
        assert records(folder) == []


def is_readable_line(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    return bool(poll.poll(10))


def wait_ended(process: psutil.Process) -> None:
    fd = os.pidfd_open(process.pid)
    wait_readable(fd)
    os.close(fd)


def test_pulses_keep_a_hold(folder: Path, job: SlurmJob) -> None:
    with opened(folder, pulse_seconds=0.3) as gate:
        gate.hold(job.number)
        for _ in range(20):
            gate.pulse()
            assert not select.select([gate.guardian_fd()], [], [], 0.05)[0]
        assert gate.frozen(job.number)
        wait_readable(gate.guardian_fd())
        assert job.answers()


def test_without_holds_no_pulse_is_needed(folder: Path) -> None:
    with opened(folder, pulse_seconds=0.05) as gate:
        assert not select.select([gate.guardian_fd()], [], [], 0.3)[0]


def test_a_guardian_that_is_killed_is_replaced_and_the_hold_is_kept(gate: Gate, job: SlurmJob, folder: Path) -> None:
    gate.hold(job.number)
    wait_frozen(gate, job)
    fd = gate.guardian_fd()
    assert not is_readable(fd)
    first = guardian_of(os.getpid())
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGABRT)
    assert gate.extend(job.number) == 0, "it outlives what a service is stopped with"
    assert not is_readable(fd)
    first.kill()
    wait_readable(fd)
    assert gate.frozen(job.number)
    assert gate.reguard() == ()
    assert gate.guardian_fd() == fd
    assert not is_readable(fd)
    assert gate.frozen(job.number)
    guardian_of(os.getpid()).kill()
    wait_readable(fd)
    gate.release(job.number)
    assert job.answers()
    gate.hold(job.number)
    assert guardian_of(os.getpid()) != first, "a hold needs a guardian, and gets it"
    assert gate.reguard() == ()


def test_the_successor_of_a_killed_guardian_releases_what_the_first_was_told(folder: Path, job: SlurmJob) -> None:
    with agent(folder, job) as process:
        assert line(process) == b"held"
        guard = guardian_of(process.pid)
        guard.kill()
        wait_ended(guard)
        assert ask(process) == b"0 1"
        assert job.is_still()
        process.kill()
        process.wait()
        assert_nothing_is_left(folder, job, released=True)


def test_a_guardian_that_hangs_is_replaced_and_nothing_is_held_without_it(
    gate: Gate, job: SlurmJob, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pageferry.gate.guard.ANSWER_SECONDS", 0.2)
    hung = guardian_of(os.getpid())
    hung.suspend()
    with pytest.raises(KernelError, match="the guardian does not answer"):
        gate.hold(job.number)
    assert job.answers()
    assert records(folder) == []
    wait_readable(gate.guardian_fd())
    monkeypatch.undo()
    gate.hold(job.number)
    wait_frozen(gate, job)


def both_killed(folder: Path, job: SlurmJob) -> None:
    with agent(folder, job) as process:
        assert line(process) == b"held"
        guard = guardian_of(process.pid)
        process.send_signal(signal.SIGSTOP)
        guard.kill()
        process.kill()
        process.wait()
    assert job.is_still()


def test_if_both_are_killed_the_next_agent_finds_the_hold_and_can_keep_or_release_it(
    folder: Path, job: SlurmJob
) -> None:
    both_killed(folder, job)
    with opened(folder) as gate:
        (hold,) = gate.recover()
        assert gate.held() == {job.number: hold}
        wait_frozen(gate, job)
        assert gate.extend(job.number) == 0
        assert 0 < hold.since < holds.Hold(1, 1e12, 0).since
        assert job.is_still()
        gate.release(job.number)
        assert job.answers()
        assert gate.news() == ()
    assert_nothing_is_left(folder, job, released=False)


def test_if_both_are_killed_and_there_is_no_agent_all_can_be_released(folder: Path, job: SlurmJob) -> None:
    both_killed(folder, job)
    assert release_all(folder) == (job.number,)
    assert job.answers()
    assert records(folder) == []
    assert release_all(folder) == ()


def test_an_extend_sets_what_was_recorded_and_never_set(folder: Path, job: SlurmJob) -> None:
    both_killed(folder, job)
    with opened(folder) as gate:
        (hold,) = gate.recover()
        for group in (*hold.groups, *([hold.private] if hold.private else [])):
            freezer.thaw(group.path)
        assert job.answers()
        assert gate.extend(job.number) == 0
        wait_frozen(gate, job)


# ---- what may be damaged, full or in use


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_hold_that_cannot_be_recorded_is_not_set(folder: Path, job: SlurmJob) -> None:
    with small_disk(folder), opened(folder) as gate:
        fill(folder)
        with pytest.raises(KernelError, match=f"the hold of job {job.number} cannot be recorded: .*No space left"):
            gate.hold(job.number)
        assert gate.held() == {}
        assert records(folder) == ["filler"]
        assert job.answers()
        assert not private_cgroup.group_path(unified(), job.number).exists()


def test_a_full_disk_is_no_hindrance_to_a_release(folder: Path, job: SlurmJob) -> None:
    with small_disk(folder):
        with opened(folder) as gate, ExitStack() as stack:
            gate.hold(job.number)
            fill(folder)
            job.start_task(stack, "step_9")
            with pytest.raises(KernelError, match="cannot be recorded"):
                gate.extend(job.number)
            wait_frozen(gate, job)
            gate.release(job.number)
            assert job.answers()
            assert records(folder) == ["filler"]
        (folder / "filler").unlink()
        with agent(folder, job) as process:
            assert line(process) == b"held"
            fill(folder)
            process.kill()
            process.wait()
        with opened(folder) as after:
            assert after.recover() == ()
        assert job.answers()


def test_a_folder_that_has_become_read_only_is_no_hindrance_to_a_release(folder: Path, job: SlurmJob) -> None:
    with small_disk(folder), opened(folder) as gate:
        gate.hold(job.number)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        gate.release(job.number)
        assert job.answers()
        with pytest.raises(KernelError, match="Read-only file system"):
            gate.hold(job.number)
        assert job.answers()


def test_a_folder_where_others_may_write_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(KernelError, match="others than user 0 may write there"):
        Gate(folder)
    folder.chmod(0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(KernelError, match="others than user 0 may write there"):
        Gate(folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match="file/holds: Not a directory"):
        Gate(tmp_path / "file/holds")


def test_a_second_agent_is_refused(gate: Gate, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pageferry.gate.guard.READY_SECONDS", 0.5)
    with pytest.raises(KernelError, match="is there another agent"):
        Gate(folder)
    assert gate.reguard() == ()


def test_what_can_be_read_of_a_damaged_record_is_released(folder: Path, job: SlurmJob) -> None:
    both_killed(folder, job)
    record = folder / f"{job.number}.hold"
    record.write_bytes(b"\xff\x00[[[[" + record.read_bytes()[2:] + b'["group", "/\xf0')
    with opened(folder) as gate:
        assert gate.recover() == ()
        assert job.answers()
        (said,) = gate.news()
        assert f"released job {job.number}" in said
        assert "damaged in 3 lines" in said
    assert records(folder) == []


def test_a_group_of_ours_is_released_when_nothing_of_its_record_can_be_read(folder: Path) -> None:
    with slurm_job("v1") as job:
        both_killed(folder, job)
        (folder / f"{job.number}.hold").write_bytes(b"")
        with opened(folder) as gate:
            assert gate.recover() == ()
            assert job.answers()
            assert not private_cgroup.group_path(unified(), job.number).exists()


HOSTILE = [
    b"",
    b"[" * 100_000,
    b'["group", "relative", 1]\n["group", "/\\u0000", 1]\n',
    b'["group", "/etc", 99999999999999999999999]\n["stopped", -1, 0]\n["stopped", 99999999999, 0]\n',
    b'["stopped", 1, true]\n["moved", 1, 2]\n[]\n{}\n[["group"]]\nnull\n"group"\n',
    json.dumps(["group", "/" + "x" * 5000, 1]).encode() + b"\n",
    b'["private", "/etc", 1]\n["job", 7, 1.0, 1.0]\n',
    b'["job", 8, 1.0, 1.0]\n',
    b'["job", 7, 1.0, 1.0]\n' + json.dumps(["group", "/" + "x" * 5000, 1]).encode() + b"\n",
    b'["job", 7, NaN, 1.0]\n',
    os.urandom(4096),
]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_hostile_record_harms_nobody_and_is_removed(folder: Path, content: bytes) -> None:
    holds.make_folder(folder)
    (folder / "7.hold").write_bytes(content)
    (folder / "-1.hold").write_bytes(content)
    (folder / "12345678901234567890.hold").write_bytes(content)
    with opened(folder) as gate:
        assert gate.recover() == ()
        assert all(text.isprintable() for text in gate.news())
    assert records(folder) == ["-1.hold", "12345678901234567890.hold"]


def test_records_that_are_no_files_are_not_followed(folder: Path, job_v2: SlurmJob) -> None:
    both_killed(folder, job_v2)
    (folder / f"{job_v2.number}.hold").rename(folder / "elsewhere")
    (folder / f"{job_v2.number}.hold").symlink_to(folder / "elsewhere")
    os.mkfifo(folder / "8.hold")
    (folder / "9.hold").mkdir()
    with opened(folder) as gate:
        assert gate.recover() == ()
    assert job_v2.is_still()
    (folder / "elsewhere").rename(folder / f"{job_v2.number}.hold")
    assert job_v2.number in release_all(folder)
    assert job_v2.answers()

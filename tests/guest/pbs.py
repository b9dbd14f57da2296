"""Jobs as OpenPBS has them on a host, without PBS: groups as pbs_cgroups lays them, tasks, signals, and MoM's hook.

The hook is the shipped file, run by the system's Python with a stand-in for `pbs` (support/pbs_stand_in.py), in the
order in which MoM runs it: SIGSTOP, postsuspend; preresume, SIGCONT.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guest.ranks import cpus_of
from guest.steady import PROGRAM, Steady
from guest.vm.jobs import CGROUP, Slurm, wait_until

ROOT = Path(__file__).parents[2]
HOOK = ROOT / "hooks/pbs/pageferry_hook.py"
MOM = ROOT / "tests/support/pbs_stand_in.py"
RECORDED: Mapping[str, Any] = json.loads((ROOT / "tests/fixtures/openpbs.json").read_text())
CONTROLLERS = ("cpuset", "memory", "cpuacct")
SERVICE = "pbs_jobs.service/jobid"


@dataclass
class PbsJob:
    """A job of steady ranks in groups of its own; `config` is the hook's."""

    id: str
    cgroup: str
    folder: Path
    config: Mapping[str, Any]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    comment: str = ""
    exec_vnode: str = ""
    queue: str = ""

    @property
    def steady(self) -> Steady:
        """What its ranks have noted."""
        return Steady(Slurm(self.cgroup, (), self.folder), 0, self.folder, len(self.processes))

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [process.pid for process in self.processes]

    def groups(self) -> list[Path]:
        """Its cgroups: one, or one for each controller of version 1."""
        tops = [CGROUP] if self.cgroup == "v2" else [CGROUP / controller for controller in CONTROLLERS]
        return [top / SERVICE / self.id for top in tops]

    def confine(self, *nodes: int, mems: str = "0-3") -> None:
        """Give it the CPUs of some nodes, as pbs_cgroups does; without mem_fences it may have memory anywhere."""
        cpus = ",".join(str(cpu) for node in nodes for cpu in cpus_of(node))
        (self.groups()[0] / "cpuset.cpus").write_text(cpus)
        (self.groups()[0] / "cpuset.mems").write_text(mems)

    def suspend(self) -> dict[str, Any]:
        """Stop it and run the hook, as MoM does."""
        self.signal(signal.SIGSTOP)
        return self.hook("execjob_postsuspend")

    def resume(self) -> tuple[dict[str, Any], float]:
        """Run the hook and let it go on, as MoM does; return what the hook did, and when it was let go."""
        did = self.hook("execjob_preresume")
        at = time.monotonic()
        self.signal(signal.SIGCONT)
        return did, at

    def signal(self, number: signal.Signals) -> None:
        """Send all tasks a signal."""
        for pid in self.pids:
            os.kill(pid, number)

    def hook(self, kind: str, **also: Any) -> dict[str, Any]:
        """Have MoM run the hook for an event; it must accept. When it ends, its process group is killed."""
        result = self.folder / "hook.result"
        began = time.monotonic()
        with self._mom(kind, result, also) as mom:
            mom.wait(120)
        with suppress(ProcessLookupError):
            os.killpg(mom.pid, signal.SIGKILL)
        did: dict[str, Any] = json.loads(result.read_text())
        assert did["accepted"], did
        return did | {"seconds": time.monotonic() - began, "errors": [text for level, text in did["log"] if level == 1]}

    def hook_that_meets_its_alarm(self, kind: str, seconds: float) -> None:
        """Have MoM run the hook for an event, and kill it with its process group after so many seconds."""
        with self._mom(kind, self.folder / "hook.result", {}) as mom:
            with suppress(subprocess.TimeoutExpired):
                mom.wait(seconds)
                raise AssertionError("the hook ended before its alarm")
            os.killpg(mom.pid, signal.SIGKILL)

    def _mom(self, kind: str, result: Path, also: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        job = {
            "id": self.id,
            "exec_vnode": self.exec_vnode,
            "session_id": self.pids[0] if self.pids else None,
            "euser": "root",
            "queue": self.queue,
            "server_comment": self.comment,
        }
        config, event = (self.folder / f"hook.{name}" for name in ("config", "event"))
        config.write_text(json.dumps(self.config))
        given = {"event": kind, "type": RECORDED["types"][kind], "types": RECORDED["types"], "config_file": str(config)}
        defined = {"jobs": [{**job, **also}], "resources_defined": ["pageferry", "pageferry_outcome"]}
        event.write_text(json.dumps(given | defined))
        words = ["/usr/bin/python3", "-I", "-S", str(MOM), str(HOOK), str(event), str(result)]
        null = subprocess.DEVNULL
        return subprocess.Popen(words, stdin=null, stdout=null, env={}, start_new_session=True)

    def noted(self) -> list[int]:
        """Return how many diary entries each rank has; for a job that stands still."""
        return [len(self.steady.diary(rank)) for rank in range(len(self.processes))]

    def first_steps(self, noted: list[int]) -> list[dict[str, Any]]:
        """Wait until each rank has more entries than it had noted, and return what it saw in its first steps since."""
        diary, ranks = self.steady.diary, list(enumerate(noted))
        wait_until(lambda: all(len(diary(rank)) > count for rank, count in ranks), "the ranks go on")
        return [diary(rank)[count] for rank, count in ranks]

    def end(self) -> None:
        """Kill it; its memory is free when this returns."""
        for process in self.processes:
            process.kill()
            process.wait()
        for group in self.groups():
            with suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def pbs_job(
    job_id: str,
    cgroup: str,
    config: Mapping[str, Any],
    *,
    node: int = 0,
    ranks: int = 1,
    mib: int = 16,
    shared: int = 0,
    queue: str = "",
) -> Iterator[PbsJob]:
    """Start a job whose memory is on the node of its CPUs."""
    folder = Path("/dev/shm") / f"pbs-{time.monotonic_ns()}"
    folder.mkdir()
    made = PbsJob(job_id, cgroup, folder, config, exec_vnode=f"(guest[{node}]:ncpus=2)", queue=queue)
    try:
        for group in made.groups():
            _make(group, cgroup)
        made.confine(node)
        if shared:
            with (folder / "segment").open("wb") as file:
                file.truncate(shared << 20)
        program = [sys.executable, "-I", "-S", str(PROGRAM), str(folder), str(mib), *([str(shared)] if shared else [])]
        for rank in range(ranks):
            words = [group / "cgroup.procs" for group in made.groups()]
            enter = "; ".join(f"echo 0 > '{word}'" for word in words)
            environment = {**os.environ, "PBS_JOBID": job_id, "SLURM_PROCID": str(rank)}
            shell = ["sh", "-c", f'{enter}; exec "$@"', "sh", *program]
            made.processes.append(subprocess.Popen(shell, env=environment, start_new_session=True))
        wait_until(lambda: all(_has_begun(folder, rank) for rank in range(ranks)), f"job {job_id} has begun", 120)
        yield made
    finally:
        made.end()


def _make(group: Path, cgroup: str) -> None:
    group.mkdir(parents=True)
    if cgroup == "v2":
        for parent in (CGROUP, group.parent.parent, group.parent):
            (parent / "cgroup.subtree_control").write_text("+cpuset +memory")
    elif (group / "cpuset.cpus").exists():
        for parent in (group.parent.parent, group.parent):
            for name in ("cpuset.cpus", "cpuset.mems"):
                (parent / name).write_text((parent.parent / name).read_text())


def _has_begun(folder: Path, rank: int) -> bool:
    diary = folder / f"{rank}.diary"
    return diary.exists() and bool(diary.read_text())

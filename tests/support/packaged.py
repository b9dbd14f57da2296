"""A throw-away host with the Debian package on it, and with jobs whose groups are as Slurm makes them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.throwaway_host import Host, wait_until

DPKG = ("dpkg", "--force-unsafe-io")
UNIT = "pageferry.service"
DPKGS_OWN = re.compile(
    r"var/lib/dpkg/|var/log/(dpkg\.log|alternatives\.log)|var/cache/(man|debconf)/|etc/machine-id$|"
    r"var/lib/systemd/(deb-systemd-helper-|catalog)|var/log/journal/"
)
"""What dpkg, and the system as a whole, write of any package."""


def install(host: Host, deb: Path) -> str:
    """Install the package, and return what was said."""
    shutil.copy(deb, host.path("/run/pageferry.deb"))
    return host.run(*DPKG, "--install", "/run/pageferry.deb")


def shown(host: Host, name: str, unit: str = UNIT) -> str:
    """Return a property of a unit."""
    return host.run("systemctl", "show", "--value", "--property", name, unit)


@contextmanager
def drop_in(host: Host, *lines: str) -> Iterator[None]:
    """Change the agent's unit as `systemctl edit` does."""
    path = host.path(f"/etc/systemd/system/{UNIT}.d/test.conf")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["[Service]", *lines]) + "\n")
    host.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        path.unlink()
        host.run("systemctl", "daemon-reload")


@dataclass(frozen=True, slots=True)
class Job:
    """A job with one task, a `cat`. `freezer` is the file by which Slurm suspends it, `ours` that of our hold."""

    host: Host
    number: int
    process: subprocess.Popen[str]
    freezer: Path
    words: tuple[str, str]
    ours: Path

    def suspend(self) -> None:
        """Do as Slurm does."""
        self.host.path(self.freezer).write_text(self.words[1])

    def resume(self) -> None:
        """Do as Slurm does."""
        self.host.path(self.freezer).write_text(self.words[0])

    def is_held(self) -> bool:
        """Say whether somebody other than Slurm holds it, and says so."""
        try:
            frozen = self.host.path(self.ours).read_text() == "1\n"
        except FileNotFoundError:
            return False
        return frozen and self.host.path(f"/run/pageferry/holds/{self.number}.hold").exists()

    def is_free(self) -> bool:
        """Say whether nobody but Slurm holds it."""
        ours = self.host.path(self.ours)
        record = self.host.path(f"/run/pageferry/holds/{self.number}.hold")
        return not record.exists() and (not ours.exists() or ours.read_text() == "0\n")


@contextmanager
def slurm_job(host: Host, version: str, number: int) -> Iterator[Job]:
    """Make a job; all of it is gone in the end."""
    top = Path("/sys/fs/cgroup")
    if version == "v2":
        group = top / f"system.slice/slurmstepd.scope/job_{number}"
        task, freezer, words = group / "step_0/user/task_0", group / "step_0/user/cgroup.freeze", ("0", "1")
        ours = task / "cgroup.freeze"
    else:
        group = top / f"freezer/slurm/uid_0/job_{number}"
        task, freezer, words = group / "step_0", group / "step_0/freezer.state", ("THAWED", "FROZEN")
        ours = top / f"unified/pageferry/job_{number}/cgroup.freeze"
    host.path(task).mkdir(parents=True)
    with host.popen("sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec cat', str(task)) as process:
        job = Job(host, number, process, freezer, words, ours)
        try:
            wait_until(lambda: host.path(task / "cgroup.procs").read_text().strip(), "the task is there")
            yield job
        finally:
            job.resume()
            for pid in host.path(task / "cgroup.procs").read_text().split():
                host.ask("kill", "-KILL", pid) if pid != "0" else None
            process.kill()
    wait_until(lambda: not host.path(task / "cgroup.procs").read_text().strip(), "the task is gone")
    for below, folders, _ in os.walk(host.path(group), topdown=False):
        for folder in folders:
            (Path(below) / folder).rmdir()
    host.path(group).rmdir()

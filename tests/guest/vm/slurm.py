"""Slurm in the guest: its daemons from the distribution's packages, started without systemd, and stopped.

`python -m guest.vm.slurm start` and `stop` do the same from a command line. What is done with a running
Slurm is in `jobs`.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from guest.vm import slurmconf
from guest.vm.errors import GuestError
from guest.vm.jobs import Slurm
from guest.vm.layouts import LAYOUTS

CONF = Path("/etc/slurm")
CGROUP = Path("/sys/fs/cgroup")
MUNGE = Path("/run/munge")
START_TIMEOUT_S = 90.0


def start(
    cgroup: str | None = None,
    nodes: int = 1,
    extra: str = "",
    cgroup_extra: str = "",
    without: Collection[str] = (),
) -> Slurm:
    """Start munged, slurmctld and a slurmd for each node, wait until all nodes are idle, and return Slurm.

    `extra` lines are appended to slurm.conf, `cgroup_extra` lines to cgroup.conf, and keys in `without` are in neither,
    unless they are in those lines. A Slurm that runs already is returned as it is. Raises GuestError, with the daemons'
    last words, if the nodes do not become idle.
    """
    version = cgroup or os.environ["PAGEFERRY_GUEST_CGROUP"]
    slurm = Slurm(version, slurmconf.node_names(nodes), log_folder())
    if running():
        return slurm
    configure(slurm, extra, cgroup_extra, without)
    if version == "v2":
        delegate_controllers()
    _start_munge()
    # A new session each: a signal to the tests' process group is not theirs.
    subprocess.run(["setsid", "slurmctld"], check=True)
    _wait(_controller_listens, "slurmctld does not listen", slurm.logs)
    for name in slurm.nodes:
        subprocess.run(["setsid", "slurmd", "-N", name], check=True)
    wait_ready(slurm)
    return slurm


def configure(slurm: Slurm, extra: str = "", cgroup_extra: str = "", without: Collection[str] = ()) -> None:
    """Write slurm.conf and cgroup.conf, as start() does, and make the folders that they name."""
    for folder in (slurmconf.RUN / "state", slurm.logs, CONF):
        folder.mkdir(parents=True, exist_ok=True)
    layout = LAYOUTS[os.environ["PAGEFERRY_GUEST_LAYOUT"]]
    slurm_conf = slurmconf.leave_out(slurmconf.slurm_conf(layout, slurm.nodes, slurm.logs), without)
    cgroup_conf = slurmconf.leave_out(slurmconf.cgroup_conf(slurm.cgroup), without)
    (CONF / "slurm.conf").write_text(f"{slurm_conf}{extra}\n")
    (CONF / "cgroup.conf").write_text(f"{cgroup_conf}{cgroup_extra}\n")


def wait_ready(slurm: Slurm, states: Collection[str] = ("idle",)) -> None:
    """Wait until each node is in one of `states`; GuestError, with the daemons' last words, if that does not come."""
    _wait(
        lambda: bool(found := set(slurm.node_states())) and found <= set(states),
        f"the nodes do not become {' or '.join(states)}",
        slurm.logs,
    )


def stop() -> None:
    """End all daemons that start() started, and what jobs are left; nothing to do is success."""
    if running():
        Slurm(os.environ["PAGEFERRY_GUEST_CGROUP"], (), log_folder()).cancel_all()
    for pid_file in [*sorted(slurmconf.RUN.glob("*.pid")), MUNGE / "munged.pid"]:
        _end(pid_file)


def running() -> bool:
    """Whether a slurmctld of start()'s is there."""
    pid_file = slurmconf.RUN / "slurmctld.pid"
    return pid_file.exists() and Path("/proc", pid_file.read_text().strip()).exists()


def log_folder() -> Path:
    """Where the daemons' logs and the jobs' output go; it is on the host."""
    return Path(os.environ["PAGEFERRY_RESULTS"]) / "slurm"


def delegate_controllers() -> None:
    """Make the part of the cgroup v2 tree that Slurm expects to find under systemd.

    Slurm 22.05 overlooks the last word of cgroup.controllers (src/plugins/cgroup/v2/cgroup_v2.c): `pids`,
    which comes after `memory`, is there to be overlooked.
    """
    slice_ = CGROUP / "system.slice"
    slice_.mkdir(exist_ok=True)
    for folder in (CGROUP, slice_):
        (folder / "cgroup.subtree_control").write_text("+cpuset +cpu +memory +pids")


def _start_munge() -> None:
    # The distribution's key is readable to its own user alone, and may not be there at all.
    MUNGE.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = MUNGE / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    subprocess.run(
        [
            "munged",
            f"--key-file={key}",
            f"--pid-file={MUNGE}/munged.pid",
            f"--log-file={MUNGE}/munged.log",
            f"--seed-file={MUNGE}/munged.seed",
        ],
        check=True,
    )


def _controller_listens() -> bool:
    try:
        with socket.create_connection((slurmconf.ADDRESS, slurmconf.CONTROLLER_PORT), timeout=5):
            return True
    except OSError:
        return False


def _wait(done: Callable[[], bool], complaint: str, logs: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not done():
        if time.monotonic() > deadline:
            raise GuestError(f"{complaint} after {START_TIMEOUT_S:g} s\n{_last_words(logs)}")
        time.sleep(0.1)


def _last_words(logs: Path) -> str:
    return "\n".join(
        f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        for log in sorted(logs.glob("slurm*.log"))
    )


def _end(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    process = Path("/proc", pid_file.read_text().strip())
    if process.exists():
        os.kill(int(process.name), signal.SIGTERM)
        _wait(lambda: not process.exists(), f"process of {pid_file} does not end", log_folder())
    pid_file.unlink(missing_ok=True)


def main(argv: Sequence[str]) -> int:
    """Start or stop Slurm as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m guest.vm.slurm", description=__doc__)
    parser.add_argument("verb", choices=("start", "stop"))
    verb = parser.parse_args(argv).verb
    try:
        if verb == "start":
            start()
        else:
            stop()
    except (GuestError, subprocess.CalledProcessError, OSError) as error:
        print(f"slurm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

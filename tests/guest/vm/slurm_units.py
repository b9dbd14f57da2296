"""Slurm in a guest that systemd has started: its daemons run by the units of their packages, as on a site's host.

slurmd asks systemd for the scope of its steps, over D-Bus. Configuration and jobs are as `slurm` and `jobs` have them.
"""

import secrets
import shutil
import subprocess
from pathlib import Path

from guest.vm import slurm as daemons
from guest.vm import slurmconf
from guest.vm.jobs import Slurm

MUNGE_KEY = Path("/etc/munge/munge.key")


def start() -> Slurm:
    """Start Slurm on cgroup v2, and wait until its node is idle."""
    slurm = Slurm("v2", slurmconf.node_names(1), daemons.log_folder())
    daemons.configure(slurm, without={"IgnoreSystemd"})
    MUNGE_KEY.touch(mode=0o600)
    MUNGE_KEY.write_bytes(secrets.token_bytes(128))
    shutil.chown(MUNGE_KEY, "munge", "munge")
    _systemctl("start", "dbus", "munge", "slurmctld", "slurmd")
    daemons.wait_ready(slurm)
    return slurm


def restart(slurm: Slurm) -> None:
    """Restart both daemons, as an operator does after a change of slurm.conf, and wait until the node serves again."""
    _systemctl("restart", "slurmctld", "slurmd")
    daemons.wait_ready(slurm, ("idle", "mix", "alloc"))


def stop() -> None:
    """Stop Slurm; its jobs have to have ended."""
    _systemctl("stop", "slurmd", "slurmctld", "munge")


def _systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True)

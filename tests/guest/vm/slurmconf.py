"""The guest's Slurm configuration, as text: one cluster that is this machine, described as it is.

Names of the parameters are slurm.conf(5)'s and cgroup.conf(5)'s. Jobs are bound to cores and limited in
memory, as on a site where moving memory matters.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from guest.vm.layouts import Layout

ADDRESS = "10.77.0.1"
CONTROLLER_PORT = 6817
RUN = Path("/run/slurm")


def node_names(nodes: int) -> tuple[str, ...]:
    """One node has the machine's name; several share the machine, each with a slurmd of its own."""
    return ("guest",) if nodes == 1 else tuple(f"guest{number}" for number in range(nodes))


def leave_out(text: str, keys: Collection[str]) -> str:
    """Return a configuration file without the lines that set one of `keys`."""
    return "".join(line for line in text.splitlines(keepends=True) if line.partition("=")[0] not in keys)


def slurm_conf(layout: Layout, nodes: Sequence[str], logs: Path, extra: str = "") -> str:
    """Return slurm.conf; `extra` are further lines, which a test writes as an administrator would."""
    # Some of the memory is the kernel's, and a node with less than it claims is drained.
    memory_mib = layout.mib * 9 // 10
    descriptions = [
        f"NodeName={name} NodeHostname=guest NodeAddr={ADDRESS} Port={CONTROLLER_PORT + 1 + number}"
        f" CPUs={layout.cpus} Boards=1 SocketsPerBoard={len(layout.cpu_nodes)}"
        f" CoresPerSocket={layout.cores_per_socket} ThreadsPerCore=1 RealMemory={memory_mib} State=UNKNOWN"
        for number, name in enumerate(nodes)
    ]
    described = "\n".join(descriptions)
    return f"""ClusterName=guest
SlurmctldHost=guest({ADDRESS})
SlurmctldPort={CONTROLLER_PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation={RUN}/state
SlurmdSpoolDir={RUN}/spool-%n
SlurmctldPidFile={RUN}/slurmctld.pid
SlurmdPidFile={RUN}/slurmd-%n.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory_mib // layout.cpus}
SchedulerParameters=batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
# An emulated machine is slow to answer; nothing here is meant to test that.
MessageTimeout=90
SlurmdTimeout=0
KillWait=5
{described}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
{extra}
"""


def cgroup_conf(version: str) -> str:
    """Return cgroup.conf for cgroup "v1" or "v2"."""
    # No systemd runs here to ask for a scope.
    ignore = "IgnoreSystemd=yes\n" if version == "v2" else ""
    return f"""CgroupPlugin=cgroup/{version}
{ignore}CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=yes
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
"""

"""Finds OpenPBS's jobs on this host: from their cgroups, or where a site makes none, from their processes.

PBS itself is not asked: MoM tells a hook what a job is, and its hook tells us (hooks/pbs). Job IDs, the names of vnodes
and a process's environment are hostile text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import Denied, KernelError, UsageError, Vanished
from pageferry.kernel import bounded
from pageferry.kernel.files import read_bytes
from pageferry.kernel.procfs import list_pids, living_thread, read_status
from pageferry.kernel.topology import Topology
from pageferry.schedulers.base import Job
from pageferry.schedulers.pbs_cgroups import (
    pbs_job_cgroups,
    pbs_job_cpuset,
    pbs_job_freezers,
    pbs_job_ids,
    pbs_job_pids,
)

_JOB_ID = re.compile(r"[0-9]{1,18}(?:\[[0-9]{0,18}\])?(?:\.[A-Za-z0-9][A-Za-z0-9._-]{0,200})?")
_VNODE = re.compile(r"[(+]([A-Za-z0-9][A-Za-z0-9._-]{0,254})\[([0-9]{1,4})\](?=[:)+])")
_OWN_STATES = frozenset("TtZX")


@dataclass(frozen=True, slots=True)
class Pbs:
    """OpenPBS on the host whose file system is at `root`."""

    root: Path = Path("/")

    def parse_job_id(self, text: str) -> str:
        """Return a job ID: "123.server", "123[4].server" (of an array), or either without the server.

        Raises UsageError for any other text.
        """
        if _JOB_ID.fullmatch(text) is None:
            raise UsageError(f"not a PBS job ID: {text[:80]!a}")
        return text

    def find(self, job_id: str) -> Job:
        """Return a job that runs on this host; without its server's name, the only one of that number.

        Raises UsageError for a job that is not here, or one of several.
        """
        wanted = self.parse_job_id(job_id)
        known = pbs_job_ids(self.root)
        found = [wanted] if wanted in known else [name for name in known if name.startswith(f"{wanted}.")]
        if len(found) > 1:
            raise UsageError(f"job {wanted} is one of several: {', '.join(found)}")
        name = found[0] if found else wanted
        if job := self._job(name, pbs_job_pids(name, self.root) or self._claimed(name)):
            return job
        raise UsageError(f"no such job on this host: {wanted}")

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that have cgroups on this host, by ID; one that has no process any more is left out."""
        names = [name for name in pbs_job_ids(self.root) if _JOB_ID.fullmatch(name)]
        found = (self._job(name, pbs_job_pids(name, self.root)) for name in names)
        return tuple(job for job in found if job is not None)

    def _claimed(self, name: str) -> frozenset[int]:
        """Return the processes that say to be a job's: on PBS's hosts, and by its whole ID alone.

        Elsewhere anyone could make an ID of another scheduler's a job of this host.
        """
        if "." in name and (self.root / "etc/pbs.conf").exists():
            return claimed_pids(name, root=self.root)
        return frozenset()

    def _job(self, name: str, pids: frozenset[int]) -> Job | None:
        if not pids:
            return None
        return Job(
            id=name,
            scheduler="pbs",
            cgroups=pbs_job_cgroups(name, self.root),
            pids=pids,
            state=None,
            user_id=owner(pids, self.root),
            name=None,
            holds=pbs_job_freezers(name, self.root),
        )


def is_job_id(text: str) -> bool:
    """Say whether a text may be the ID of a job."""
    return _JOB_ID.fullmatch(text) is not None


def job_pids(job_id: str, session: int = 0, user_id: int | None = None, root: Path = Path("/")) -> frozenset[int]:
    """Return a job's processes: those in its cgroups, else those of its session and those that claim to be its own.

    `session`: as MoM has it, 0 where it has none; `user_id`: the job's user's, without whom nobody is taken at his
    word.
    """
    if pids := pbs_job_pids(job_id, root):
        return pids
    return session_pids(session, user_id, root) | claimed_pids(job_id, user_id, root)


def known_pids(job_id: str, session: int = 0, user_id: int | None = None, root: Path = Path("/")) -> frozenset[int]:
    """Return those processes of a job that are found at once: in its cgroups, else in its session."""
    return pbs_job_pids(job_id, root) or session_pids(session, user_id, root)


def session_pids(session: int, user_id: int | None, root: Path = Path("/")) -> frozenset[int]:
    """Return a user's processes in a session; none where either is not known."""
    if not session or user_id is None:
        return frozenset()
    in_session = [pid for pid in list_pids(root) if _session(pid, root) == session]
    return frozenset(pid for pid in in_session if user_id in _users(pid, root))


def claimed_pids(job_id: str, user_id: int | None = None, root: Path = Path("/")) -> frozenset[int]:
    """Return the processes whose environment has a job's ID in PBS_JOBID, as those have that MoM starts.

    Anyone may put it there: only the processes of the job's user count, or where that is not known, of the only user
    who has any. A process that does not answer within a few seconds claims nothing. Raises UsageError if there are
    several such users.
    """
    wanted = b"PBS_JOBID=" + job_id.encode()
    users = {pid: _users(pid, root) for pid in list_pids(root)}
    asked = sorted(pid for pid in users if user_id is None or user_id in users[pid])
    answers = bounded.each(asked, lambda pid: wanted in _environment(pid, root)).values
    claimed = frozenset(pid for pid, claims in answers.items() if claims)
    if user_id is None and len(frozenset().union(*(users[pid] for pid in claimed))) > 1:
        raise UsageError(f"processes of several users say that they are of job {job_id}")
    return claimed


def job_nodes(
    job_id: str, exec_vnode: str, hosts: frozenset[str], topology: Topology, root: Path = Path("/")
) -> tuple[int, ...]:
    """Return the NUMA nodes that PBS gave a job here: those of its cpuset, else those of its vnodes; or none.

    With vnode_per_numa_node a vnode is called HOST[NODE]; `hosts` are the names that this host goes by. Without
    mem_fences the cpuset's mems are all nodes, and those of its CPUs are meant.
    """
    with_memory = topology.nodes_with_memory()
    cpus, mems = pbs_job_cpuset(job_id, root)
    if cpus:
        near = topology.serving(cpus)
        return tuple(sorted(near & mems or near))
    given = {int(node) for host, node in _VNODE.findall(exec_vnode) if host in hosts}
    return tuple(sorted(given & with_memory))


def is_stopped(pids: frozenset[int], root: Path = Path("/")) -> bool:
    """Say whether all of some processes stand still by a signal, as PBS suspends a job; what has ended does anyway."""
    states = [state for pid in pids for state in _state(pid, root)]
    return bool(states) and all(state in _OWN_STATES for state in states)


def owner(pids: frozenset[int], root: Path = Path("/")) -> int | None:
    """Return the real user ID that all processes have, None if they differ or have ended."""
    users = frozenset().union(*(_users(pid, root) for pid in pids))
    return next(iter(users)) if len(users) == 1 else None


def _users(pid: int, root: Path) -> frozenset[int]:
    with suppress(Vanished):
        return frozenset({read_status(pid, root).uids[0]})
    return frozenset()


def _state(pid: int, root: Path) -> Iterator[str]:
    with suppress(Vanished):
        yield read_status(living_thread(pid, root), root).state


def _environment(pid: int, root: Path) -> list[bytes]:
    with suppress(Vanished, Denied, KernelError):
        return read_bytes(root / f"proc/{living_thread(pid, root)}/environ").split(b"\0")
    return []


def _session(pid: int, root: Path) -> int:
    """Return a process's session ID (field 6 of /proc/PID/stat), 0 if it has ended."""
    with suppress(Vanished):
        text = read_bytes(root / f"proc/{pid}/stat")
        return int(text[text.rfind(b")") + 1 :].split()[3])
    return 0

"""Whether the agent runs here, answers, stands apart from slurmd, and has sound settings and what it watches jobs with.

The agent's side of the socket is left to `wire`; here it only has to answer anything in time.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pageferry import config
from pageferry.doctor.findings import Finding, fail, ok, warn
from pageferry.errors import KernelError, PageferryError, Vanished
from pageferry.kernel.cgroup import children, read_hierarchies
from pageferry.kernel.files import numbered, printable, read_bytes
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import read_topology
from pageferry.schedulers.slurm_cgroups import slurm_scopes
from pageferry.wire import PATH

ANSWER_SECONDS = 2.0

_START = "systemctl enable --now pageferry"
_SLURMS = re.compile(r"(^|/)(slurmd\.service|[^/]*slurmstepd\.scope|slurm(_[^/]*)?/uid_[0-9]+)(/|$)")
_WATCHES = 8192
_LIMITS = {
    "max_user_watches": (_WATCHES, "a job has some ten groups to watch"),
    "max_user_instances": (16, "the agent needs one"),
}


def examine_agent(path: Path = PATH, seconds: float = ANSWER_SECONDS) -> Iterator[Finding]:
    """Look for the agent at its socket; where it is, look at its control group."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(seconds)
        try:
            asking.connect(str(path))
            pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            with suppress(ConnectionResetError, BrokenPipeError):
                answer = b""
                asking.sendall(b'{"verb": "status"}\n')
                answer = asking.recv(1)
        except (FileNotFoundError, ConnectionRefusedError):
            yield warn("agent", f"not running (nobody listens at {path}): {_START}")
            return
        except (TimeoutError, BlockingIOError):
            yield warn("agent", f"does not answer within {seconds:g} s at {path}: systemctl restart pageferry")
            return
        except PermissionError:
            yield warn("agent", f"{path} cannot be opened by this user: run as root")
            return
        except OSError as error:
            yield warn("agent", f"{path}: {error.strerror}: {_START}")
            return
    if not answer:
        yield warn("agent", f"hung up without an answer at {path}: journalctl -u pageferry")
        return
    yield ok("agent", f"running, process {pid}")
    yield from examine_place(pid)


def examine_place(pid: int, root: Path = Path("/")) -> Iterator[Finding]:
    """Look whether a process stands in a control group of slurmd's or of a job's, with whose end it would end."""
    try:
        mine = _groups(pid, root)
    except PageferryError as error:
        yield warn("agent's cgroup", str(error))
        return
    shared = {group for group in mine if _SLURMS.search(group)} | (mine & _groups_of_slurmd(root)) - {"/"}
    if shared:
        named = printable(min(shared))
        text = f"{named} is Slurm's: start the agent by its own unit ({_START}), not from slurmd, a hook or a job"
        yield warn("agent's cgroup", text)
    else:
        yield ok("agent's cgroup", "apart from slurmd's")


def examine_settings(path: Path = config.PATH, root: Path = Path("/")) -> Iterator[Finding]:
    """Look for faults in the settings: with a single one the agent does not start, and reads them not again.

    And for what they ask of this host that it has not.
    """
    reading = config.read(path, here=True)
    for fault in reading.faults:
        yield fail("settings", fault)
    if not reading.faults:
        files = ", ".join(printable(file) for file in reading.files)
        rules = len(reading.settings.rule)
        named = f"; {rules} rule{'s' * (rules > 1)}" if rules else ""
        yield ok("settings", f"{files}{named}" if files else f"defaults (there is no {path})")
        yield from _parking(reading.settings, root)
        yield from _special(reading.settings, root)


def _parking(settings: config.Settings, root: Path) -> Iterator[Finding]:
    for rule in settings.rule:
        if rule.park and (lacks := set(rule.park) - read_topology(root).nodes_with_memory()):
            what = "its jobs are not parked" if lacks == set(rule.park) else "they take nothing"
            text = (
                f'rule {rule.name}: park = "{format_list(rule.park)}": no memory here on {format_list(lacks)}: {what}'
            )
            yield warn("settings", printable(text))


def _special(settings: config.Settings, root: Path) -> Iterator[Finding]:
    """Say which nodes are special; where the site says nothing, say what becomes of memory on nodes without CPUs."""
    topology = read_topology(root)
    special, cpuless = settings.nodes.special, topology.cpuless()
    if special is None and cpuless:
        yield warn(
            "special nodes",
            f"none are set: memory on {format_list(cpuless)}, without CPUs, is moved as any other, and spilled memory "
            "may go there; for HBM, a GPU's memory or CXL set "
            'special = "cpuless" in [nodes], or special = "" if it is like any other',
        )
    elif special:
        here, lacks = special.on(topology), special.named() - topology.nodes_with_memory()
        text = f"{format_list(here)}: memory there stays, and none spills there, unless a move names the node"
        text = text if here else "none on this host"
        yield ok("special nodes", text + (f"; no memory here on {format_list(lacks)}" if lacks else ""))


def examine_watching(root: Path = Path("/")) -> Iterator[Finding]:
    """Look at what the agent watches and holds jobs with: inotify, and the freezer of either version."""
    for name, (least, why) in _LIMITS.items():
        key = f"fs.inotify.{name}"
        try:
            limit = int(read_bytes(root / f"proc/sys/fs/inotify/{name}"))
        except (Vanished, ValueError):
            yield warn(key, "cannot be read: the kernel was built without inotify, and jobs cannot be watched")
            continue
        if limit < least:
            yield warn(key, f"{limit}; set sysctl {key}={least} or more: {why}")
        else:
            yield ok(key, str(limit))
    yield from _freezer(root)
    yield from _names(root)


def _names(root: Path) -> Iterator[Finding]:
    """Look whether Slurm names its jobs' groups by job ID; from 26.05 on it does so only if asked."""
    unified = read_hierarchies(root).unified
    scopes = slurm_scopes(unified) if unified is not None else ()
    for group in (group for scope in scopes for group in children(scope)):
        steps = any(step.name.startswith("step_") for step in children(group))
        if steps and not group.name.startswith("job_"):
            named = printable(group.name)
            yield fail("job cgroups", f"{named} is no job ID: set CgroupJobIdPaths=yes in cgroup.conf")
            return


def _freezer(root: Path) -> Iterator[Finding]:
    hierarchies = read_hierarchies(root)
    unified = hierarchies.unified
    has_v2 = unified is not None and any((group / "cgroup.freeze").exists() for group in children(unified))
    offered = b"cgroup2" in read_bytes(root / "proc/filesystems").split()
    if "freezer" in hierarchies.legacy:
        point = hierarchies.legacy["freezer"]
        if has_v2 or offered:
            yield ok("freezer", f"version 1 at {point}; jobs are held in a version 2 hierarchy of our own")
        else:
            yield warn("freezer", f"version 1 at {point}, and no cgroup2 in this kernel: jobs are not held")
    elif has_v2:
        yield ok("freezer", f"version 2 at {unified}")
    elif unified is not None:
        yield warn("freezer", "no cgroup.freeze (Linux 5.2 has it): Slurm suspends by signals, and jobs are not held")
    else:
        yield warn("freezer", "none mounted: mount cgroup2 at /sys/fs/cgroup, as systemd does")


def _groups(pid: int, root: Path) -> set[str]:
    """Return the groups of a process, of all hierarchies, as the kernel names them below their mounts."""
    lines = read_bytes(root / f"proc/{pid}/cgroup").decode("utf-8", "backslashreplace").splitlines()
    return {line.split(":", 2)[2] for line in lines if line.count(":") >= 2}


def _groups_of_slurmd(root: Path) -> set[str]:
    groups: set[str] = set()
    for pid in numbered(root / "proc"):
        with suppress(Vanished, KernelError):
            if read_bytes(root / f"proc/{pid}/comm") == b"slurmd\n":
                groups |= _groups(pid, root)
    return groups

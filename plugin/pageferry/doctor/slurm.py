"""What of a site's Slurm configuration stands in pageferry's way, and what to change in which file.

How the configuration is read is left to `schedulers.slurm_config`. A finding is FAIL only if no job could be served.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pageferry.doctor.findings import Finding, fail, ok, warn
from pageferry.errors import PageferryError, SchedulerError
from pageferry.kernel.files import printable, read_file
from pageferry.schedulers.slurm_config import SlurmConfig, ask_config, read_settings

_HOOKS = {
    "Prolog": "the agent is not told when a job starts",
    "Epilog": "the agent is not told when a job has ended, and memory that spilled comes home later",
}
_INTERPRETERS = ("bin/sh", "usr/bin/python3")
"""What the hooks are run with, by these very paths."""

_SCRIPT_BYTES = 65536


def examine_slurm(root: Path = Path("/"), scontrol: str = "scontrol") -> Iterator[Finding]:
    """Look at Slurm's configuration as slurmctld tells it, and at the files on this host that it names."""
    if shutil.which(scontrol) is None:
        yield warn("Slurm", "no scontrol on this host: jobs are found by their cgroups only")
        return
    try:
        config = ask_config(scontrol)
    except SchedulerError as error:
        yield warn("Slurm", str(error))
        return
    yield ok("Slurm", config.get("SLURM_VERSION") or "version not told")
    yield from examine_config(config, root)


def examine_config(config: SlurmConfig, root: Path = Path("/")) -> Iterator[Finding]:
    """Look at a configuration, and below `root` at the files that it names."""
    yield from _plugins(config)
    yield from _cores(config, root)
    for key, lost in _HOOKS.items():
        yield from _hook(config, key, lost, root)
    yield from _health_check(config, root)
    yield from _job_submit(config, root)


def _plugins(config: SlurmConfig) -> Iterator[Finding]:
    tracking = config.get("ProctrackType") or "not told"
    if tracking.removeprefix("proctrack/") == "cgroup":
        yield ok("ProctrackType", tracking)
    else:
        text = f"{tracking}; set ProctrackType=proctrack/cgroup in slurm.conf: Slurm suspends a job by its cgroups then"
        yield fail("ProctrackType", text)
    found = config.get("TaskPlugin")
    words = [f"task/{word.strip().removeprefix('task/')}" for word in (found or "").split(",") if word.strip()]
    missing = [name for name in ("task/cgroup", "task/affinity") if name not in words]
    if missing:
        set_to = ",".join([*(word for word in words if word != "task/none"), *missing])
        lost = "a job has no cpuset" if "task/cgroup" in missing else "tasks are not bound to CPUs of their own"
        yield warn("TaskPlugin", f"{found or 'not set'}; set TaskPlugin={set_to} in slurm.conf: now {lost}")
    else:
        yield ok("TaskPlugin", ",".join(words))


def _cores(config: SlurmConfig, root: Path) -> Iterator[Finding]:
    """Look at what slurmctld read, and at this host's own file: slurmd goes by the latter."""
    why = "without it a new step of a job that was given other CPUs fails to start"
    found = {"slurmctld": config.get("ConstrainCores") or "not told"}
    own = config.folder() / "cgroup.conf"
    path = root / str(own).lstrip("/")
    if path.exists():
        try:
            values = [setting.value for setting in read_settings(path) if setting.key.lower() == "constraincores"]
        except PageferryError as error:
            yield warn("ConstrainCores", str(error))
            return
        found[str(own)] = values[-1] if values else "not set"
    bad = {where: value for where, value in found.items() if value.lower() not in {"yes", "true", "up", "1"}}
    if bad:
        told = ", ".join(f"{value} ({where})" for where, value in bad.items())
        yield warn("ConstrainCores", f"{told}; set ConstrainCores=yes in {own}: {why}")
    else:
        yield ok("ConstrainCores", "yes")


def _hook(config: SlurmConfig, key: str, lost: str, root: Path) -> Iterator[Finding]:
    patterns = config.all(key)
    if not patterns:
        yield warn(key, f"not set: {lost}; `pageferry render slurm` writes the line")
        return
    troubles: list[str] = []
    ours: list[str] = []
    for pattern in patterns:
        scripts, trouble = _scripts(pattern, root)
        troubles += trouble
        for script in scripts:
            if not script.is_file() or not os.access(script, os.R_OK | os.X_OK):
                troubles.append(f"{_shown(script, root)} cannot be run (Slurm drains the node): make it executable")
            elif _is_ours(script):
                ours.append(_shown(script, root))
    yield from (warn(key, trouble) for trouble in troubles)
    if not ours and not troubles:
        named = printable(", ".join(patterns))
        yield warn(key, f"{named}: pageferry's is not among them, nor called from them: {lost}")
    missing = [f"/{path}" for path in _INTERPRETERS if not os.access(root / path, os.X_OK)]
    if ours and missing:
        yield warn(key, f"{' and '.join(missing)} is not on this host: pageferry's hook does nothing without; {lost}")
    elif ours:
        yield ok(key, ", ".join(ours))


def _scripts(pattern: str, root: Path) -> tuple[list[Path], list[str]]:
    """Return the files that Slurm runs for a pattern on this host, or what keeps it from that."""
    shown = printable(pattern)
    if not pattern.startswith("/"):
        return [], [f"{shown} is not an absolute path: Slurm drains the node"]
    matches = sorted(glob.glob(str(root / pattern.lstrip("/"))))  # noqa: PTH207 - as glob(3)
    if not matches:
        return [], [f"nothing on this host matches {shown}: Slurm drains the node; put pageferry's hook there"]
    return [Path(match) for match in matches], []


def _health_check(config: SlurmConfig, root: Path) -> Iterator[Finding]:
    """Look at the health check only where it is ours: a site need not have one."""
    program = config.get("HealthCheckProgram")
    if program is None or not _is_ours(root / program.lstrip("/")):
        return
    if (config.get("HealthCheckInterval") or "0").split()[0] == "0":
        yield warn("HealthCheckProgram", f"{program} never runs: set HealthCheckInterval=60 in slurm.conf")
    else:
        yield ok("HealthCheckProgram", program)


def _job_submit(config: SlurmConfig, root: Path) -> Iterator[Finding]:
    found = config.get("JobSubmitPlugins")
    words = [word.strip() for word in (found or "").split(",") if word.strip()]
    why = "without it a wrong request is not refused when it is typed"
    if not {"lua", "job_submit/lua"} & set(words):
        set_to = ",".join([*words, "lua"])
        yield warn("JobSubmitPlugins", f"{found or 'not set'}; set JobSubmitPlugins={set_to} in slurm.conf: {why}")
        return
    script = config.folder() / "job_submit.lua"
    here = root / str(script).lstrip("/")
    if not here.exists():
        yield ok("JobSubmitPlugins", f"{found}; {script} is on slurmctld's host, not on this one")
    elif not _is_ours(here):
        yield warn("JobSubmitPlugins", f"{script} does not call pageferry's job_submit.lua: {why}")
    else:
        yield ok("JobSubmitPlugins", f"{found}, with pageferry in {script}")


def _is_ours(script: Path) -> bool:
    """Say whether a script is pageferry's or calls it: by its own words, since a site may give it any name."""
    try:
        if not script.is_file():
            return False
        return b"pageferry" in read_file(script)[:_SCRIPT_BYTES].lower()
    except (PageferryError, OSError):
        return False


def _shown(path: Path, root: Path) -> str:
    return printable("/" / path.relative_to(root))

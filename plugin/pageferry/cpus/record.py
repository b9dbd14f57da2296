"""The record of a host's CPU assignments: the permutation, and what was written to which cpuset, in one file.

It is written before the cpusets are, and holds for one boot. When it is written, and what follows from it, is left to
the assignments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageferry.cpus.pins import Pins
from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import is_path, read_bytes, read_file, shown, translated
from pageferry_planner.cpu_permutation import MAX_CPUS, CpuPermutation

NAME = "cpu_map.json"
_VERSION = 1
_MOST_PIDS = 1 << 30


@dataclass(frozen=True, slots=True)
class Applied:
    """What was last written to a group: Slurm's CPUs, and the real one for each of them.

    `inode` tells a group from a later one of the same name. `was`: the real ones before, while they are replaced.
    """

    inode: int
    slurm: tuple[int, ...]
    real: tuple[int, ...]
    was: tuple[int, ...] | None = None


@dataclass(slots=True)
class CpuMap:
    """All that is remembered. `jobs`: from job to group to what was applied there; `pins`: those being set."""

    permutation: CpuPermutation = field(default_factory=CpuPermutation)
    jobs: dict[int, dict[Path, Applied]] = field(default_factory=dict)
    pins: Pins = field(default_factory=dict)

    def copy(self) -> CpuMap:
        """Return a copy that changes of this one do not reach."""
        return CpuMap(self.permutation, {job: dict(groups) for job, groups in self.jobs.items()}, dict(self.pins))


def save(folder: Path, state: CpuMap, root: Path = Path("/")) -> None:
    """Replace the file by a new one, whole or not at all. Raises Denied and KernelError."""
    plain = {
        "version": _VERSION,
        "boot": _boot(root),
        "map": state.permutation.as_plain(),
        "jobs": {
            str(job): {
                str(path): {"inode": one.inode, "slurm": one.slurm, "real": one.real, "was": one.was}
                for path, one in groups.items()
            }
            for job, groups in state.jobs.items()
        },
        "pins": {
            str(pid): {str(thread): sorted(cpus) for thread, cpus in threads.items()}
            for pid, threads in state.pins.items()
        },
    }
    fresh = folder / f"{NAME}.new"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh.write_text(json.dumps(plain))
        os.replace(fresh, folder / NAME)  # noqa: PTH105
    except OSError as error:
        problem = translated(error, fresh)
        raise (KernelError(str(problem)) if isinstance(problem, Vanished) else problem) from error


def load(folder: Path, root: Path = Path("/")) -> tuple[CpuMap, str | None]:
    """Return what was saved, and one line on why nothing of it can be used, if so; no file is no complaint."""
    path = folder / NAME
    try:
        plain = json.loads(read_file(path))
        if plain["version"] != _VERSION:
            raise ValueError("of another version")
        if plain["boot"] != _boot(root):
            return CpuMap(), f"{path}: of another boot, not used"
        jobs = {
            _number(job, 1 << 32): {_path(path): _applied(one) for path, one in groups.items()}
            for job, groups in plain["jobs"].items()
        }
        pins: Pins = {
            _number(pid, _MOST_PIDS): {
                _number(thread, _MOST_PIDS): frozenset(_cpus(cpus)) for thread, cpus in threads.items()
            }
            for pid, threads in plain["pins"].items()
        }
        return CpuMap(CpuPermutation.from_plain(plain["map"]), jobs, pins), None
    except Vanished:
        return CpuMap(), None
    except KernelError as error:
        return CpuMap(), f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return CpuMap(), f"{path}: damaged, not used: {shown(str(error))}"


def _applied(plain: Any) -> Applied:
    slurm, real = _cpus(plain["slurm"]), _cpus(plain["real"])
    was = None if plain["was"] is None else _cpus(plain["was"])
    if not len(slurm) == len(real) == len(real if was is None else was) or not _is_inode(plain["inode"]):
        raise ValueError("not a record of a group")
    return Applied(plain["inode"], slurm, real, was)


def _is_inode(plain: Any) -> bool:
    return type(plain) is int and 0 <= plain < 1 << 64


def _cpus(plain: Collection[Any]) -> tuple[int, ...]:
    if not all(type(cpu) is int and 0 <= cpu < MAX_CPUS for cpu in plain) or len({*plain}) != len(plain):
        raise ValueError("not a list of CPUs")
    return tuple(plain)


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and int(text) < most):
        raise ValueError("not a number")
    return int(text)


def _path(text: str) -> Path:
    if not is_path(text):
        raise ValueError("not a path")
    return Path(text)


def _boot(root: Path) -> str:
    return read_bytes(root / "proc/sys/kernel/random/boot_id").decode("ascii", "replace").strip()

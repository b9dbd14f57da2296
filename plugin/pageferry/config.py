"""The site's settings: `/etc/pageferry/pageferry.toml` → `Settings`.

A key is a field of one of the structs below, with its default, its limits and what it is for; nothing else knows keys.
How a file is read, and what is said of its faults, is `toml_file`'s; what a setting means is left to those who are
handed it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pageferry.errors import ConfigError, PageferryError, Vanished
from pageferry.kernel.files import read_bytes
from pageferry.toml_file import Bytes, parse

PATH = Path("/etc/pageferry/pageferry.toml")


class Rate(Bytes):
    """Bytes per second: at least 1 MiB, since a move that is never done is not what a limit is for."""

    least = 1 << 20


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[agent]`: what holds for every job of the host."""

    max_hold_seconds: Annotated[float, Meta(gt=0, le=3600, description="A job is held no longer than this.")] = 60.0
    workers: Annotated[int, Meta(ge=1, le=256, description="Threads that move; default: by CPUs and pages.")] | None = (
        None
    )
    when_full: Annotated[
        Literal["partial", "refuse", "spill"],
        Meta(description="Where there is no room: move what fits, nothing, or to the next nearest node too."),
    ] = "partial"
    write_outcome: Annotated[
        Literal["AdminComment", "history"], Meta(description="Where a request's outcome is told, besides the history.")
    ] = "AdminComment"
    slurm_user: (
        Annotated[str, Meta(min_length=1, max_length=256, description="May do what root may; default: SlurmUser.")]
        | None
    ) = None
    retention_days: Annotated[int, Meta(ge=1, le=36500, description="The history is kept this long.")] = 90
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Of the log; at debug, what each plan is made from is kept beside the history."),
    ] = "info"


class Spill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[spill]`: memory that lies far from its job's CPUs comes home when another job ends."""

    enabled: bool = True
    least_bytes: Annotated[Bytes, Meta(description="Less than this is not worth a move.")] = Bytes(16 << 20)
    rate: Annotated[Rate, Meta(description="Bytes per second, since the job runs meanwhile.")] = Rate(256 << 20)


class Cpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cpus]`: jobs may be given other CPUs than Slurm's."""

    enabled: bool = True


class Pbs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[pbs]`: what holds for jobs of OpenPBS."""

    hold: Annotated[
        bool, Meta(description="Hold a job beyond its resume until its memory is there, at most max_hold_seconds.")
    ] = True


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings; a key that the file does not name has its default."""

    agent: Agent = Agent()
    spill: Spill = Spill()
    cpus: Cpus = Cpus()
    pbs: Pbs = Pbs()


def load(path: Path = PATH) -> Settings:
    """Return the settings of a file; one that is not there is all defaults. Raises ConfigError with the first fault."""
    settings, found = _read(path)
    if found:
        raise ConfigError(found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
    return settings


def faults(path: Path = PATH) -> list[str]:
    """Return every fault of a file, one line each; a file that is not there has none."""
    return _read(path)[1]


def _read(path: Path) -> tuple[Settings, list[str]]:
    try:
        raw = read_bytes(path)
    except Vanished:
        return Settings(), []
    except PageferryError as error:
        raise ConfigError(str(error)) from error
    settings, found = parse(raw, str(path), Settings)
    return settings or Settings(), found

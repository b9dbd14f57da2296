"""Reads how Slurm is configured: what slurmctld says of itself, and what a site's own files say line by line.

Which settings are good is left to the doctor, and to `render`. Keys are case-insensitive, as Slurm's are. Sources:
Slurm's src/api/config_info.c for what scontrol prints, src/common/parse_config.c for the files.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import ConfigError, PageferryError, SchedulerError, Vanished
from pageferry.kernel.files import printable, read_file

_TIME_LIMIT_SECONDS = 5.0
_SHOWN = re.compile(rb"^(\w+)(?:\[[0-9]+\])?[ ]*= ?(.*)$", re.MULTILINE)
_PAIR = re.compile(r'(?<![\w.])([\w.]++)\s*+[-*+/]?=\s*("[^"]*"|\S+)')
_INCLUDE = re.compile(r"include\s+(\S+)\s*", re.IGNORECASE)
_DEPTH = 8
"""Files that include each other would never end."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A key and its value in a configuration file; those that describe a node or partition are among them."""

    key: str
    value: str
    path: Path
    line: int


@dataclass(frozen=True, slots=True)
class SlurmConfig:
    """What `scontrol show config` printed: values by key in small letters; since 24.05 Prolog can have several."""

    values: Mapping[str, tuple[str, ...]]

    def all(self, key: str) -> tuple[str, ...]:
        """Return all values of a key that are set: Slurm writes (null) for one that is not."""
        return tuple(value for value in self.values.get(key.lower(), ()) if value not in {"", "(null)"})

    def get(self, key: str) -> str | None:
        """Return the value of a key, or None where it is not set."""
        return next(iter(self.all(key)), None)

    def folder(self) -> Path:
        """Return the folder of slurm.conf, where Slurm looks for the other files."""
        return Path(self.get("SLURM_CONF") or "/etc/slurm/slurm.conf").parent


def ask_config(scontrol: str = "scontrol") -> SlurmConfig:
    """Return how slurmctld is configured. Raises SchedulerError when it does not say within 5 s."""
    command = [scontrol, "show", "config"]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIME_LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(f"scontrol did not answer within {_TIME_LIMIT_SECONDS:.0f} s") from error
    except OSError as error:
        raise SchedulerError(f"{scontrol} cannot be run: {error.strerror}") from error
    if answer.returncode != 0:
        raise SchedulerError(f"slurmctld does not answer: {printable(answer.stderr.strip()[:160])}")
    return parse_shown(answer.stdout)


def cluster_name(scontrol: str = "scontrol", root: Path = Path("/")) -> str | None:
    """Return the ClusterName of this host's slurm.conf, or else slurmctld's word; None if neither says."""
    named = os.environ.get("SLURM_CONF")
    places = [Path(named)] if named else [root / "etc/slurm/slurm.conf", root / "run/slurm/conf/slurm.conf"]
    for place in places:
        with suppress(PageferryError):
            names = [setting.value for setting in read_settings(place) if setting.key.lower() == "clustername"]
            if names:
                return names[-1].lower()  # as Slurm has it
    with suppress(SchedulerError):
        return ask_config(scontrol).get("ClusterName")
    return None


def parse_shown(text: bytes) -> SlurmConfig:
    """Return what `scontrol show config` printed; the cgroup section is in it, with the rest."""
    values: dict[str, list[str]] = {}
    for key, value in _SHOWN.findall(text):
        values.setdefault(key.decode().lower(), []).append(printable(value.rstrip(b" ")))
    return SlurmConfig({key: tuple(every) for key, every in values.items()})


def read_settings(path: Path, may_lack: Collection[str] = ()) -> tuple[Setting, ...]:
    """Return all that a slurm.conf or cgroup.conf sets, in its order, included files in their place.

    Included files with names in `may_lack` need not be there. Raises ConfigError for any other that cannot be read,
    or that is included too deep.
    """
    return tuple(_settings(path, may_lack, _DEPTH))


def _settings(path: Path, may_lack: Collection[str], depth: int) -> list[Setting]:
    if depth == 0:
        raise ConfigError(f"{path}: included more than {_DEPTH} deep")
    try:
        text = read_file(path).decode("utf-8", "backslashreplace")
    except Vanished as error:
        if path.name in may_lack:
            return []
        raise ConfigError(str(error)) from error
    found: list[Setting] = []
    number, joined = 0, ""
    for at, line in enumerate(text.splitlines(), 1):
        number = number if joined else at
        joined += re.sub(r"(?<!\\)#.*", "", line).rstrip()
        if joined.endswith("\\"):  # Slurm goes on with the next line
            joined = joined[:-1]
            continue
        stripped, joined = joined.strip(), ""
        if include := _INCLUDE.fullmatch(stripped):
            # An absolute path stays as it is; any other is below the folder of this file. "%c" is not followed.
            if "%" not in include[1]:
                found += _settings(path.parent / include[1], may_lack, depth - 1)
        else:
            pairs = _PAIR.findall(stripped)
            found += [Setting(key, printable(value.strip('"')), path, number) for key, value in pairs]
    return found

"""The site's settings: `/etc/pageferry/pageferry.toml`, then `policy.d/*.toml` beside it, by name → `Settings`.

A key is a field of one of the structs below, with its default, its limits and what it is for; those of rules are in
`policy`. A key of a later file takes the place of an earlier one's, and so does a rule that has the name of an earlier
one, at its place. How a file is read, and what is said of its faults, is `toml_file`'s; what a setting means is left to
those who are handed it.
"""

from __future__ import annotations

import pwd
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pageferry import policy, toml_file
from pageferry.errors import ConfigError, PageferryError, Vanished
from pageferry.kernel.files import read_file, translated
from pageferry.policy import Facts, Policy, Rate, Rule, Special
from pageferry.toml_file import Bytes
from pageferry.toml_lines import Key
from pageferry_planner.model import WhenFull

PATH = Path("/etc/pageferry/pageferry.toml")
FOLDER = "policy.d"
_FILE_BYTES = 4 << 20
TEXTFILE = Path("/var/lib/prometheus/node-exporter")
"""Where Debian's node exporter has its textfile collector look."""

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")


class Folder(str):
    """The absolute path of a directory, or "": none."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Folder:
        """Return the folder that a file's value means. Raises ValueError, which says what would be right."""
        if not isinstance(value, str) or (value and not value.startswith("/")) or not value.isprintable():
            raise ValueError('expected the absolute path of a directory, or "" for none')
        return cls(value)


class Address(str):
    """An IP address of this host and a port, as "127.0.0.1:9797" or "[::1]:9797"; names would have to be asked for."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Address:
        """Return the address that a file's value means. Raises ValueError, which says what would be right."""
        match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
        with suppress(OSError, ValueError):
            if match is not None and 0 < int(match["port"]) < 1 << 16:
                six = match["six"]
                socket.inet_pton(socket.AF_INET if six is None else socket.AF_INET6, match["four"] or six)
                return cls(match[0])
        raise ValueError('expected an IP address and a port, such as "127.0.0.1:9797" or "[::1]:9797"')

    @property
    def host(self) -> str:
        """The IP address."""
        return self.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.rpartition(":")[2])


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

    enabled: Annotated[bool, Meta(description="It comes home.")] = True
    least_bytes: Annotated[Bytes, Meta(description="Less than this is not worth a move.")] = Bytes(16 << 20)
    rate: Annotated[Rate, Meta(description="Bytes per second, since the job runs meanwhile.")] = Rate(256 << 20)


class Cpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cpus]`: jobs may be given other CPUs than Slurm's."""

    enabled: Annotated[bool, Meta(description="Jobs may be given other CPUs than Slurm's.")] = True


class HostNodes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[nodes]`: memory that is not like the others' (HBM, a GPU's, CXL)."""

    special: (
        Annotated[
            Special,
            Meta(
                description="Nodes whose memory is there on purpose: it stays, and no other spills there, unless a "
                "move or a rule names the node. A list, of which each host has those that it has; or `cpuless`, all "
                "nodes with memory and without CPUs. Default: none."
            ),
        ]
        | None
    ) = None


class Pbs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[pbs]`: what holds for jobs of OpenPBS."""

    hold: Annotated[
        bool, Meta(description="Hold a job beyond its resume until its memory is there, at most max_hold_seconds.")
    ] = True


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[metrics]`: what the agent tells Prometheus, and how."""

    textfile: (
        Annotated[Folder, Meta(description='Where the textfile collector looks; "": no file. Default: Debian\'s.')]
        | None
    ) = None
    listen: Annotated[Address, Meta(description="Also answer GET /metrics there.")] | None = None

    def folder(self) -> Path | None:
        """Return where the file goes, if anywhere: where the site says, else to Debian's folder if that is there."""
        if self.textfile is not None:
            return Path(self.textfile) if self.textfile else None
        return TEXTFILE if TEXTFILE.is_dir() else None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings; a key that no file names has its default. `rule`: the site's rules, in the order they are asked."""

    agent: Agent = Agent()
    spill: Spill = Spill()
    cpus: Cpus = Cpus()
    nodes: HostNodes = HostNodes()
    pbs: Pbs = Pbs()
    metrics: Metrics = Metrics()
    rule: tuple[Rule, ...] = ()

    @property
    def host(self) -> Policy:
        """What holds for a job that no rule matches."""
        return Policy(
            max_hold_seconds=self.agent.max_hold_seconds,
            workers=self.agent.workers,
            when_full=WhenFull(self.agent.when_full),
            spill_enabled=self.spill.enabled,
            spill_least_bytes=self.spill.least_bytes,
            spill_rate=self.spill.rate,
            special=self.nodes.special or Special(),
        )

    def policy(self, facts: Facts) -> Policy:
        """Return what holds for a job."""
        return policy.decide(self.rule, facts, self.host)

    @property
    def asks_of_jobs(self) -> bool:
        """Whether a job's policy depends on what only its scheduler knows of it."""
        return policy.asks_of_jobs(self.rule)

    @property
    def spills(self) -> bool:
        """Whether the memory of any job may come home."""
        return self.spill.enabled or any(rule.spill.enabled for rule in self.rule)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: of which files, and every fault, a line each. With a single one the settings are no site's."""

    settings: Settings
    files: tuple[Path, ...]
    faults: tuple[str, ...]


def load(path: Path = PATH, *, here: bool = False) -> Settings:
    """Return the settings of a file and of the folder beside it; what is not there is all defaults.

    `here` is `read_files`'s. Raises ConfigError with the first fault.
    """
    reading = read(path, here=here)
    if found := reading.faults:
        raise ConfigError(found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
    return reading.settings


def faults(path: Path = PATH) -> list[str]:
    """Return every fault of a file and of those in the folder beside it; what is not there has none."""
    return list(read(path).faults)


def read(path: Path = PATH, *, here: bool = False) -> Reading:
    """Return what a site's file and those in the folder beside it say; `here` is `read_files`'s."""
    folder = path.parent / FOLDER
    try:
        more = sorted(entry for entry in folder.iterdir() if entry.suffix == ".toml" and entry.name[0] != ".")
    except OSError as error:
        problem = translated(error, folder)
        more = []
        if not isinstance(problem, Vanished):
            reading = read_files([path], may_lack=path, here=here)
            return Reading(reading.settings, reading.files, (*reading.faults, str(problem)))
    return read_files([path, *more], may_lack=path, here=here)


def read_files(paths: Iterable[Path], *, may_lack: Path | None = None, here: bool = False) -> Reading:
    """Return what files say, each over those before it.

    `may_lack`: that one is no fault if it is not there; `here`: what the settings name has to be on this host.
    """
    data: dict[str, Any] = {}
    files: list[Path] = []
    found: list[str] = []
    for path in paths:
        try:
            raw = read_file(path, _FILE_BYTES)
        except PageferryError as error:
            if not (path == may_lack and isinstance(error, Vanished)):
                found.append(str(error))
            continue
        files.append(path)
        said, wrong = toml_file.read(raw, str(path), Settings, _faults_here if here else _faults)
        found += wrong
        _put_over(data, said or {})
    settings = Settings() if found else toml_file.convert(data, Settings)
    return Reading(settings, tuple(files), tuple(found))


def _faults(settings: Settings) -> Iterable[tuple[Key, str]]:
    return policy.faults(settings.rule)


def _faults_here(settings: Settings) -> Iterator[tuple[Key, str]]:
    if settings.agent.slurm_user is not None:
        try:
            pwd.getpwnam(settings.agent.slurm_user)
        except (KeyError, ValueError):
            yield ("agent", "slurm_user"), "no such user on this host"
    yield from _faults(settings)


def _put_over(data: dict[str, Any], later: dict[str, Any]) -> None:
    """Put what a later file says over what those before it said; both are well-formed."""
    for name, said in later.items():
        if name != "rule":
            data.setdefault(name, {}).update(said)
            continue
        rules = data.setdefault("rule", [])
        places = {rule["name"]: place for place, rule in enumerate(rules)}
        for rule in said:
            if rule["name"] in places:
                rules[places[rule["name"]]] = rule
            else:
                rules.append(rule)

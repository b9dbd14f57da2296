"""Writes what pageferry needs of a site's slurm.conf and cgroup.conf, as files to Include, and never over others' work.

The text is in contrib/slurm.conf.d (templates), the hooks it names in hooks/slurm; both are inside an installed
package, too. Whether a running Slurm has it all is left to the doctor.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import jinja2

from pageferry.errors import ConfigError, PageferryError, UsageError, Vanished
from pageferry.kernel.files import printable, read_file
from pageferry.schedulers.slurm_config import Setting, read_settings

FILES = {"pageferry.conf": "slurm.conf", "pageferry-cgroup.conf": "cgroup.conf"}
"""What is written, and which of Slurm's files includes it."""

_TEMPLATES = {"pageferry.conf": "pageferry.conf.j2", "pageferry-cgroup.conf": "cgroup.conf.j2"}
_KEYS = (
    "ProctrackType",
    "TaskPlugin",
    "Prolog",
    "Epilog",
    "JobSubmitPlugins",
    "HealthCheckProgram",
    "HealthCheckInterval",
    "ConstrainCores",
)
_HEAD = "# Written by `pageferry render {}`, checksum {}. A file that was edited is not written again.\n"
_HEAD_PATTERN = re.compile(re.escape(_HEAD).replace(r"\{\}", "[a-z]+", 1).replace(r"\{\}", "([0-9a-f]{64})"))
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@:-]*")
"""What slurm.conf takes as one word: no blank, quotation mark, comment sign or line end, and no pattern of glob(7)."""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What a site decides: where the hooks are on its hosts, and which keys its own files go on setting.

    `beside` is the folder of slurm.conf: keys that are set there are left out. `health_check_seconds` None: no health
    check of ours.
    """

    hooks: Path
    health_check_seconds: int | None = None
    without: frozenset[str] = frozenset()
    beside: Path | None = None
    force: bool = False


class Action(Enum):
    """What became of a file."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One file: where it is, which of Slurm's files is to include it, and the keys that it leaves to the site."""

    path: Path
    action: Action
    included_by: str
    left_out: dict[str, str]


def shipped(name: str) -> Path:
    """Return a folder that is shipped with pageferry: "hooks", or one of contrib/; installed or in the repository.

    Where the Debian package put it elsewhere, that is the place: no path with Python's version in it.
    """
    package = Path(__file__).resolve().parent
    installed = package / "share" / name
    repository = package.parents[1]
    return installed.resolve() if installed.is_dir() else repository / ("." if name == "hooks" else "contrib") / name


def render_slurm(folder: Path, options: SlurmOptions) -> tuple[Rendered, ...]:
    """Write the files into `folder`, all of them or none.

    Raises UsageError for a value that Slurm could not read, and for a file there that pageferry did not write or that
    was edited since (not with `force`); ConfigError for files of the site's that cannot be read.
    """
    _check(options)
    left_out = _left_out(options)
    values = {"hooks": str(options.hooks), "health_check_seconds": options.health_check_seconds, "left_out": left_out}
    texts = {folder / name: text_of("slurm.conf.d", _TEMPLATES[name], "slurm", name=name, **values) for name in FILES}
    todo = {path for path, text in texts.items() if not is_written(path, text, options.force)}
    write_all(folder, {path: texts[path] for path in todo})
    return tuple(
        Rendered(
            path=path,
            action=Action.WRITTEN if path in todo else Action.UNCHANGED,
            included_by=FILES[path.name],
            left_out={key: why for key, why in left_out.items() if f"# {key} is left out" in texts[path]},
        )
        for path in texts
    )


def lines(rendered: tuple[Rendered, ...], options: SlurmOptions) -> list[str]:
    """Return what became of each file, and what is left to do, for people."""
    said = []
    for file in rendered:
        said.append(f"{file.action.value:<9} {file.path}: for `Include {file.path.name}` in {file.included_by}")
        said += [f"          {key} is left out: {why}" for key, why in file.left_out.items()]
    if not (options.hooks / "prolog.d").is_dir():
        said.append(f"{options.hooks} is not on this host; it must be on every host that runs jobs")
    said.append("then restart slurmctld and all slurmd, and ask `pageferry doctor`")
    return said


def _check(options: SlurmOptions) -> None:
    check_path("hooks", options.hooks)
    if options.health_check_seconds is not None and not 1 <= options.health_check_seconds <= 65533:
        raise UsageError(f"health check: not 1 to 65533 seconds: {options.health_check_seconds}")
    known = {key.lower() for key in _KEYS}
    for key in sorted(options.without):
        if key.lower() not in known:
            shown = printable(key[:80])
            raise UsageError(f"without: {shown!r} is none of {', '.join(_KEYS)}")


def _left_out(options: SlurmOptions) -> dict[str, str]:
    """Return the keys that are left to the site, and why."""
    found: dict[str, str] = {}
    settings: list[Setting] = []
    if options.beside is not None:
        for name in FILES.values():
            if name == "slurm.conf" or (options.beside / name).exists():
                settings += read_settings(options.beside / name, may_lack=FILES)
    without = {key.lower() for key in options.without}
    for key in _KEYS:
        if key.lower() in without:
            found[key] = "asked for by --without"
        for setting in settings:
            if setting.key.lower() == key.lower() and setting.path.name not in FILES:
                place = printable(setting.path)
                found[key] = f"{place} line {setting.line} sets {setting.value}"
    return found


def check_path(name: str, path: Path, file: str = "slurm.conf") -> None:
    """Raise UsageError for a path that `file` cannot have as one word."""
    if not _PLAIN_PATH.fullmatch(str(path)):
        shown = printable(path)
        raise UsageError(f"{name}: not an absolute path that {file} can name: {shown!r}")


def text_of(folder: str, template: str, scheduler: str, **values: object) -> str:
    """Return what a template of a folder of contrib/ gives, under a head by which it is known to be ours."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped(folder)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no HTML; values are validated before
    )
    try:
        body = environment.get_template(template).render(values)
    except jinja2.TemplateError as error:
        raise ConfigError(f"{template}: {error}") from error
    body = body.rstrip("\n") + "\n"
    return _HEAD.format(scheduler, hashlib.sha256(body.encode()).hexdigest()) + body


def is_written(path: Path, text: str, force: bool) -> bool:
    """Say whether the file is as it should be; raises UsageError for one that is not ours to write."""
    try:
        old = None if path.is_symlink() else read_file(path).decode("utf-8", "backslashreplace")
    except Vanished:
        return False
    except PageferryError as error:
        raise UsageError(str(error)) from error
    if old == text:
        return True
    head = _HEAD_PATTERN.match(old) if old is not None else None
    if not force and old is not None and head is not None:
        if head[1] != hashlib.sha256(old[head.end() :].encode()).hexdigest():
            raise UsageError(f"{path}: was edited since it was written; --force overwrites it")
    elif not force:
        raise UsageError(f"{path}: is not pageferry's; --force overwrites it")
    return False


def write_all(folder: Path, texts: Mapping[Path, str]) -> None:
    """Write files of a folder. Raises UsageError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in sorted(texts.items()):
            _replace(path, text)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from error


def _replace(path: Path, text: str) -> None:
    """Write a file so that a daemon which starts meanwhile reads the old or the new one, never half of it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # every command of Slurm's reads it, as any user
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

"""Writes what installs pageferry's hook in OpenPBS: a qmgr script, and the hook's configuration.

The hook itself is hooks/pbs/pageferry_hook.py, which also knows what its configuration may say. Whether a running PBS
has it all is left to the doctor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pageferry import render
from pageferry.errors import PageferryError, UsageError
from pageferry.kernel.files import printable, read_file
from pageferry.pbs.event import Kind
from pageferry.render import Action, Rendered

SCRIPT, CONFIG = "pageferry.qmgr", "pageferry-hook.json"
ALARM_SECONDS = 30
"""PBS's own default."""

ORDER = 200
"""Behind pbs_cgroups, which has 100."""


@dataclass(frozen=True, slots=True)
class PbsOptions:
    """What a site decides: where the server finds the hook, what hosts start without an agent, the hook's times."""

    hooks: Path
    command: Path
    alarm_seconds: int = ALARM_SECONDS
    freq_seconds: int = 120
    resources: bool = True
    force: bool = False


def render_pbs(folder: Path, options: PbsOptions) -> tuple[Rendered, ...]:
    """Write the files into `folder`, all of them or none; raises as `render.render_slurm` does.

    A configuration that is there already is the site's, and is left, but with `force`.
    """
    for name, path in (("hooks", options.hooks), ("command", options.command), ("out", folder.absolute())):
        render.check_path(name, path, "qmgr")
    for name, seconds in (("alarm", options.alarm_seconds), ("freq", options.freq_seconds)):
        if not 5 <= seconds <= 3600:
            raise UsageError(f"{name}: not 5 to 3600 seconds: {seconds}")
    script, config = folder / SCRIPT, folder / CONFIG
    text = render.text_of(
        "pbs",
        f"{SCRIPT}.j2",
        "pbs",
        name=SCRIPT,
        events=[kind.value for kind in Kind],
        order=ORDER,
        alarm=options.alarm_seconds,
        freq=options.freq_seconds,
        hooks=str(options.hooks),
        config=str(config.absolute()),
        resources=options.resources,
    )
    if not options.force and config.exists() and _alarm_in(config) != options.alarm_seconds:
        raise UsageError(f"{config}: says another alarm than --alarm {options.alarm_seconds}: change one of them")
    todo = {} if render.is_written(script, text, options.force) else {script: text}
    if options.force or not config.exists():
        todo[config] = _config(options)
    render.write_all(folder, todo)
    return tuple(
        Rendered(path, Action.WRITTEN if path in todo else Action.UNCHANGED, of, {})
        for path, of in ((script, "qmgr"), (config, "the hook"))
    )


def command(root: Path = Path("/")) -> Path:
    """Return where hosts have the command: where the Debian package has it, if it is installed here, else a link."""
    packaged = Path("/usr/bin/pageferry")
    return packaged if (root / packaged.relative_to("/")).exists() else Path("/usr/local/bin/pageferry")


def _alarm_in(config: Path) -> float | None:
    try:
        return alarm_of(read_file(config))
    except PageferryError as error:
        raise UsageError(str(error)) from error


def alarm_of(config: bytes) -> float | None:
    """Return the alarm that a hook's configuration says, or has by default; None if it says none that can be."""
    try:
        read = json.loads(config)
    except (ValueError, RecursionError):
        return None
    alarm = read.get("alarm", ALARM_SECONDS) if isinstance(read, dict) else None
    return alarm if isinstance(alarm, int | float) else None


def lines(rendered: tuple[Rendered, ...]) -> list[str]:
    """Return what became of each file, and what is left to do, for people."""
    said = [f"{file.action.value:<9} {printable(bytes(file.path))}: for {file.included_by}" for file in rendered]
    return [*said, f"then `qmgr < {SCRIPT}` on the server's host, and `pageferry doctor` on the hosts that run jobs"]


def _config(options: PbsOptions) -> str:
    config: dict[str, object] = {
        "command": [str(options.command), "pbs-event"],
        "alarm": options.alarm_seconds,
        "preresume_seconds": options.alarm_seconds * 2 // 3,
    }
    if options.resources:
        config |= {"request_resource": "pageferry", "outcome_resource": "pageferry_outcome"}
    return json.dumps(config, indent=2) + "\n"

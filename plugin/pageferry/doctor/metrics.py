"""Whether metrics get out: whether the folder of the textfile collector can be written, and the address be listened at.

An agent that runs knows it better than anybody else, and is asked first: it may see another file system than we do
(ProtectSystem= of its unit), and it has the address already.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pageferry import config, wire
from pageferry.config import Address
from pageferry.doctor.findings import Finding, ok, warn
from pageferry.errors import ConfigError, PageferryError
from pageferry.kernel.files import printable
from pageferry.kernel.sockets import listening

_SECONDS = 2.0


def examine_metrics(path: Path = config.PATH, agent: Path = wire.PATH) -> Iterator[Finding]:
    """Look at where the settings have metrics go."""
    try:
        settings = config.load(path).metrics
    except ConfigError:
        return  # told of the settings
    faults = _faults(agent)
    for fault in faults or ():
        yield warn("metrics", fault)
    if not faults:
        yield _textfile(settings.folder(), tried=faults is not None)
    if settings.listen and not any("metrics.listen" in fault for fault in faults or ()):
        yield _listen(settings.listen, taken=wire.present(agent))


def _faults(agent: Path) -> list[str] | None:
    """Return what the agent says of it, None if none does."""
    with suppress(PageferryError):
        return [str(fault) for fault in wire.ask(agent, {"verb": "status"}, _SECONDS).get("metrics_faults", [])]
    return None


def _textfile(folder: Path | None, *, tried: bool) -> Finding:
    """Look at the folder; the agent has `tried` it already: then it can be written, whatever it seems to us."""
    if folder is None:
        return ok("metrics textfile", f"none: there is no {config.TEXTFILE}, or textfile is empty")
    named = printable(folder)
    try:
        status = folder.stat()
    except OSError as error:
        return warn("metrics textfile", f"{named}: {error.strerror}: make it, or change textfile in [metrics]")
    if not stat.S_ISDIR(status.st_mode):
        return warn("metrics textfile", f"{named} is no directory: change textfile in [metrics]")
    mine = status.st_mode & (
        stat.S_IWUSR if status.st_uid == 0 else stat.S_IWGRP if status.st_gid == 0 else stat.S_IWOTH
    )
    if not mine and not tried:
        why = "the agent, root without CAP_DAC_OVERRIDE, may not write there"
        return warn("metrics textfile", f"{named}: {why}: chown root and chmod u+w, or change textfile in [metrics]")
    if not tried and os.statvfs(folder).f_flag & os.ST_RDONLY:
        return warn("metrics textfile", f"{named} is on a read-only file system: change textfile in [metrics]")
    return ok("metrics textfile", named)


def _listen(address: Address, *, taken: bool) -> Finding:
    """Try an address: one that the host has not got is found now, and a port of others' if no agent has it."""
    try:
        listening(address.host, 0 if taken else address.port).close()
    except OSError as error:
        why = "is no address of this host" if error.errno == errno.EADDRNOTAVAIL else str(error.strerror)
        return warn("metrics address", f"{address}: {why}: change listen in [metrics]")
    return ok("metrics address", f"http://{address}/metrics")

"""Renders the page: a template, a style sheet, and a policy that lets a browser load and run nothing.

All that is shown is text of others (job names, paths, requests): it is made printable and escaped, each word of it, and
the policy (Content-Security-Policy) holds even if it were not.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pageferry import __version__
from pageferry.errors import UsageError
from pageferry.kernel.files import printable
from pageferry.page.view import newest_first
from pageferry.report import size, timestamp, why

_FOLDER = Path(__file__).parent
_COLOURS = 8
"""Nodes have colours of the style sheet, again from the first on after the last."""


def page(rows: Sequence[Mapping[str, Any]], host: str, now: float | None = None) -> str:
    """Return the page for migrations of the history, as `history` answers them with their ledgers; `host`: where."""
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": lambda count: size(count) if count else "0",
        "seconds": duration,
        "timestamp": timestamp,
        "clock": clock,
        "why": why,
        "colour": lambda node: f"n{node % _COLOURS}",
        "percent": lambda share: f"{share:.3f}".rstrip("0").rstrip(".") + "%",
        "share": lambda share: "<0.1 %" if 0 < share < 0.1 else f"{share:.1f} %",
        "grouped": lambda count: f"{count:,}",
    }
    return environment.get_template("report.html.j2").render(
        views=newest_first(rows),
        host=host,
        version=__version__,
        now=time.time() if now is None else now,
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def write(path: Path, text: str) -> None:
    """Write the page as a whole or not at all; into what is no file (a pipe) as it is. Raises UsageError."""
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be written: {error.strerror}") from error


def duration(seconds: float) -> str:
    """Return how long something took, as people read it."""
    if seconds < 0.0995:
        return f"{max(0.0, seconds) * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clock(seconds: float) -> str:
    """Return the time of day of a moment, to the millisecond."""
    return timestamp(seconds, "milliseconds").partition("T")[2] or timestamp(seconds)


def _shown(value: object) -> object:
    """Return text of others as one line of printable characters; what the template made itself as it is."""
    return printable(value) if type(value) is str else value

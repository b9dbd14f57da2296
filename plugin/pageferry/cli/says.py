"""What the commands say: outcomes, progress, and what they complain of; hostile names in it do no harm.

What is heavy is imported when it is needed, as in the commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pageferry.errors import MOST_CHARACTERS, shown

if TYPE_CHECKING:
    from pageferry.ferry import Request
    from pageferry_planner.model import Snapshot


def complain(text: str) -> None:
    """Say something on standard error, as one line that a terminal shows as it stands."""
    click.echo(f"pageferry: {shown(text, MOST_CHARACTERS)}", err=True)


def warn_of_gaps() -> None:
    """Say once, on standard error, what does not work without the capabilities that we lack."""
    from pageferry.kernel import capabilities

    for gap in capabilities.missing(capabilities.effective()):
        complain(f"without {gap.capability}: {gap.lost}")


def warn_of_use(request: Request, snapshot: Snapshot) -> None:
    """Say, on standard error, that it is not known what the job uses, if that was asked for."""
    from pageferry import hotness

    if request.hot_seconds is not None and snapshot.referenced is None:
        none = hotness.means() is hotness.Means.NONE
        why = "this kernel does not tell" if none else "it used nothing, or we may not mark its pages"
        complain(f"--hot: what the job uses is not known ({why}): what most processes map goes first")


def show_outcome(outcome: dict[str, Any], as_json: bool) -> int:
    """Print what became of every page; return the exit code."""
    from pageferry import report

    if as_json:
        click.echo(json.dumps(outcome))
    else:
        click.echo("\n".join(report.outcome_lines(outcome)))
    return 0 if outcome["complete"] else 1


@contextmanager
def progress(as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told of the progress: a bar on a terminal, plain lines in a log, nothing for a program."""
    if as_json:
        yield lambda _done, _of: None
    elif not sys.stderr.isatty():
        yield _plain_progress()
    else:
        import mmap

        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("move", total=None)
            yield lambda done, of: bar.update(task, completed=done * mmap.PAGESIZE, total=of * mmap.PAGESIZE)


def _plain_progress() -> Callable[[int, int], None]:
    said = 0

    def say(done: int, of: int) -> None:
        nonlocal said
        tenth = done * 10 // max(of, 1)
        if tenth > said:
            said = tenth
            click.echo(f"pageferry: {done} of {of} pages", err=True)

    return say

"""The command that writes what became of a job's memory as a page, from what `pageferry history` would be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pageferry.cli.says import complain
from pageferry.cli.site import ask
from pageferry.errors import UsageError


@click.command()
@click.argument("job", required=False)
@click.option("--migration", type=click.IntRange(min=1), metavar="ID", help="One migration, as `history` numbers them.")
@click.option("--html", "file", metavar="FILE", help="Where to write the page; - is standard output.")
@click.option("--limit", type=click.IntRange(1, 50), default=20, show_default=True, help="Migrations of a job at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead: what the page is made of.")
def report(job: str | None, migration: int | None, file: str | None, limit: int, as_json: bool) -> int:
    """Write what became of a job's memory as one page of HTML: a file to read, to send and to print.

    Of a JOB all migrations on this host, newest first; or one of them, by --migration: memory per node and per backing
    before and after, what stayed and why, and a time line of the stop. Users may ask about their own jobs.
    """
    if (job is None) == (migration is None):
        raise UsageError("name one: a JOB, or --migration ID (pageferry history shows both)")
    if (file is None) != as_json:
        raise UsageError("say where to: --html FILE, or --json")
    which: dict[str, Any] = {"job": job, "limit": limit} if job is not None else {"migration": migration}
    answer = ask({"verb": "history", "ledgers": True} | which)
    rows = answer["migrations"]
    if answer["fault"]:
        complain(f"the history is not whole: {answer['fault']}")
    if not rows:
        raise UsageError(f"no migration of job {job} on this host" if job is not None else f"no migration {migration}")
    if file is None:
        click.echo(json.dumps({"migrations": rows}))
        return 0
    from pageferry.page import render

    page = render.page(rows, rows[0]["host"])
    if file == "-":
        click.echo(page, nl=False)
    else:
        render.write(Path(file), page)
    return 0

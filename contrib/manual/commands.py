"""A manual page for each command, from what click knows of it: its help, its arguments, its options.

Section 1 is for what users and operators ask; 8 is for what a site's administrator and its daemons run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from manual.roff import escaped, items, page, paragraphs, references

ADMINISTRATORS = frozenset({"agent", "doctor", "pbs-event", "release", "render", "check-config"})
_EXITS = (
    ("0", "Done, or nothing to do."),
    ("1", "Done in part."),
    ("2", "What was asked makes no sense: usage."),
    ("3", "The configuration is wrong."),
    ("4", "Not possible here: not permitted, or not supported."),
)


def pages(program: click.Group) -> dict[str, str]:
    """Return the page of each command below a program, by file name."""
    return {
        f"man{section}/{name}.{section}": _page(name, section, context)
        for name, section, context in walk(program)
        if context.parent is not None
    }


def walk(program: click.Group) -> Iterator[tuple[str, int, click.Context]]:
    """Yield the page's name and section, and a context, of a program and of every command below it."""
    waiting = [program.make_context("pageferry", [], resilient_parsing=True)]
    while waiting:
        context = waiting.pop(0)
        words = context.command_path.split()
        yield "-".join(words), 8 if len(words) == 1 or words[1] in ADMINISTRATORS else 1, context
        if isinstance(context.command, click.Group):
            below = context.command.commands
            waiting += [below[name].make_context(name, [], context, resilient_parsing=True) for name in sorted(below)]


def summary(command: click.Command) -> str:
    """Return the first sentence of a command's help."""
    first = " ".join(_help(command).split("\n\n")[0].split())
    return first.split(": ")[0].split(". ")[0].rstrip(".")


def synopsis(context: click.Context) -> str:
    """Return the line that says how a command is called."""
    pieces = context.command.collect_usage_pieces(context)
    return f"\\fB{escaped(context.command_path)}\\fR " + " ".join(f"\\fI{escaped(piece)}\\fR" for piece in pieces)


def options(context: click.Context) -> list[str]:
    """Return the list of a command's options."""
    parameters = [one for one in context.command.get_params(context) if isinstance(one, click.Option)]
    return items(record for one in parameters if (record := one.get_help_record(context)) is not None)


def exits() -> list[str]:
    """Return what the exit codes mean, the same for all commands."""
    return items(_EXITS)


def _page(name: str, section: int, context: click.Context) -> str:
    command = context.command
    below = walk_below(context) if isinstance(command, click.Group) else ()
    return page(
        name,
        section,
        summary(command),
        [
            ("SYNOPSIS", [synopsis(context)]),
            ("DESCRIPTION", paragraphs(_help(command))),
            ("COMMANDS", items(below)),
            ("OPTIONS", options(context)),
            ("EXIT STATUS", exits()),
            ("SEE ALSO", references([("pageferry", 8), ("pageferry.toml", 5)])),
        ],
    )


def walk_below(context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the commands of a group, each with its summary."""
    assert isinstance(context.command, click.Group)
    for name, command in sorted(context.command.commands.items()):
        yield f"{context.command_path} {name}", summary(command) + "."


def _help(command: click.Command) -> str:
    text = inspect.cleandoc(command.help or "").split("\f")[0]
    assert text, f"{command.name} says nothing of itself"
    return text.replace("\b\n", "")

"""The scripts by which bash, zsh and fish complete pageferry's words: click's own, written to files.

A shell loads such a file when somebody first presses the key for it, not when it starts.
"""

from __future__ import annotations

import click
from click.shell_completion import BashComplete as _Bash
from click.shell_completion import FishComplete, ZshComplete


class BashComplete(_Bash):
    """The same text wherever it is made: click asks the bash of this machine for its version."""

    @staticmethod
    def _check_version() -> None:
        return


def scripts(program: click.Group) -> dict[str, str]:
    """Return the script for each shell, by file name."""
    return {
        f"completion/pageferry.{kind.name}": kind(program, {}, "pageferry", "_PAGEFERRY_COMPLETE").source().lstrip()
        for kind in (BashComplete, ZshComplete, FishComplete)
    }

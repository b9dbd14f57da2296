"""Writes it all below a folder: man1/, man5/, man8/, completion/ and pageferry.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from manual import commands, completion, overview, settings
from pageferry.cli.main import commands as cli
from pageferry.config import Settings


def write(folder: Path) -> None:
    """Write every file, and what folders it needs."""
    texts = commands.pages(cli) | overview.pages(cli) | settings.pages(Settings) | completion.scripts(cli)
    texts["pageferry.toml"] = settings.sample(Settings)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

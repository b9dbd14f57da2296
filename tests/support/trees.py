"""Plants captured trees of /proc, /sys and cgroups, so that the readers can be pointed at them as at a host.

A tree is one text file: free text, then for each file a line "-- path --" and its content, or for each symbolic
link a line "-- path -> target --". (The format is Go's txtar, which has no links.)
"""

from __future__ import annotations

import re
from pathlib import Path

FIXTURES = Path(__file__).parent.parent / "fixtures"
_HEADER = re.compile(r"^-- (.+?)(?: -> (.+))? --\n", re.MULTILINE)


def plant(name: str, root: Path) -> Path:
    """Write the tree of tests/fixtures/NAME.txtar below `root`, and return `root`."""
    text = (FIXTURES / f"{name}.txtar").read_text()
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=True):
        path = root / header[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if header[2]:
            path.symlink_to(header[2])
        else:
            path.write_text(text[header.end() : end])
    return root


def write(root: Path, path: str, content: bytes | str) -> Path:
    """Write one file below `root`, over the one that is there, and return `root`."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    return root

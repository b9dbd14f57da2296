"""The benchmark's C programs, compiled where they are first asked for: with gcc (package gcc, and libc6-dev)."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "bench"


def program(name: str) -> Path:
    """Return the program made of `name`.c, compiled unless what is there is newer than its source."""
    source, made = HERE / f"{name}.c", CACHE / name
    if not made.exists() or made.stat().st_mtime_ns < source.stat().st_mtime_ns:
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-pthread", "-o", made, source], check=True)
    return made

"""Slurm's commands without processes; squeue pads and cuts fields as Slurm's does (src/squeue/print.c, _print_str)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping

import pytest

from pageferry.schedulers.slurm_commands import SlurmCommands

ROW = {
    "JobID": "7",
    "JobArrayID": "7",
    "State": "RUNNING",
    "UserID": "1000",
    "UserName": "ada",
    "Partition": "main",
    "QOS": "normal",
    "Account": "chem",
    "Feature": "(null)",
    "NumNodes": "1",
    "NumCPUs": "4",
    "NodeList": "n1",
    "admin_comment": "(null)",
    "Comment": "(null)",
    "Name": "a.sh",
}


def printed(rows: Iterable[Mapping[str, str | bytes]], asked: str) -> bytes:
    """Return what squeue prints of jobs for a --Format."""
    said = b""
    for row in rows:
        for field in asked.split(","):
            name, width = field.split(":")
            value = row[name]
            raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
            said += raw[: int(width)].ljust(int(width))
        said += b"\n"
    return said


def answer_with(
    patch: pytest.MonkeyPatch, rows: Iterable[Mapping[str, str | bytes]], spoilt: Callable[[bytes], bytes] = bytes
) -> None:
    """Have `SlurmCommands` told of these jobs; `spoilt` changes what squeue prints. There is one host, n1."""
    known = list(rows)

    def run(_commands: SlurmCommands, _seconds: float, *words: str) -> subprocess.CompletedProcess[bytes]:
        said = b"n1\n"
        if words[0] == "squeue":
            said = spoilt(printed(known, words[-1].removeprefix("--Format=")))
        return subprocess.CompletedProcess(words, 0, said, b"")

    patch.setattr(SlurmCommands, "_run", run)

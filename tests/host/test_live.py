"""What must hold of `pageferry status --watch`: a picture on a terminal, frames elsewhere, and a good end of either."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.slurm_groups import slurm_job

SECONDS = 60.0
ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"


@contextmanager
def watching(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command with a pipe for its output."""
    command = [sys.executable, "-m", "pageferry", "status", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen[str], end: str, times: int) -> list[str]:
    """Return the lines that come until one has begun with `end` so many times."""
    assert process.stdout is not None
    lines: list[str] = []
    while sum(line.startswith(end) for line in lines) < times:
        assert select.select([process.stdout], [], [], SECONDS)[0], lines
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        lines.append(line)
    return lines


def ended(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    return process.returncode, said


def test_elsewhere_than_on_a_terminal_a_plain_frame_is_printed_each_time_until_ctrl_c() -> None:
    with slurm_job("v2") as job, watching("--watch", "0.2") as process:
        lines = lines_until(process, f"{job.number} ", 3)
        assert ended(process, signal.SIGINT) == (0, "")
    text = "".join(lines)
    assert text.count("node  CPUs") == 3
    assert "\x1b" not in text
    assert f"{job.number}" in text


def test_a_job_that_ends_is_shown_no_more_and_the_watch_goes_on() -> None:
    with slurm_job("v2") as job, watching(str(job.number), "--watch", "0.2") as process:
        lines_until(process, f"{job.number} ", 1)
        for one in job.processes:
            one.kill()
            one.wait()
        for group in sorted(job.group.rglob("*"), reverse=True):
            if group.is_dir():
                group.rmdir()
        job.group.rmdir()
        lines_until(process, "no batch job to be seen on this host", 2)
        assert ended(process, signal.SIGINT) == (0, "")


def test_a_program_gets_an_object_on_each_line() -> None:
    with slurm_job("v2") as job, watching("--watch", "0.2", "--json") as process:
        first, second = (json.loads(line) for line in lines_until(process, "{", 2))
        assert ended(process, signal.SIGINT) == (0, "")
    assert first["at"] < second["at"]
    assert str(job.number) in {one["id"] for one in second["jobs"]}
    assert second["nodes"][0]["total_bytes"] > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_terminal_has_a_picture_and_is_given_back_as_it_was(number: signal.Signals, code: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pageferry", "status", "--watch", "0.2"]
    environment = {**os.environ, "TERM": "xterm-256color", "LINES": "30", "COLUMNS": "120"}
    with slurm_job("v2") as job:
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment)
        os.close(theirs)
        heard = b""
        while heard.count(str(job.number).encode()) < 2:
            assert select.select([ours], [], [], SECONDS)[0], heard
            heard += os.read(ours, 65536)
        process.send_signal(number)
        heard = heard + rest(ours)
        _, said = process.communicate(timeout=SECONDS)
    os.close(ours)
    assert (process.returncode, said) == (code, b"")
    assert heard.startswith(ALTERNATE)
    assert heard.rindex(BACK) > heard.rindex(ALTERNATE)
    assert heard.rindex(b"\x1b[?25h") > heard.rindex(b"\x1b[?25l"), "the cursor is there again"


def rest(terminal: int) -> bytes:
    """Return what a terminal is still told until its last program has ended."""
    heard = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has it open
            return heard
        if not chunk:
            return heard
        heard += chunk


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--watch", "0"], "Invalid value for '--watch'"),
        (["--watch", "4711"], "is not in the range 0.2<=x<=60"),
        (["--watch", "12.server"], "Invalid value for '--watch'"),
        (["--pid", "1", "--watch"], "--watch: shows batch jobs"),
        (["--cgroup", "/", "--watch", "2"], "--watch: shows batch jobs"),
        (["4294967", "--watch"], "no such job on this host: 4294967"),
    ],
)
def test_what_cannot_be_watched_is_said_at_once(words: list[str], says: str) -> None:
    command = [sys.executable, "-m", "pageferry", "status", *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr

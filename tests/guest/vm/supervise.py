"""One qemu process from start to end: its output passed on as it comes, its time limited, its end certain.

Nothing here knows what runs in the guest, so that the tests can put any program in qemu's place.
"""

import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from guest.vm.errors import GuestError, NotBootedError

CONSOLE_LINES = 100
BOOTED = b"guest: the command starts"
"""What pid1.sh writes to the console."""


def run(
    argv: Sequence[str],
    status: Path,
    console: Path,
    timeout_s: float | None,
    out: BinaryIO,
    complaints: int | None = None,
    boot_s: float | None = None,
) -> int:
    """Run a guest, copy its output to `out`, and return the exit code that it wrote to `status`.

    Raises GuestError, with the end of the console, when the guest is not done after `timeout_s` seconds or ends
    without an exit code; with `boot_s` NotBootedError when it ends before its command begins, or that has not begun
    after so many seconds. `complaints` takes qemu's own standard error, by default the caller's.
    """
    console.unlink(missing_ok=True)
    with _process(argv, complaints) as qemu:
        try:
            if boot_s is not None:
                _await_boot(qemu, console, boot_s)
            _relay(qemu, None if timeout_s is None else time.monotonic() + timeout_s, out)
        except TimeoutError:
            raise GuestError(_with_console(f"the guest was ended after {timeout_s:g} s", console)) from None
    return exit_code(status, console)


def run_on_terminal(argv: Sequence[str], status: Path, console: Path) -> int:
    """Run a guest that has this process's terminal, and return its exit code."""
    saved = subprocess.run(["stty", "-g"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    try:
        with subprocess.Popen(_bound(argv)) as qemu:
            qemu.wait()
    finally:
        # qemu leaves the terminal raw when it is killed.
        subprocess.run(["stty", saved], check=False)
    return exit_code(status, console)


def exit_code(status: Path, console: Path) -> int:
    """Read the exit code that came out of the guest; GuestError if none did."""
    text = status.read_text().strip() if status.exists() else ""
    if not text.isdecimal():
        raise GuestError(_with_console("the guest ended before the command did", console))
    return int(text)


def _bound(argv: Sequence[str]) -> list[str]:
    # prctl(2) PR_SET_PDEATHSIG: no guest outlives its harness, however that ends.
    return ["setpriv", "--pdeathsig", "KILL", *argv]


@contextmanager
def _process(argv: Sequence[str], complaints: int | None) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C reaches the harness alone, which then ends qemu here.
    with subprocess.Popen(
        _bound(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        start_new_session=True,
    ) as qemu:
        try:
            yield qemu
        finally:
            qemu.kill()


def _await_boot(qemu: subprocess.Popen[bytes], console: Path, boot_s: float) -> None:
    """Wait until the guest's command begins; NotBootedError if the guest ends before. Its output waits in the pipe."""
    deadline = time.monotonic() + boot_s
    while True:
        ended = qemu.poll() is not None
        if console.exists() and BOOTED in console.read_bytes():
            return
        if ended:
            raise NotBootedError(_with_console("the guest ended before its command began", console))
        if time.monotonic() > deadline:
            raise NotBootedError(_with_console(f"the guest's command had not begun after {boot_s:g} s", console))
        time.sleep(0.05)


def _relay(qemu: subprocess.Popen[bytes], deadline: float | None, out: BinaryIO) -> None:
    """Copy until the guest closes its end; TimeoutError at the deadline (time.monotonic())."""
    assert qemu.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(qemu.stdout, selectors.EVENT_READ)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            if selector.select(left):
                data = os.read(qemu.stdout.fileno(), 65536)
                if not data:
                    break
                out.write(data)
                out.flush()
    try:
        qemu.wait(None if deadline is None else max(deadline - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


def _with_console(what: str, console: Path) -> str:
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    shown = "\n".join(f"    {line}" for line in lines[-CONSOLE_LINES:]) or "    (empty)"
    return f"{what}; its console, {console}:\n{shown}"

"""Real child processes that tests can hold, stop and end without ever waiting for time to pass."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

LEADER_ENDS = """
import ctypes, os, sys, threading
def outlive():
    while "State:\\tZ" not in open(f"/proc/{os.getpid()}/status").read():
        pass
    print(threading.get_native_id(), flush=True)
    sys.stdin.read()
threading.Thread(target=outlive).start()
ctypes.CDLL(None).pthread_exit(None)
"""
"""A program whose first thread ends; the second one then prints its ID and waits."""


@contextlib.contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command (`cat`, which waits for its input, if none is given); kill and reap it in the end."""
    process = subprocess.Popen(command or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def python(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program as `child` runs a command."""
    with child(sys.executable, "-c", program) as process:
        yield process


@contextlib.contextmanager
def among_its_own_mounts(mounts: str, program: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program in a mount namespace of its own, where a line of shell has mounted; it has said "ready"."""
    script = f'{mounts} && exec "$@"'
    with child("unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", program, *words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


def said(process: subprocess.Popen[bytes]) -> int:
    """Return the number that the child prints next."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def wait_ended(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child has ended, and leave it a zombie."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def wait_stopped(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child is stopped by a signal."""
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

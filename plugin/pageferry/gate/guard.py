"""Starts a guardian and talks to it: a hold is set only after the guardian has said that it knows of it.

What the guardian does with what it is told is said in guardian.py; what is held, and what becomes of the holds when
the guardian itself ends, is left to the gate.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pageferry.errors import KernelError
from pageferry.gate import guardian

ANSWER_SECONDS = 5.0
READY_SECONDS = 15.0
"""It waits for the folder's last guardian to end, which may have much to release."""


class Guard:
    """A guardian of our own, running. `pidfd` is readable once it has ended."""

    def __init__(self, folder: Path | None = None, pulse_seconds: float = 0.0) -> None:
        """Start it and wait until it watches over this process.

        Raises KernelError if it does not; another agent that uses the folder is a reason.
        """
        folders = [str(folder)] if folder is not None else []
        words = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid()), str(pulse_seconds), *folders]
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
                cwd="/",
                env={},
            )
        except OSError as error:
            raise KernelError(f"the guardian cannot be started: {error.strerror}") from error
        try:
            self.pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            self._reap()
            raise KernelError(f"the guardian cannot be watched: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input = self._process.stdin.fileno()
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        try:
            self._answer(b"ready\n", time.monotonic() + READY_SECONDS)
        except KernelError as error:
            self.kill()
            place = f" of {folder}" if folder is not None else ""
            raise KernelError(f"the guardian{place} did not start (is there another agent?): {error}") from error

    def hold(self, job: int, entries: Iterable[guardian.Entry]) -> None:
        """Tell of all that is held of a job, or is about to be. Raises KernelError when it has not answered."""
        self._tell(["hold", job, list(entries)])

    def forget(self, job: int) -> None:
        """Tell that nothing of a job is held any more. Raises as `hold` does."""
        self._tell(["forget", job])

    def pulse(self) -> None:
        """Tell that we have not hung; never waits, and a guardian that has ended is told by `pidfd`."""
        with suppress(OSError):
            os.write(self._input, b'["pulse"]\n')

    def ended(self) -> bool:
        """Say whether the guardian has ended, by itself or killed."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let the guardian end, which releases what it still knows of. A forked child's copy is no hindrance."""
        with suppress(KernelError):
            self._send(b'["end"]\n', time.monotonic() + ANSWER_SECONDS)
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            poll.poll(ANSWER_SECONDS * 1000)
        self.kill()

    def kill(self) -> None:
        """End the guardian at once, without releasing anything, and give the descriptors back."""
        self._reap()
        os.close(self.pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reap(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _tell(self, message: list[object]) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            self._send(json.dumps(message, separators=(",", ":")).encode() + b"\n", deadline)
            self._answer(b"ok\n", deadline)
        except KernelError:
            self._process.kill()  # nobody knows what it knows; `pidfd` says that another one is needed
            raise

    def _send(self, text: bytes, deadline: float) -> None:
        while text:
            try:
                text = text[os.write(self._input, text) :]
            except BlockingIOError:
                self._wait(self._input, select.POLLOUT, deadline)
            except OSError as error:
                raise KernelError("the guardian has ended") from error

    def _answer(self, wanted: bytes, deadline: float) -> None:
        text = b""
        while not text.endswith(b"\n"):
            self._wait(self._output, select.POLLIN, deadline)
            chunk = os.read(self._output, 64)
            if not chunk:
                raise KernelError("the guardian has ended")
            text += chunk
        if text != wanted:
            raise KernelError(f"the guardian answered {text[:80]!a}")

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise KernelError("the guardian does not answer")

"""`pageferry` at once: forked from a process that has loaded all that its commands and its agent need.

Loading python and numpy takes an emulated CPU seconds: most of the time of most tests, and longer than the moments
last at which an agent is to be killed. What is forked does all else that the command does. That commands load what they
need is seen where they are run as another user, on other hosts, and by the demonstration.

There is one nursery for a session of tests. It is asked by a line of JSON over a socket of its own for each command,
with the command's three standard files; it answers with a process ID and, at its end, the exit code.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

_LINE_BYTES = 1 << 18


@dataclass(slots=True)
class Child:
    """What is needed of subprocess.Popen, for the nursery's child."""

    pid: int
    returncode: int | None = None
    _answers: socket.socket = field(kw_only=True)
    _args: tuple[str, ...] = ()

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self._collect(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, at most so many seconds, and return its exit code. Raises subprocess.TimeoutExpired."""
        code = self._collect(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self._args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as the kernel's OOM killer would."""
        self.send_signal(signal.SIGKILL)

    def _collect(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as waiting:
                waiting.register(self._answers, selectors.EVENT_READ)
                if waiting.select(timeout):
                    self.returncode = int(_line(self._answers))
                    self._answers.close()
        return self.returncode


def start(
    *words: str,
    stdin: IO[bytes] | int,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `pageferry WORD...` with these files, in a session of its own."""
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    asked.connect(_nursery())
    request = {"words": words, "environment": {**os.environ, **(environment or {})}, "folder": str(Path.cwd())}
    files = [file if isinstance(file, int) else file.fileno() for file in (stdin, stdout, stderr)]
    socket.send_fds(asked, [json.dumps(request).encode() + b"\n"], files)
    return Child(int(_line(asked)), _answers=asked, _args=words)


def run(*words: object, user: int = 0, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run `pageferry WORD...` to its end; return what it printed, and its exit code. Another user has no nursery."""
    command = tuple(map(str, words))
    if user:
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", sys.executable, "-m", "pageferry"]
        return subprocess.run([*become, *command], capture_output=True, text=True, check=False, timeout=timeout)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open("rb") as nothing:
        child = start(*command, stdin=nothing, stdout=out, stderr=err)
        try:
            code = child.wait(timeout)
        except BaseException:
            child.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read().decode(), err.read().decode())


@cache
def _nursery() -> str:
    """Start the nursery, which ends with us, and return the address of its socket, in no file system."""
    address = f"\0pageferry-nursery-{os.getpid()}"
    nursery = subprocess.Popen(
        [sys.executable, "-m", "guest.nursery", address[1:]],
        stdin=subprocess.PIPE,  # closed when we end, and so does it
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
    )
    atexit.register(nursery.communicate)
    assert nursery.stdout is not None
    assert nursery.stdout.readline() == "ready\n"
    return address


def _line(connection: socket.socket) -> str:
    said = b""
    while not said.endswith(b"\n"):
        more = connection.recv(1)
        assert more, "the nursery has ended"
        said += more
    return said.decode()


def _serve(address: str) -> None:
    """Fork a command for each that asks, until standard input is closed."""
    children: dict[int, tuple[int, socket.socket]] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, selectors.DefaultSelector() as waiting:
        listener.bind("\0" + address)
        listener.listen(64)
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(0, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in waiting.select():
                descriptor = key.fd
                if descriptor == 0:
                    for pid, _ in children.values():  # nobody else would end them
                        os.kill(pid, signal.SIGKILL)
                    return
                if descriptor == listener.fileno():
                    asked, _ = listener.accept()
                    line, files, _, _ = socket.recv_fds(asked, _LINE_BYTES, 3)
                    while not line.endswith(b"\n") and (more := asked.recv(_LINE_BYTES)):
                        line += more
                    pid = os.fork()
                    if pid == 0:
                        _command(json.loads(line), files)
                    for file in files:
                        os.close(file)
                    _tell(asked, pid)
                    children[pidfd := os.pidfd_open(pid)] = pid, asked
                    waiting.register(pidfd, selectors.EVENT_READ)
                else:
                    pid, asked = children.pop(descriptor)
                    waiting.unregister(descriptor)
                    os.close(descriptor)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with asked:
                        _tell(asked, code)


def _tell(asked: socket.socket, number: int) -> None:
    with suppress(OSError):  # whoever asked may not want to know any more
        asked.sendall(f"{number}\n".encode())


def _command(request: Mapping[str, object], files: list[int]) -> NoReturn:
    """Be `pageferry`, with these files."""
    from pageferry.cli.main import main  # noqa: PLC0415

    code = 1
    try:
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 1 << 10)
        os.chdir(str(request["folder"]))
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        sys.argv = ["pageferry", *request["words"]]  # type: ignore[misc]
        sys.modules["__main__"].__package__ = None  # click would call it `python -m guest.pageferry`
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - this is the end of the process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _load() -> None:
    """Load all that there is of pageferry: commands load what they need when they are run."""
    import importlib  # noqa: PLC0415
    import pkgutil  # noqa: PLC0415

    import pageferry  # noqa: PLC0415

    for module in pkgutil.walk_packages(pageferry.__path__, "pageferry."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _load()
    _serve(sys.argv[1])

"""What is said over the agent's socket, by whom, and how to ask: one JSON object a line each way.

A request is {"verb": ..., "job": N, ...}; its answer is {"ok": true, ...} or {"error": "one line", "code": N} with the
exit code of `errors`. The agent's end is `wire_server`; what a verb does is the agent's.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pageferry.errors import ConfigError, Denied, KernelError, PageferryError, UsageError
from pageferry.kernel.files import shown

PATH = Path("/run/pageferry/agent.sock")
LINE_BYTES = 65536
"""No request is longer, its end of line included."""

_ANSWER_BYTES = 16 << 20
_CHUNK_BYTES = 65536
_OWNERS_VERBS = frozenset({"status", "history", "poke", "request"})
_ERRORS = (UsageError, ConfigError, KernelError)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, as the kernel says (SO_PEERCRED, unix(7)): the process may have ended since."""

    pid: int
    uid: int
    gid: int


def allowed(peer_uid: int, slurm_user_uid: int | None, verb: str, job_owner_uid: int | None) -> bool:
    """Return whether a user may ask for `verb` about a job of `job_owner_uid` (None: no job, or nobody knows whose).

    Root and SlurmUser may do everything; others may read about their own jobs, have the agent look at them, and request
    a move, which the job's policy may still refuse.
    """
    if peer_uid in (0, slurm_user_uid):
        return True
    return verb in _OWNERS_VERBS and peer_uid == job_owner_uid


def encoded(message: Mapping[str, Any]) -> bytes:
    """Return a message as a line; dataclasses become objects. Raises TypeError, ValueError for what JSON cannot say."""
    return msgspec.json.encode(message) + b"\n"


def decoded(line: bytes) -> dict[str, Any]:
    """Return the object that a line holds. Raises UsageError for anything else: no NaN, no infinity, valid UTF-8."""
    try:
        return _OBJECT.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(f"not a JSON object on one line: {shown(str(error))}") from error


def text(message: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """Return a member that must be text. Raises UsageError, also where it is missing and has no default."""
    value = message.get(key, default)
    if not isinstance(value, str):
        raise UsageError(f"{key}: expected text" if key in message else f"{key} is missing")
    return value


def number(message: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a member that must be a whole number from 0 to 2^32 - 1, as `text` does."""
    value = message.get(key, default)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise UsageError(f"{key}: expected a whole number" if key in message else f"{key} is missing")
    return value


def ask(path: Path, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Send a request to the agent and return its answer, within `timeout` seconds in all.

    Raises the error that the answer names (UsageError, ConfigError, KernelError or their base, by its code), Denied if
    the socket is not for us, and KernelError if the agent does not run, does not answer in time, or ends meanwhile.
    """
    until = time.monotonic() + timeout
    try:
        with _connected(path, timeout) as client:
            client.settimeout(max(0.001, until - time.monotonic()))
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have refused us already, and said why
                client.sendall(encoded(message))
            line = _line(client, until)
    except TimeoutError as error:
        raise KernelError(f"the agent did not answer within {timeout:g} s") from error
    except OSError as error:
        raise KernelError(f"the agent's socket {path}: {error.strerror or error}") from error
    try:
        answer = decoded(line)
    except UsageError as error:
        raise KernelError("the agent's answer cannot be read") from error
    if "error" in answer:
        kind = next((error for error in _ERRORS if error.exit_code == answer.get("code")), PageferryError)
        raise kind(str(answer["error"]))
    return answer


def present(path: Path = PATH) -> bool:
    """Return whether an agent listens, which is not to say that it answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as client:
        try:
            client.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
    return True


def _connected(path: Path, timeout: float) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Non-blocking, connect(2) would fail at once while the agent's queue is full; so it blocks, with a limit.
        whole, part = divmod(max(timeout, 0.001), 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(whole), int(part * 1e6)))
        client.connect(os.fspath(path))
    except BlockingIOError as error:
        client.close()
        raise TimeoutError from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        client.close()
        raise KernelError(f"the agent does not run: nobody listens at {path}") from error
    except PermissionError as error:
        client.close()
        raise Denied(f"the agent's socket {path}: {error.strerror}") from error
    except BaseException:
        client.close()
        raise
    return client


def _line(client: socket.socket, until: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        client.settimeout(max(0.001, until - time.monotonic()))
        chunk = b""
        with suppress(ConnectionResetError):
            chunk = client.recv(_CHUNK_BYTES)
        if not chunk:
            raise KernelError("the agent ended before it answered")
        line += chunk
        if len(line) > _ANSWER_BYTES:
            raise KernelError("the agent's answer has no end")
        if time.monotonic() > until and not line.endswith(b"\n"):
            raise TimeoutError
    return bytes(line)

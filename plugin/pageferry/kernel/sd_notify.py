"""Tells the service manager how we are, as sd_notify(3) and sd_watchdog_enabled(3) say; without one it does nothing.

What is said and when is the agent's business. Nothing here blocks or raises: a manager that does not listen is no
reason to hold up a job.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from pageferry.kernel.files import printable

_NUMBER = re.compile(r"[0-9]{1,18}")


def notify(environ: Mapping[str, str] = os.environ, /, **said: str) -> bool:
    r"""Send assignments such as `READY="1", STATUS="2 jobs held"` to $NOTIFY_SOCKET; return whether they went out.

    A value is one line whatever it holds: a line end would begin an assignment of its own.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):  # unset, or vsock, which only virtual machines' managers use
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={printable(value)}" for name, value in said.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(message.encode(), address)
    except (OSError, ValueError):
        return False
    return True


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how often WATCHDOG="1" is due: half of what the manager allows. None: it does not watch this process."""
    interval, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    if _NUMBER.fullmatch(interval) is None or int(interval) == 0:
        return None
    return int(interval) / 2e6

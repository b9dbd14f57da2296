"""Releases what pageferry stopped, if pageferry dies before it could.

A process of its own, in its own session, that imports nothing of pageferry: it is started before anything is stopped,
waits on its standard input, and when that closes without the word "released" it undoes the holds named on its command
line: `cgroup:PATH` is thawed, `pidfd:N` (an inherited descriptor) gets SIGCONT.
"""

import os
import signal
import sys

RELEASED = b"released\n"


def main(holds: list[str]) -> None:
    """Say that we are ready, wait, and undo the holds unless told that they are released."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"ready\n")
    heard = b""
    while chunk := os.read(0, 64):
        heard += chunk
    if heard == RELEASED:
        return
    for hold in holds:
        kind, _, name = hold.partition(":")
        try:
            if kind == "cgroup":
                with open(os.path.join(name, "cgroup.freeze"), "w") as file:  # noqa: PTH118, PTH123 - imports little
                    file.write("0")
            else:
                signal.pidfd_send_signal(int(name), signal.SIGCONT)
        except OSError:
            continue  # it is gone, and nothing to release


if __name__ == "__main__":
    main(sys.argv[1:])

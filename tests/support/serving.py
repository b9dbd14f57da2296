"""The agent's socket served in a thread, as its loop does, while a test asks over it."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pageferry.agent.wire_server import Server


@contextmanager
def serving(server: Server) -> Iterator[None]:
    """Serve until the context is left, and close the server then."""
    stop_read, stop_write = os.pipe()

    def loop() -> None:
        while stop_read not in select.select([server.fileno(), stop_read], [], [])[0]:
            server.serve()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        os.write(stop_write, b".")
        thread.join()
        server.close()
        os.close(stop_read)
        os.close(stop_write)

"""A FUSE file system with one file, "file", served by a process that can be stopped: then whoever opens the file waits.

Formats: Linux's include/uapi/linux/fuse.h, version 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.children import child, wait_stopped

BYTES = 16 * 4096

SERVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support import fuse
fuse.serve(sys.argv[1])
"""

_VALID = 3600
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _BATCH_FORGET = 25, 26, 27, 29, 42


@contextmanager
def fuse(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Mount it at a folder, and unmount it in the end; what still waits for it then gets an error."""
    with child(sys.executable, "-c", SERVER, str(place)) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        try:
            yield server
        finally:
            server.kill()  # which ends the connection
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Have it answer nobody any more."""
    server.send_signal(signal.SIGSTOP)
    wait_stopped(server)


def _attributes(node: int) -> bytes:
    mode, size = (0o40755, 0) if node == 1 else (0o100644, BYTES)
    return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int, body: bytes) -> bytes | int:
    """Return what is answered, or an errno."""
    if opcode == _INIT:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0, *[0] * 7)
    if opcode == _LOOKUP:
        entry = struct.pack("<QQQQII", 2, 0, _VALID, _VALID, 0, 0) + _attributes(2)
        return entry if body == b"file\0" else errno.ENOENT
    if opcode == _GETATTR:
        return struct.pack("<QII", _VALID, 0, 0) + _attributes(node)
    if opcode in {_OPEN, _OPENDIR}:
        return struct.pack("<QII", 0, 0, 0)
    if opcode == _READ:
        offset, size = map(int, struct.unpack_from("<8xQI", body))
        return b"x" * max(0, min(size, BYTES - offset))
    if opcode == _STATFS:
        return struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
    return b"" if opcode in {_RELEASE, _RELEASEDIR, _FLUSH} else errno.ENOSYS


def serve(place: str) -> None:
    """Mount it, say so, and answer the kernel until killed."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if ctypes.CDLL(None, use_errno=True).mount(b"toy", place.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    while True:
        request = os.read(device, 1 << 20)
        opcode, unique, node = struct.unpack_from("<4xIQQ", request)
        if opcode in {_FORGET, _BATCH_FORGET}:
            continue
        answer = _answer(opcode, node, request[40:])
        error, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(device, struct.pack("<IiQ", 16 + len(data), error, unique) + data)

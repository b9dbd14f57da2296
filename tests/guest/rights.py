"""Looks and moves with the rights that the agent has: those that hooks/systemd/pageferry.service leaves to it.

A test makes its job as root, and has it looked at and moved through here. Where systemd is the first process, a service
with the unit's own properties does it. Elsewhere a child does, forked from the test, so that what the test has patched
holds in it: it has the unit's capabilities and a mount namespace as the unit's, but no filter of system calls. With
`--rights root` the test itself does it, with all rights.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import pickle
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import pytest

from pageferry import ferry
from pageferry.kernel import procfs
from pageferry_planner.model import Plan, Snapshot

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = REPOSITORY / "hooks/systemd/pageferry.service"
PRIVATE = Path("/run/pageferry-rights")
"""An empty folder; over it, each confined process has a file system of its own."""

VARIABLE = "PAGEFERRY_RIGHTS"
"""The environment variable that says whose rights: "unit" (default) or "root"."""

CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
}
"""By their numbers in linux/capability.h."""

NOT_FOR_A_RUN = re.compile(r"Type|Exec|Restart|Watchdog|Timeout|KillMode|RuntimeDirectory|StateDirectory|Slice")
"""Properties of the unit that say how the agent starts and ends, not what it may do."""

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_BIND, _MS_REC, _MS_SLAVE = 0x2, 0x1000, 0x4000, 0x80000
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 0x1
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def move(
    pids: Iterable[int], request: ferry.Request, progress: Callable[[int, int], None] | None = None
) -> ferry.Outcome:
    """Do as ferry.move does."""
    return call(ferry.move, tuple(pids), request, progress=progress)


def plan(pids: Iterable[int], request: ferry.Request) -> tuple[Snapshot, Plan]:
    """Do as ferry.plan does."""
    return call(ferry.plan, tuple(pids), request)


def call(function: Callable[..., T], *arguments: Any, progress: Callable[[int, int], None] | None = None) -> T:
    """Call a function with the rights that are to be tested; return what it returns, or raise what it raises.

    `progress` is called here, in the test, with what the function tells its keyword argument of that name.
    """
    if chosen() == "root":
        return function(*arguments, **({"progress": progress} if progress else {}))
    if chosen() == "systemd":
        assert progress is None, "the service tells nothing before its answer"
        return _asked(function, arguments)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads of this process are not the child's
        pid = os.fork()
    if pid == 0:
        with os.fdopen(write, "wb") as out:
            _child(out, function, arguments, progress is not None)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as answers:
            answer: T = _answer(answers, progress)
            return answer
    finally:
        os.waitpid(pid, 0)


class Notes:
    """A list to which a confined child can append, for the test to read once the call has ended."""

    def __init__(self) -> None:
        """Begin without any."""
        self._file = os.memfd_create("notes")

    def append(self, value: Any) -> None:
        """Note a value, wherever that is."""
        os.write(self._file, pickle.dumps(value))

    def read(self) -> list[Any]:
        """Return what was noted so far."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            size = os.fstat(self._file).st_size
            file.seek(0)  # the position is the child's, too
            found = []
            while file.tell() < size:
                found.append(pickle.load(file))
            return found


def chosen() -> str:
    """Return whose rights are tested: "root"; the unit's by "systemd"; or the "unit"'s in a child."""
    if os.environ.get(VARIABLE) == "root":
        return "root"
    # On a host of its own the tests start no service, whatever its first process is.
    booted = "PAGEFERRY_GUEST_LAYOUT" in os.environ and Path("/run/systemd/system").is_dir()
    return "systemd" if booted else "unit"


def confine() -> None:
    """Leave this process, for good, nothing but what the unit leaves to the agent. It must have one thread."""
    _succeeds(_libc.unshare(_CLONE_NEWNS))
    _mount("none", "/", _MS_REC | _MS_SLAVE)
    _private_folders()
    _read_only("/", _AT_RECURSIVE)  # ProtectSystem=strict, ProtectHome=read-only, ProtectKernelTunables
    for path in ("/dev", "/proc", "/sys/fs/cgroup", "/tmp", "/var/tmp", *_writable()):
        if Path(path).exists():
            if not Path(path).is_mount():
                _mount(path, path, _MS_BIND | _MS_REC)
            _writable_again(path)
    _mount("/proc/sys", "/proc/sys", _MS_BIND)
    _read_only("/proc/sys")
    os.chdir("/")
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in set(range(last + 1)) - set(CAPABILITIES.values()):
        _succeeds(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    _succeeds(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    wanted = sum(1 << number for number in CAPABILITIES.values())
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _succeeds(_libc.capset(header, (ctypes.c_uint32 * 6)(wanted, wanted, 0, 0, 0, 0)))
    _succeeds(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.umask(0o077)


def leave_out(test: int) -> None:
    """Let a process that only looks on count as little as ourselves: it maps what a rank maps."""
    others = "pageferry.kernel.outsiders.list_pids"
    pytest.MonkeyPatch().setattr(others, lambda root: procfs.list_pids(root) - {test})


@dataclass(frozen=True, slots=True)
class View:
    """What a process may do: its capability sets as bit masks, and what it can open for writing."""

    capabilities: dict[str, int]
    no_new_privileges: bool
    umask: int
    devices: frozenset[str]
    writable: frozenset[str]


def view(paths: Iterable[str]) -> View:
    """Look around; of `paths`, folders count as writable where a file can be made in them. What is made is removed."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return View(
        {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        status["NoNewPrivs"] == "1",
        int(status["Umask"], 8),
        frozenset(path.name for path in Path("/dev").iterdir()),
        frozenset(path for path in paths if _can_be_written(Path(path))),
    )


def mapped(pid: int) -> str:
    """Return the maps of a process, which needs the right to look into it."""
    return Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")


def _can_be_written(path: Path) -> bool:
    try:
        if path.is_dir():
            descriptor, made = tempfile.mkstemp(dir=path)
            Path(made).unlink()
        else:
            descriptor = os.open(path, os.O_WRONLY)
        os.close(descriptor)
    except OSError:
        return False
    return True


def properties() -> list[tuple[str, str]]:
    """Return what the unit says of the rights of its service, as systemd-run takes it."""
    text = UNIT.read_text().replace("\\\n", " ")
    service = text.partition("[Service]\n")[2].partition("\n[")[0]
    pairs = [line.split("=", 1) for line in service.splitlines() if line and not line.startswith("#")]
    return [(name, value) for name, value in pairs if not NOT_FOR_A_RUN.match(name)]


def _writable() -> list[str]:
    return [value.removeprefix("-") for name, value in properties() if name == "ReadWritePaths"]


def _private_folders() -> None:
    """Put a /dev, a /tmp and a /var/tmp in place that are this process's alone; nothing of them is left on the host."""
    PRIVATE.mkdir(exist_ok=True)
    _mount("tmpfs", str(PRIVATE), _MS_NOSUID, "tmpfs", "mode=755")
    for name in ("dev", "tmp", "var-tmp", "repository"):
        (PRIVATE / name).mkdir()
    _mount(str(REPOSITORY), str(PRIVATE / "repository"), _MS_BIND)
    _private_devices(PRIVATE / "dev")
    _mount(str(PRIVATE / "tmp"), "/tmp", _MS_BIND)
    _mount(str(PRIVATE / "var-tmp"), "/var/tmp", _MS_BIND)
    if not REPOSITORY.exists():  # it lies below /tmp
        REPOSITORY.mkdir(parents=True)
        _mount(str(PRIVATE / "repository"), str(REPOSITORY), _MS_BIND)


def _private_devices(made: Path) -> None:
    """Make a /dev as PrivateDevices does: systemd's src/core/namespace.c, mount_private_dev()."""
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        os.mknod(made / name, 0o20666, Path("/dev", name).stat().st_rdev)
    for name in ("pts", "shm", "mqueue", "hugepages"):
        if Path("/dev", name).is_dir():
            (made / name).mkdir()
            _mount(f"/dev/{name}", str(made / name), _MS_BIND)
    for name in ("fd", "stdin", "stdout", "stderr"):
        (made / name).symlink_to(Path("/dev", name).readlink())
    _mount(str(made), "/dev", _MS_BIND | _MS_REC)


def _mount(source: str, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    words = [word.encode() if word else None for word in (source, target, kind, options)]
    _succeeds(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def _read_only(path: str, flags: int = 0) -> None:
    _set_attributes(path, flags, _MOUNT_ATTR_RDONLY, 0)


def _writable_again(path: str) -> None:
    _set_attributes(path, _AT_RECURSIVE, 0, _MOUNT_ATTR_RDONLY)


def _set_attributes(path: str, flags: int, on: int, off: int) -> None:
    """Change the attributes of a mount. mount_setattr(2), Linux 5.12."""
    attributes = (ctypes.c_uint64 * 4)(on, off, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _succeeds(_libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attributes, size))


def _succeeds(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _child(out: IO[bytes], function: Callable[..., Any], arguments: tuple[Any, ...], tells: bool) -> NoReturn:
    """Be the child: confine it, call the function, tell what came of it, and end."""

    def tell(done: int, of: int) -> None:
        pickle.dump(("progress", (done, of)), out)
        out.flush()

    try:
        confine()
        leave_out(os.getppid())
        answer = "value", function(*arguments, **({"progress": tell} if tells else {}))
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        error.add_note("".join(traceback.format_exception(error)))
        answer = "error", error
    try:
        out.write(pickle.dumps(answer))
        out.flush()
    finally:
        os._exit(0)


def _answer(answers: IO[bytes], progress: Callable[[int, int], None] | None = None) -> Any:
    while True:
        try:
            kind, value = pickle.load(answers)
        except EOFError:
            raise AssertionError("the confined child ended without an answer") from None
        if kind == "value":
            return value
        if kind == "error":
            raise value
        assert progress is not None
        progress(*value)


def _asked(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """Have the service call a function that it finds by its name."""
    service = _service()
    assert service.stdin is not None
    assert service.stdout is not None
    pickle.dump((function, arguments), service.stdin)
    service.stdin.flush()
    answer: T = _answer(service.stdout)
    return answer


@functools.cache
def _service() -> subprocess.Popen[bytes]:
    """Start a service with the unit's rights, which answers until we end."""
    subprocess.run(["systemctl", "start", "dbus"], check=True)  # --wait is told over it
    words = ["systemd-run", "--pipe", "--wait", "--collect", "--quiet", "--working-directory=/"]
    words += [f"--property={name}={value}" for name, value in properties()]
    words.append(f"--property=BindReadOnlyPaths={REPOSITORY}")  # it may lie below /tmp
    folders = f"{Path(__file__).parents[1]}:{Path(__file__).parent}"  # the tests' own modules are found by their names
    words += [f"--setenv=PYTHONPATH={folders}", sys.executable, "-m", "guest.rights"]
    service = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(service.communicate)
    return service


def _requests() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    while True:
        try:
            yield pickle.load(sys.stdin.buffer)
        except EOFError:
            return


if __name__ == "__main__":
    for wanted, given in _requests():
        try:
            said = "value", wanted(*given)
        except Exception as failed:  # noqa: BLE001 - the test raises it
            said = "error", failed
        sys.stdout.buffer.write(pickle.dumps(said))
        sys.stdout.buffer.flush()

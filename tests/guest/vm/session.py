"""One guest, from what the caller wants to an exit code: the files it boots from, the run, the clean-up."""

import compileall
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from guest.vm import accelerator, qemu, supervise
from guest.vm.errors import NoGuestError, NotBootedError
from guest.vm.initramfs import initramfs
from guest.vm.kernel import newest_kernel, unpacked
from guest.vm.layouts import Layout
from guest.vm.system import REPOSITORY, System, compile_tests, system_of

CACHE = REPOSITORY / ".cache"
GUEST_RESULTS = Path("/run/results")
SCRATCH_BYTES = 512 << 20
PROBE_TIMEOUT_S = 15.0
BOOT_TIMEOUT_S = 60.0
BOOTS = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller asked for. No command: a shell on the caller's terminal. No `debian`: this host's own system."""

    layout: Layout
    results: Path
    command: Sequence[str] = ()
    cgroup: Literal["v1", "v2"] = "v2"
    slurm: bool = False
    systemd: bool = False
    debian: int | None = None
    threads: qemu.Threads = "single"
    timeout_s: float | None = None


def run(wanted: Wanted, out: BinaryIO) -> int:
    """Boot a guest, run the command in it and return the command's exit code.

    Raises NoGuestError where this host cannot run a guest, GuestError when the guest itself failed.
    """
    require("qemu-system-x86_64", "qemu-system-x86")
    require("setpriv", "util-linux")
    if wanted.systemd and wanted.cgroup == "v1":
        raise NoGuestError("systemd is the first process on cgroup v2 alone: --systemd without --cgroup v1")
    CACHE.mkdir(exist_ok=True)
    wanted.results.mkdir(parents=True, exist_ok=True)
    # Daemons append to their logs: those of an earlier guest would be taken for this one's.
    shutil.rmtree(wanted.results / "slurm", ignore_errors=True)
    # The guest's own compilation would be lost with it, and is slow.
    for folder in ("planner", "plugin", "tests", "bench"):
        compileall.compile_dir(REPOSITORY / folder, quiet=2)
    chosen = accelerator.choose(CACHE, lambda: _boots_with_kvm(wanted.layout))
    _remove_leftovers()
    with (
        system_of(wanted.debian, CACHE) as system,
        tempfile.TemporaryDirectory(dir=CACHE, prefix=f"guest-{os.getpid()}-") as folder,
    ):
        compile_tests(system)
        machine = _machine(wanted, system, Path(folder), words(wanted, system), chosen)
        argv = qemu.command(machine)
        if machine.interactive:
            return supervise.run_on_terminal(argv, machine.status, machine.console)
        run_once = partial(supervise.run, argv, machine.status, machine.console, wanted.timeout_s, out)
        for _ in range(BOOTS - 1):
            try:
                return run_once(boot_s=BOOT_TIMEOUT_S)
            except NotBootedError as error:
                # An emulated machine may lose a timer interrupt while it boots and wait for it for good, or run into an
                # instruction that its kernel is just changing on another CPU (jump labels), and panic.
                print(f"{error}\nThe guest is started once more.", file=sys.stderr, flush=True)
        return run_once(boot_s=BOOT_TIMEOUT_S)


def require(program: str, package: str) -> None:
    """Raise NoGuestError unless a program is installed."""
    if shutil.which(program) is None:
        raise NoGuestError(f"no {program} in PATH: install {package}")


def environment(layout: str, cgroup: str, results: Path) -> dict[str, str]:
    """What tells the tests where they are; the same in a guest and on a host of several nodes."""
    return {
        "PAGEFERRY_GUEST_LAYOUT": layout,
        "PAGEFERRY_GUEST_CGROUP": cgroup,
        "PAGEFERRY_RESULTS": str(results),
    }


def words(wanted: Wanted, system: System) -> dict[str, str]:
    """Return what the guest's init is told, a file for each word."""
    # An interpreter of its own below /tmp has to stay visible; the repository is brought back.
    hides = Path("/tmp") not in system.python.parents or REPOSITORY in system.python.parents
    return {
        "mode": "run" if wanted.command else "shell",
        "cgroup": wanted.cgroup,
        "tmp": "yes" if hides else "no",
        "repository": str(REPOSITORY),
        "systemd": "yes" if wanted.systemd else "no",
        "command": script(wanted, system),
    }


def script(wanted: Wanted, system: System) -> str:
    """Write the script that the guest runs: the environment, Slurm if wanted, then the command."""
    tools = system.python.parent
    variables = {
        "HOME": "/root",
        "PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color" if not wanted.command else "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        # A pool of BLAS threads for each import of numpy is dear on an emulated CPU.
        "OPENBLAS_NUM_THREADS": "1",
        # The plugin imports all of hypothesis, 5 s of an emulated CPU, even where no test uses it.
        "PYTEST_ADDOPTS": f"-p no:hypothesispytest -p no:cacheprovider -o 'pythonpath={' '.join(system.imports)}'",
        "PAGEFERRY_SCRATCH": "/dev/vda",
        **environment(wanted.layout.name, wanted.cgroup, GUEST_RESULTS),
    }
    lines = ["#!/bin/sh", *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())]
    lines.append(f"cd {shlex.quote(str(REPOSITORY))} || exit 1")
    if wanted.slurm:
        lines.append(f"PYTHONPATH=tests {shlex.quote(str(system.python))} -m guest.vm.slurm start || exit 1")
    if wanted.command:
        lines.append(f"exec {shlex.join(wanted.command)}")
    else:
        size = shutil.get_terminal_size()
        lines.append(f"stty rows {size.lines} cols {size.columns}")
        # Without the start files of the host's root, which may do slow things.
        lines.append("exec bash --noprofile --norc")
    return "\n".join(lines) + "\n"


def _remove_leftovers() -> None:
    """Remove the folders of harnesses that were killed before they could."""
    for folder in CACHE.glob("guest-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _machine(
    wanted: Wanted, system: System, folder: Path, told: dict[str, str], accelerator_: qemu.Accelerator
) -> qemu.Machine:
    kernel = newest_kernel(system.root / "boot", system.root / "lib/modules")
    image = folder / "initramfs"
    image.write_bytes(initramfs(kernel, told))
    scratch = folder / "scratch"
    with scratch.open("wb") as disk:
        disk.truncate(SCRATCH_BYTES)
    return qemu.Machine(
        layout=wanted.layout,
        kernel=unpacked(kernel, CACHE),
        initramfs=image,
        results=wanted.results.resolve(),
        scratch=scratch,
        console=wanted.results.resolve() / "console.log",
        status=folder / "status",
        accelerator=accelerator_,
        threads=wanted.threads,
        interactive=told["mode"] == "shell",
        root=system.root,
        repository=REPOSITORY,
    )


def _boots_with_kvm(layout: Layout) -> bool:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="probe-") as folder:
        system = System(Path("/"), Path(sys.executable))
        machine = _machine(Wanted(layout, Path(folder)), system, Path(folder), {"mode": "probe", "command": ""}, "kvm")
        return accelerator.boots(machine, PROBE_TIMEOUT_S)

"""KVM where it really works, emulation elsewhere.

That /dev/kvm can be opened proves little: a host that is itself a guest may offer one that runs no ordinary
kernel. So a guest is booted with it, as far as its init script, and the answer is kept until the host boots
again.
"""

import io
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from guest.vm import qemu, supervise
from guest.vm.errors import GuestError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KVM = Path("/dev/kvm")


def choose(cache: Path, boots_with_kvm: Callable[[], bool], kvm: Path = KVM) -> qemu.Accelerator:
    """Return the accelerator to use; `boots_with_kvm` is called at most once for each boot of the host."""
    if not os.access(kvm, os.R_OK | os.W_OK):
        return "tcg"
    answer = cache / f"kvm-{BOOT_ID.read_text().strip()}"
    with suppress(FileNotFoundError):
        return "kvm" if answer.read_text() == "kvm" else "tcg"
    found: qemu.Accelerator = "kvm" if boots_with_kvm() else "tcg"
    for old in cache.glob("kvm-*"):
        if old != answer:
            old.unlink(missing_ok=True)
    draft = cache / f"draft-{os.getpid()}"  # several harnesses may be at it
    draft.write_text(found)
    draft.rename(answer)
    return found


def boots(machine: qemu.Machine, timeout_s: float) -> bool:
    """Boot a guest whose init script stops at once, and say whether it came so far."""
    argv = qemu.command(machine)
    quiet = subprocess.DEVNULL
    try:
        return supervise.run(argv, machine.status, machine.console, timeout_s, io.BytesIO(), quiet) == 0
    except GuestError:
        return False

"""The guest's initramfs: busybox, the first modules, the init script and one run's words.

Written here in the kernel's own archive format, so that no archiver is needed: initramfs(5) calls it newc,
Documentation/driver-api/early-userspace/buffer-format.rst gives its fields.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guest.vm.errors import NoGuestError
from guest.vm.kernel import Kernel, load_order, unpacked_module

BUSYBOX = Path("/bin/busybox")
SCRIPTS = {"init": "init.sh", "pid1.sh": "pid1.sh"}
# What stands between the kernel and the host's files, the command's output and the scratch disk. The rest
# (ext4, zram) is loaded by modprobe in the guest when a test first uses it.
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of the archive: a file, a folder (no data) or a device node."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(entries: Mapping[str, Entry]) -> bytes:
    """Write the archive; a folder must come before what is in it."""
    members = [_member(number, path, entry) for number, (path, entry) in enumerate(entries.items(), start=1)]
    return b"".join([*members, _member(0, "TRAILER!!!", Entry(0))])


def _member(inode: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(head + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def initramfs(kernel: Kernel, words: Mapping[str, str]) -> bytes:
    """Put together what the guest boots from; `words` become files in /words, one each."""
    if not BUSYBOX.exists():
        raise NoGuestError(f"no {BUSYBOX}: install busybox-static")
    order = load_order((kernel.modules / "modules.dep").read_text(), BOOT_MODULES)
    entries = {
        "dev": Entry(stat.S_IFDIR | 0o755),
        # Without it PID 1 starts with no output at all, and an early failure is mute.
        "dev/console": Entry(stat.S_IFCHR | 0o600, device=(5, 1)),
        "modules": Entry(stat.S_IFDIR | 0o755),
        "words": Entry(stat.S_IFDIR | 0o755),
        "busybox": Entry(stat.S_IFREG | 0o755, BUSYBOX.read_bytes()),
    }
    for name, source in SCRIPTS.items():
        entries[name] = Entry(stat.S_IFREG | 0o755, Path(__file__).with_name(source).read_bytes())
    for number, module in enumerate(order):
        # Numbered, so that the shell's sorted glob is the load order.
        data = unpacked_module(kernel.modules / module)
        entries[f"modules/{number:02}-{Path(module).name}"] = Entry(stat.S_IFREG | 0o644, data)
    for name, text in words.items():
        entries[f"words/{name}"] = Entry(stat.S_IFREG | 0o755, text.encode())
    return archive(entries)

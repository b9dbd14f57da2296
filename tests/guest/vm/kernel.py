"""The guest's kernel: the newest one in /boot that has its modules, and the order of loading these.

The kernel is unpacked here once: qemu starts an ELF vmlinux directly by its PVH entry, which spares an
emulated CPU seconds of decompression. One packed in a way that nothing here can read is booted as it is.
"""

import lzma
import os
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from guest.vm.errors import NoGuestError


def _zstd(packed: bytes) -> bytes:
    # The size that follows (scripts/Makefile.lib, size_append) is no part of it, and zstd(1) says so by its exit code.
    return subprocess.run(["zstd", "-dcq"], input=packed[:-4], stdout=subprocess.PIPE, check=True).stdout


_UNPACKERS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\xfd7zXZ\0", lambda packed: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed)),
    (b"\x1f\x8b\x08", lambda packed: zlib.decompressobj(31).decompress(packed)),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and the folder of its modules."""

    release: str
    image: Path
    modules: Path


def newest_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Kernel:
    """Find the newest installed kernel, by the numbers in its release; NoGuestError if there is none."""
    found = [
        Kernel(release, image, modules / release)
        for image in boot.glob("vmlinuz-*")
        if (modules / (release := image.name.removeprefix("vmlinuz-")) / "modules.dep").exists()
    ]
    if not found:
        raise NoGuestError(f"no kernel in {boot} that has modules in {modules}: install linux-image-amd64")
    return max(found, key=lambda kernel: [int(number) for number in re.findall(r"\d+", kernel.release)])


def unpacked(kernel: Kernel, cache: Path) -> Path:
    """Return the kernel's ELF image, unpacked into `cache`; the image itself if it cannot be unpacked."""
    stat = kernel.image.stat()
    vmlinux = cache / f"vmlinux-{kernel.release}-{stat.st_size}-{stat.st_mtime_ns}"
    if not vmlinux.exists():
        elf = unpack(kernel.image.read_bytes())
        if elf is None:
            return kernel.image
        # A name of its own for each harness: several start at once, and the last to rename wins with the same bytes.
        draft = vmlinux.with_name(f"{vmlinux.name}.{os.getpid()}.draft")
        draft.write_bytes(elf)
        draft.rename(vmlinux)
    return vmlinux


def unpack(image: bytes) -> bytes | None:
    """Take the ELF file out of a bzImage (header fields: Documentation/x86/boot.rst), or None."""
    if image[0x202:0x206] != b"HdrS":
        return None
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    packed = image[start : start + length]
    for magic, unpacker in _UNPACKERS:
        if packed.startswith(magic):
            elf = unpacker(packed)
            return elf if elf.startswith(b"\x7fELF") else None
    return None


def unpacked_module(path: Path) -> bytes:
    """Return a module as insmod takes it, whether it is packed (NAME.ko.xz) or not."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Return the files, relative to the modules folder, that load `wanted` when loaded in this order.

    `modules_dep` is the text of modules.dep, whose lines name everything that a module needs, each after
    those that need it (depmod(8)); so the reverse of a line is an order that works. A module that is not
    named there is taken to be built into the kernel.
    """
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        module, _, others = line.partition(":")
        needs[_name(module)] = [module, *others.split()]
    order: dict[str, None] = {}
    for name in wanted:
        order.update(dict.fromkeys(reversed(needs.get(_name(name), []))))
    return list(order)


def _name(module: str) -> str:
    return Path(module).name.partition(".ko")[0].replace("-", "_")

"""The guest as a qemu command: a pure function from a layout and a run's files to an argument vector."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from guest.vm.layouts import Layout

Accelerator = Literal["kvm", "tcg"]
WITHOUT_AVX = "avx=off,avx2=off,f16c=off,fma=off"
"""QEMU 7.2 computes some AVX2 instructions wrongly: numpy's argsort then returns duplicates (one in seven tries)."""

Threads = Literal["single", "multi"]

# norandmaps: qemu keeps translated code by address, so a program that has run before starts faster where it was then.
# nokaslr, mitigations=off, audit=0, lsm=: work that an emulated CPU need not do. tsc=reliable and
# no_timer_check: clock checks that emulation fails at random. numa_balancing would undo the moves that tests
# look at; a test that wants it switches it on. panic=-1 restarts at once, which -no-reboot makes an exit.
KERNEL_WORDS = (
    "console=ttyS0 quiet panic=-1 oops=panic nokaslr mitigations=off audit=0 lsm= tsc=reliable"
    " no_timer_check lpj=5000000 random.trust_cpu=on rcupdate.rcu_expedited=1 cryptomgr.notests"
    " i8042.noaux i8042.nopnp nowatchdog numa_balancing=disable no_hash_pointers norandmaps"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """All that a guest's qemu is started with."""

    layout: Layout
    kernel: Path
    initramfs: Path
    results: Path
    scratch: Path
    console: Path
    status: Path
    accelerator: Accelerator = "tcg"
    threads: Threads = "single"
    interactive: bool = False
    root: Path = Path("/")
    repository: Path = Path("/")
    program: str = "qemu-system-x86_64"


def command(machine: Machine) -> list[str]:
    """Return the argument vector; the guest's output is qemu's own standard output."""
    return [
        machine.program,
        *_hardware(machine),
        *_topology(machine.layout),
        *_files(machine),
        *_output(machine),
    ]


def _hardware(machine: Machine) -> Iterator[str]:
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
    yield from ("-machine", "q35,hpet=off,usb=off,mem-merge=off")
    if machine.accelerator == "kvm":
        yield from ("-accel", "kvm", "-cpu", "host")
    else:
        # numpy's wheels need more than qemu64 has. Five-level page tables only lengthen each emulated walk.
        yield from ("-accel", f"tcg,thread={machine.threads}", "-cpu", f"max,la57=off,{WITHOUT_AVX}")
    yield from ("-kernel", str(machine.kernel), "-initrd", str(machine.initramfs), "-append", KERNEL_WORDS)


def _topology(layout: Layout) -> Iterator[str]:
    sockets = len(layout.cpu_nodes)
    yield from ("-m", f"{layout.mib}M")
    yield from ("-smp", f"{layout.cpus},sockets={sockets},cores={layout.cores_per_socket},threads=1")
    for number, node in enumerate(layout.nodes):
        yield from ("-object", f"memory-backend-ram,id=ram{number},size={node.mib}M")
        yield from ("-numa", f"node,nodeid={number},memdev=ram{number}")
    for socket, number in enumerate(layout.cpu_nodes):
        yield from ("-numa", f"cpu,node-id={number},socket-id={socket}")
    for i, row in enumerate(layout.distances):
        for j, distance in enumerate(row):
            yield from ("-numa", f"dist,src={i},dst={j},val={distance}")


def _files(machine: Machine) -> Iterator[str]:
    # A host root of several file systems has equal inode numbers: remap keeps them apart.
    yield from (
        "-fsdev",
        f"local,id=host,path={machine.root},security_model=none,readonly=on,multidevs=remap",
    )
    yield from ("-device", "virtio-9p-pci,fsdev=host,mount_tag=host")
    shared = f"local,id=repository,path={machine.repository},security_model=none,readonly=on,multidevs=remap"
    yield from ("-fsdev", shared, "-device", "virtio-9p-pci,fsdev=repository,mount_tag=repository")
    yield from ("-fsdev", f"local,id=results,path={machine.results},security_model=none,multidevs=remap")
    yield from ("-device", "virtio-9p-pci,fsdev=results,mount_tag=results")
    yield from ("-drive", f"id=scratch,file={machine.scratch},format=raw,if=none,cache=unsafe,discard=unmap")
    yield from ("-device", "virtio-blk-pci,drive=scratch")


def _output(machine: Machine) -> Iterator[str]:
    """Console, command and exit status have a port each, so that none can be mistaken for another."""
    yield from ("-chardev", f"file,id=console,path={machine.console}", "-serial", "chardev:console")
    yield from ("-device", "virtio-serial-pci")
    # File backends: nothing to read from, so the guest never sees its reader hang up.
    if machine.interactive:
        yield from ("-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out,nr=0")
    else:
        yield from ("-chardev", "file,id=out,path=/dev/fd/1", "-device", "virtserialport,chardev=out,nr=1")
    yield from ("-chardev", f"file,id=status,path={machine.status}")
    yield from ("-device", "virtserialport,chardev=status,nr=2")

"""The guest before it boots: layouts, qemu's arguments, module order, initramfs, configuration."""

import itertools
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from guest.vm import initramfs, kernel, qemu, session, slurmconf, system
from guest.vm.errors import NoGuestError
from guest.vm.layouts import LAYOUTS, MEMORY_BLOCK_MIB, Layout, cpu_list, observed, symmetric

EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def arguments(layout: Layout, **changes: object) -> list[str]:
    paths = {name: Path("/x", name) for name in ("kernel", "initramfs", "results", "scratch", "console", "status")}
    return qemu.command(qemu.Machine(layout, **(paths | changes)))  # type: ignore[arg-type]


def values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(argv) if name == option]


@EVERY_LAYOUT
def test_a_layout_is_one_that_qemu_and_the_kernel_take(layout: Layout) -> None:
    assert all(node.mib % MEMORY_BLOCK_MIB == 0 for node in layout.nodes)
    assert layout.nodes[0].mib == 2048, "a node below the PCI hole, none across it"
    assert [cpu for node in range(len(layout.nodes)) for cpu in layout.cpus_of(node)] == list(range(layout.cpus))


@EVERY_LAYOUT
def test_distances_are_complete_symmetric_and_name_a_nearest_node(layout: Layout) -> None:
    count = len(layout.nodes)
    assert [len(row) for row in layout.distances] == [count] * count
    for i, row in enumerate(layout.distances):
        assert row[i] == 10
        assert list(row) == [other[i] for other in layout.distances]
        others = sorted(distance for j, distance in enumerate(row) if j != i)
        assert 10 < others[0] < others[1]


def test_the_layouts_are_what_their_names_say() -> None:
    assert len({node.mib for node in LAYOUTS["four"].nodes}) == 4
    assert sum(node.mib >= 1638 for node in LAYOUTS["four"].nodes) >= 2
    assert [node.cpus for node in LAYOUTS["cpuless"].nodes].count(0) == 1
    assert min(node.mib for node in LAYOUTS["tight"].nodes) <= 256


@pytest.mark.parametrize("pairs", [{(0, 1): 12}, {(0, 1): 12, (0, 2): 20, (1, 2): 24, (2, 1): 24}])
def test_a_matrix_with_a_missing_or_unknown_pair_is_refused(pairs: dict[tuple[int, int], int]) -> None:
    with pytest.raises(ValueError, match="missing or unknown"):
        symmetric(3, pairs)


@EVERY_LAYOUT
def test_qemu_is_told_each_node_each_cpu_and_each_distance(layout: Layout) -> None:
    argv = arguments(layout)
    assert values(argv, "-m") == [f"{layout.mib}M"]
    sizes = [value for value in values(argv, "-object") if value.startswith("memory-backend-ram")]
    assert [value.rpartition("=")[2] for value in sizes] == [f"{node.mib}M" for node in layout.nodes]
    numa = values(argv, "-numa")
    assert sum(value.startswith("node,") for value in numa) == len(layout.nodes)
    assert sum(value.startswith("cpu,") for value in numa) == len(layout.cpu_nodes)
    for i, row in enumerate(layout.distances):
        for j, distance in enumerate(row):
            assert f"dist,src={i},dst={j},val={distance}" in numa


def test_the_host_root_is_shared_read_only_and_nothing_restarts() -> None:
    argv = arguments(LAYOUTS["four"])
    assert any("path=/," in value and "readonly=on" in value for value in values(argv, "-fsdev"))
    assert "-no-reboot" in argv
    assert "panic=-1" in values(argv, "-append")[0]


def test_threads_matter_to_emulation_alone() -> None:
    assert values(arguments(LAYOUTS["four"], threads="multi"), "-accel") == ["tcg,thread=multi"]
    assert values(arguments(LAYOUTS["four"], accelerator="kvm", threads="multi"), "-accel") == ["kvm"]


def test_a_shell_has_a_terminal_and_a_run_has_a_pipe() -> None:
    assert any(value.startswith("stdio") for value in values(arguments(LAYOUTS["four"], interactive=True), "-chardev"))
    assert not any(value.startswith("stdio") for value in values(arguments(LAYOUTS["four"]), "-chardev"))


def test_a_module_is_loaded_after_all_that_it_needs_and_once() -> None:
    modules_dep = (
        "net/9pnet_virtio.ko: net/9pnet.ko drivers/virtio.ko drivers/virtio_ring.ko\n"
        "fs/9p.ko.xz: net/9pnet.ko fs/netfs.ko\n"
        "net/9pnet.ko:\ndrivers/virtio.ko: drivers/virtio_ring.ko\ndrivers/virtio_ring.ko:\nfs/netfs.ko:\n"
    )
    order = kernel.load_order(modules_dep, ["9pnet_virtio", "9p", "built-in"])
    assert len(order) == len(set(order)) == 6
    assert order.index("drivers/virtio_ring.ko") < order.index("drivers/virtio.ko")
    assert order.index("net/9pnet.ko") < order.index("net/9pnet_virtio.ko")
    assert order.index("fs/netfs.ko") < order.index("fs/9p.ko.xz")


def test_dashes_and_underscores_name_the_same_module() -> None:
    assert kernel.load_order("a/virtio-rng.ko:\n", ["virtio_rng"]) == ["a/virtio-rng.ko"]


def test_the_newest_kernel_is_the_one_with_the_highest_number_that_has_modules(tmp_path: Path) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.0-1-amd64"):
        (tmp_path / f"vmlinuz-{release}").touch()
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "modules.dep").touch()
    assert kernel.newest_kernel(tmp_path, tmp_path).release == "6.1.0-56-amd64"


def test_a_host_without_a_kernel_is_told_which_package_has_one(tmp_path: Path) -> None:
    with pytest.raises(NoGuestError, match="linux-image-amd64"):
        kernel.newest_kernel(tmp_path, tmp_path)


def test_a_packed_kernel_is_unpacked_and_an_unknown_one_is_left(tmp_path: Path) -> None:
    elf = b"\x7fELF" + bytes(1000)
    assert kernel.unpack(bz_image(lzma.compress(elf) + struct.pack("<I", len(elf)))) == elf
    zstd = subprocess.run(["zstd", "-qc"], input=elf, stdout=subprocess.PIPE, check=True).stdout
    assert kernel.unpack(bz_image(zstd + struct.pack("<I", len(elf)))) == elf
    assert kernel.unpack(bz_image(b"BZh91AY&SY")) is None
    assert kernel.unpack(bytes(4096)) is None


def bz_image(payload: bytes) -> bytes:
    image = bytearray(2 * 512)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.fail("needs cpio")
    entries = {"folder": initramfs.Entry(0o040755), "folder/file": initramfs.Entry(0o100644, b"text")}
    subprocess.run(["cpio", "-id", "--quiet"], input=initramfs.archive(entries), cwd=tmp_path, check=True)
    assert (tmp_path / "folder/file").read_bytes() == b"text"


def test_the_script_quotes_the_command_and_starts_slurm_only_when_asked(tmp_path: Path) -> None:
    here = system.System(Path("/"), Path("/venv/bin/python"))
    plain = session.script(session.Wanted(LAYOUTS["four"], tmp_path, ["printf", "%s", "two words; $HOME"]), here)
    assert plain.endswith("exec printf %s 'two words; $HOME'\n")
    assert "guest.vm.slurm" not in plain
    served = session.script(session.Wanted(LAYOUTS["four"], tmp_path, ["true"], slurm=True), here)
    assert "/venv/bin/python -m guest.vm.slurm start" in served


@pytest.mark.parametrize(
    ("python", "hides"),
    [
        ("/usr/bin/python3", "yes"),
        ("/tmp/elsewhere/bin/python", "no"),
        (f"{system.REPOSITORY}/.venv/bin/python", "yes"),
    ],
)
def test_the_guest_has_a_tmp_of_its_own_unless_that_would_hide_its_interpreter(
    tmp_path: Path, python: str, hides: str
) -> None:
    words = session.words(session.Wanted(LAYOUTS["four"], tmp_path), system.System(Path("/"), Path(python)))
    assert (words["tmp"], words["repository"]) == (hides, str(system.REPOSITORY))


SECURITY = "http://security.example/debian-security/|Debian|main|bookworm-security"
ELSEWHERE = "http://packages.example/|Elsewhere|main|bookworm"


def test_a_release_comes_from_where_apt_has_debians_main_archive() -> None:
    archive = "http://mirror.example/debian/|Debian|main|bookworm"
    assert system.mirror("\n".join([SECURITY, ELSEWHERE, archive])) == "http://mirror.example/debian/"


def test_without_debians_archive_no_release_can_be_had() -> None:
    with pytest.raises(NoGuestError, match="main archive"):
        system.mirror("\n".join([SECURITY, ELSEWHERE]))


def test_a_tree_is_another_one_when_any_of_its_lists_changes() -> None:
    names = [
        system.tree_name(13, ["slurmd"], ["numpy>=1.26"]),
        system.tree_name(13, ["slurmd", "munge"], ["numpy>=1.26"]),
        system.tree_name(13, ["slurmd"], ["numpy>=2"]),
        system.tree_name(13, [], ["slurmd", "numpy>=1.26"]),
    ]
    assert len(set(names)) == 4
    assert all(name.startswith("debian-13-") for name in names)
    assert names[0] == system.tree_name(13, ["slurmd"], ["numpy>=1.26"])


def test_a_packed_module_is_unpacked(tmp_path: Path) -> None:
    plain, packed = tmp_path / "9p.ko", tmp_path / "9p.ko.xz"
    plain.write_bytes(b"\x7fELF module")
    packed.write_bytes(lzma.compress(b"\x7fELF module"))
    assert kernel.unpacked_module(plain) == kernel.unpacked_module(packed) == b"\x7fELF module"


@EVERY_LAYOUT
def test_slurm_is_told_the_true_sockets(layout: Layout) -> None:
    conf = slurmconf.slurm_conf(layout, slurmconf.node_names(1), Path("/logs"), "Epilog=/e")
    sockets = len(layout.cpu_nodes)
    assert f"CPUs={layout.cpus} Boards=1 SocketsPerBoard={sockets} CoresPerSocket={layout.cores_per_socket}" in conf
    assert "NodeName=guest " in conf
    assert conf.rstrip().endswith("Epilog=/e")


def test_two_slurm_nodes_have_a_name_and_a_port_each() -> None:
    conf = slurmconf.slurm_conf(LAYOUTS["four"], slurmconf.node_names(2), Path("/logs"))
    assert "NodeName=guest0 " in conf
    assert "NodeName=guest1 " in conf
    assert "Port=6818" in conf
    assert "Port=6819" in conf


def test_the_kernels_cpu_lists_are_read() -> None:
    assert cpu_list("0-2,7\n") == (0, 1, 2, 7)
    assert cpu_list("\n") == ()


def test_a_machine_is_observed_from_its_sysfs(tmp_path: Path) -> None:
    for number, (cpus, kib) in enumerate([("0-1", 2048 * 1024), ("", 1024 * 1024)]):
        node = tmp_path / f"node{number}"
        node.mkdir()
        (node / "cpulist").write_text(f"{cpus}\n")
        (node / "distance").write_text("10 20\n" if number == 0 else "20 10\n")
        (node / "meminfo").write_text(f"Node {number} MemTotal:       {kib} kB\nNode {number} MemFree: 1 kB\n")
    found = observed(tmp_path)
    assert [(node.cpus, node.mib) for node in found.nodes] == [(2, 2048), (0, 1024)]
    assert found.distances == ((10, 20), (20, 10))

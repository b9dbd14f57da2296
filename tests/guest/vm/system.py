"""The system that a guest runs: this host's own files, or those of a Debian release, made here once.

A release's tree lies in the cache. It is made by mmdebstrap from the registry that apt is set up with, and made anew
when the list of its packages changes. pageferry is installed there as a user would install it: by pip, into
/opt/pageferry. The lock keeps a tree as it is while a guest runs from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from guest.vm.errors import NoGuestError

REPOSITORY = Path(__file__).resolve().parents[3]
CODENAMES: Mapping[int, str] = {13: "trixie"}
"""The releases, by their numbers; this host's own is not among them."""

PACKAGES = (
    "btrfs-progs", "ca-certificates", "e2fsprogs", "fuse-overlayfs", "iproute2", "kmod", "libnuma1",
    "linux-image-amd64", "munge", "numactl", "procps", "python3-venv", "slurm-client", "slurm-wlm-basic-plugins",
    "slurmctld", "slurmd", "squashfs-tools", "strace", "util-linux",
)  # fmt: skip
TEST_PACKAGES = ("pytest>=8.2", "hypothesis>=6.100")
MANUALS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
NO_INITRAMFS = (
    'mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"'
)
"""A hook of mmdebstrap's: the guest has an initramfs of its own."""

VENV = Path("/opt/pageferry")
NOTE = "opt/pageferry/installed"
INSTALLED = ("planner", "plugin", "hooks", "contrib", "pyproject.toml", "README.md", "LICENSE")
"""What of the repository becomes the installed pageferry."""


@dataclass(frozen=True, slots=True)
class System:
    """`root`: where its files are on this host. `python`: the interpreter of the tests, as the guest names it.

    `imports`: what the tests find below the repository; pageferry itself is not among it where it is installed.
    """

    root: Path
    python: Path
    imports: tuple[str, ...] = ("planner", "plugin", "contrib", "tests")


@contextmanager
def system_of(debian: int | None, cache: Path) -> Iterator[System]:
    """Return this host's own system (None), or a Debian release's, which stays as it is inside the context.

    Raises NoGuestError where the release's tree cannot be made.
    """
    if debian is None:
        yield System(Path("/"), Path(sys.executable))
        return
    cache.mkdir(exist_ok=True)
    with (cache / f"debian-{debian}.lock").open("w") as lock:
        requirements, uri = _requirements(), _mirror()
        tree = cache / tree_name(debian, PACKAGES, requirements, [uri, *MANUALS])
        digest = _digest()
        # Several guests may run from it, and nobody while it is changed. What was locked for one is open for a moment
        # before it is locked for all.
        fcntl.flock(lock, fcntl.LOCK_SH)
        while _noted(tree) != digest:
            _lock_alone(lock)
            if not tree.exists():
                _make(debian, tree, requirements, uri)
            if _noted(tree) != digest:
                _install(tree, digest)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield System(tree, VENV / "bin/python", ("contrib", "tests"))


def _lock_alone(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("guest: waiting for another guest that runs from the same tree", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def tree_name(debian: int, *lists: Sequence[str]) -> str:
    """Return the name of a release's tree, which is another one when what it is made from changes."""
    text = "\n".join(" ".join(names) for names in lists)
    return f"debian-{debian}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def mirror(targets: str) -> str:
    """Return where apt gets Debian's main packages from; `targets`: lines of REPO_URI, ORIGIN, COMPONENT, CODENAME.

    Raises NoGuestError if no line is Debian's own archive.
    """
    for line in targets.splitlines():
        uri, origin, component, codename = line.split("|")
        if (origin, component) == ("Debian", "main") and codename.isalpha():
            return uri
    raise NoGuestError("apt is not set up for Debian's main archive: see sources.list(5)")


def _requirements() -> list[str]:
    """Return what pip installs there: pageferry's dependencies, and what the tests need."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return sorted({*project["dependencies"], *TEST_PACKAGES})


def _make(debian: int, tree: Path, requirements: Sequence[str], uri: str) -> None:
    """Make the tree of a release; trees of other lists of packages are removed."""
    if shutil.which("mmdebstrap") is None:
        raise NoGuestError("no mmdebstrap in PATH: install mmdebstrap")
    draft, log = tree.with_name(f"draft-{tree.name}"), tree.with_name(f"debian-{debian}.log")
    for old in [*tree.parent.glob(f"debian-{debian}-*/"), *tree.parent.glob("draft-debian-*/")]:
        shutil.rmtree(old)
    print(f"guest: making {tree.name}, which takes about two minutes", file=sys.stderr, flush=True)
    with log.open("w") as out:
        words = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        words += [f"--essential-hook={NO_INITRAMFS}", "--dpkgopt=force-confold"]
        words += ["--aptopt=APT::Install-Recommends false"]
        words += [*(f"--dpkgopt=path-exclude={glob}" for glob in MANUALS)]
        _run([*words, CODENAMES[debian], str(draft), uri], out, log)
        _run(_inside(draft, "python3", "-m", "venv", str(VENV)), out, log)
        _run(_inside(draft, f"{VENV}/bin/pip", "install", "-q", *requirements), out, log)
        (draft / "usr/local/bin/pageferry").symlink_to(VENV / "bin/pageferry")
    draft.rename(tree)


def _noted(tree: Path) -> str:
    """Return the digest of the pageferry that is installed in a tree, "" if there is none."""
    note = tree / NOTE
    return note.read_text() if note.exists() else ""


def _digest() -> str:
    """Return a digest of all that becomes the installed pageferry."""
    digest = hashlib.sha256()
    for path in sorted(_files(REPOSITORY / name for name in INSTALLED)):
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _install(tree: Path, digest: str) -> None:
    """Install the repository's pageferry in a tree, and note its digest there."""
    log = tree.with_name(f"{tree.name}-install.log")
    (tree / NOTE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="wheel-") as folder, log.open("w") as out:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(REPOSITORY)]
        _run(build, out, log)
        (wheel,) = Path(folder).glob("*.whl")
        shutil.copy(wheel, tree / "tmp")
        words = ["install", "-q", "--no-deps", "--no-index", "--force-reinstall", f"/tmp/{wheel.name}"]
        _run(_inside(tree, f"{VENV}/bin/pip", *words), out, log)
        (tree / "tmp" / wheel.name).unlink()
    (tree / NOTE).write_text(digest)


def compile_tests(system: System) -> None:
    """Compile the tests for a system's interpreter: the guest's own compilation would be slow, and lost with it."""
    if system.root != Path("/"):
        words = [str(system.python), "-m", "compileall", "-qq", *(str(REPOSITORY / name) for name in system.imports)]
        subprocess.run(_inside(system.root, *words, shared=(REPOSITORY,)), check=False)


def _files(tops: Iterator[Path]) -> Iterator[Path]:
    for top in tops:
        found = top.rglob("*") if top.is_dir() else [top]
        yield from (path for path in found if path.is_file() and path.suffix != ".pyc")


def _mirror() -> str:
    form = "$(REPO_URI)|$(ORIGIN)|$(COMPONENT)|$(CODENAME)"
    words = ["apt-get", "indextargets", f"--format={form}", "Created-By: Packages"]
    if not (said := _output(words)).strip():  # apt has no lists yet
        subprocess.run(["apt-get", "update", "-q"], stdout=sys.stderr, check=False)
        said = _output(words)
    return mirror(said)


def _output(words: Sequence[str]) -> str:
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout


def _inside(tree: Path, *command: str, shared: Sequence[Path] = ()) -> list[str]:
    """Return how a command is run with a tree as its root: with this host's network, names and certificates."""
    script = """
set -eu
tree=$1
shift
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mkdir -p "$tree/etc/ssl/certs"
mount --bind /etc/ssl/certs "$tree/etc/ssl/certs"
[ ! -e /etc/resolv.conf ] || { touch "$tree/etc/resolv.conf"; mount --bind /etc/resolv.conf "$tree/etc/resolv.conf"; }
until [ "$1" = -- ]; do mkdir -p "$tree/$1"; mount --bind "$1" "$tree/$1"; shift; done
shift
exec chroot "$tree" "$@"
"""
    kept = {name: value for name, value in os.environ.items() if re.match(r"PIP_|SSL_|[a-z]+_proxy$", name)}
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **kept}
    environment = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
    within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(tree)]
    return [*within, *map(str, shared), "--", *environment, *command]


def _run(command: Sequence[str], out: object, log: Path) -> None:
    if subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False).returncode:  # type: ignore[call-overload]
        last = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-20:])
        raise NoGuestError(f"{command[0]} failed, see {log}:\n{last}")

"""What must hold of the Debian package: it installs without a network, works, and leaves nothing when it is purged."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pageferry import __version__, config
from pageferry.kernel import cgroup
from support.packaged import DPKG, DPKGS_OWN, UNIT, install, shown, slurm_job
from support.slurm_groups import answers
from support.throwaway_host import CAT, SYSTEMD, Host, throwaway_host, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
EDITED = "[agent]\nretention_days = 7\n"


@contextmanager
def host_with(deb: Path, *first: str, version: str = "v2") -> Iterator[Host]:
    with throwaway_host(*first, version=version) as host:
        install(host, deb)
        yield host


@pytest.fixture(scope="module")
def chroot(deb: Path) -> Iterator[Host]:
    """A host on which the package was installed as into an image: systemd does not run."""
    with host_with(deb, *CAT) as host:
        yield host


@pytest.fixture(scope="module")
def host(deb: Path) -> Iterator[Host]:
    """A host on which the package was installed beside systemd."""
    with host_with(deb, *SYSTEMD) as made:
        yield made


def left(host: Host) -> set[str]:
    """Return what is there that was not before the package was installed, or is gone."""
    return {path for path in host.changed() if not DPKGS_OWN.match(path)}


@pytest.mark.long
def test_lintian_finds_no_error(deb: Path) -> None:
    answer = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(deb)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout


def test_no_path_of_the_machine_that_built_it_is_in_it(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--raw-extract", str(deb), str(tmp_path / "raw")], check=True)
    sought = ["grep", "-rlF", "-e", str(REPOSITORY), "-e", "/stage/opt", str(tmp_path / "raw")]
    assert subprocess.run(sought, capture_output=True, text=True, check=False).stdout == ""
    links = {path for path in (tmp_path / "raw").rglob("*") if path.is_symlink()}
    assert {str(path.readlink()) for path in links} == {
        "/usr/bin/python3",
        "/opt/pageferry/bin/pageferry",
        "/usr/lib/pageferry/hooks",
    }


def test_the_command_runs_from_its_own_environment(chroot: Host) -> None:
    assert chroot.run("pageferry", "--version") == f"pageferry {__version__}"
    where = "import click, numpy, pageferry; print(click.__file__, numpy.__file__, pageferry.__file__)"
    found = chroot.run("/opt/pageferry/bin/python3", "-I", "-c", where).split()
    assert all(path.startswith("/opt/pageferry/lib/") for path in found), found


def test_python_finds_all_of_it_compiled(chroot: Host) -> None:
    """Where it did not, each start would compile it again: the agent may not write below /opt."""
    site = next(chroot.path("/opt/pageferry/lib").glob("python3.*")) / "site-packages"
    sources = [path for path in site.rglob("*.py") if not path.is_relative_to(site / "pageferry/share")]
    assert len(sources) > 500
    for path in sources:
        (compiled,) = (path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")
        noted = struct.unpack("<III", compiled.read_bytes()[4:16])
        assert noted == (0, int(path.stat().st_mtime), path.stat().st_size), path
    said = chroot.run("/opt/pageferry/bin/python3", "-I", "-v", "-c", "import pageferry.agent.loop")
    assert said.count("# code object from '/opt/pageferry/") > 100
    assert "# code object from /opt/pageferry/" not in said, "compiled as it started"


def test_doctor_finds_the_settings_in_order_and_one_node_too_few(chroot: Host) -> None:
    code, said = chroot.ask("pageferry", "doctor")
    assert code == 4, said
    assert "FAIL  NUMA nodes: 1 with memory" in said
    assert "ok    settings: /etc/pageferry/pageferry.toml" in said
    assert said.count("FAIL") == 1, said


def test_the_settings_that_are_installed_are_the_defaults(chroot: Host) -> None:
    assert config.load(chroot.path("/etc/pageferry/pageferry.toml")) == config.Settings()
    assert chroot.run("dpkg-query", "--show", "--showformat=${Conffiles}", "pageferry").split()[0] == str(config.PATH)


def test_every_manual_page_is_shown_without_a_warning(chroot: Host) -> None:
    listed = chroot.run("dpkg", "--listfiles", "pageferry").splitlines()
    pages = [path for path in listed if re.search(r"/man[158]/.+\.gz$", path)]
    assert len(pages) > 10
    for page in pages:
        shell = f"MANWIDTH=80 man --warnings --encoding=UTF-8 --local-file {page} 2>&1 >/dev/null"
        assert chroot.run("sh", "-c", shell) == "", page
    for name in ("pageferry", "pageferry-move", "pageferry.toml"):
        assert chroot.run("man", "--where", name).endswith(".gz")


def test_completion_is_a_file_that_runs_nothing_when_it_is_loaded(chroot: Host) -> None:
    completion = "/usr/share/bash-completion/completions/pageferry"
    traced = chroot.run("bash", "-c", f"PATH=/nowhere; . {completion}; complete -p pageferry")
    assert "-F _pageferry_completion pageferry" in traced
    words = ["_PAGEFERRY_COMPLETE=bash_complete", "COMP_WORDS=pageferry hist", "COMP_CWORD=1", "pageferry"]
    assert "history" in chroot.run("env", *words)
    assert chroot.path("/usr/share/zsh/vendor-completions/_pageferry").read_text().startswith("#compdef pageferry\n")
    assert "complete" in chroot.path("/usr/share/fish/vendor_completions.d/pageferry.fish").read_text()


def test_what_is_rendered_names_hooks_that_the_package_has(chroot: Host) -> None:
    chroot.run("pageferry", "render", "slurm", "--out", "/run/slurm")
    named = re.findall(r"^(?:Prolog|Epilog)=(\S+)", chroot.path("/run/slurm/pageferry.conf").read_text(), re.MULTILINE)
    assert len(named) == 2
    for path in named:
        assert path.startswith("/usr/lib/pageferry/hooks/slurm/")
        (hook,) = chroot.path(path).parent.glob(Path(path).name)
        assert hook.stat().st_mode & 0o111
        chroot.run(f"{Path(path).parent}/{hook.name}")
    chroot.run("pageferry", "render", "pbs", "--out", "/run/pbs")
    assert "/usr/lib/pageferry/hooks/pbs/pageferry_hook.py" in chroot.path("/run/pbs/pageferry.qmgr").read_text()
    assert '"/usr/bin/pageferry"' in chroot.path("/run/pbs/pageferry-hook.json").read_text()


def test_the_agent_is_enabled_where_systemd_does_not_run(chroot: Host) -> None:
    assert chroot.path("/etc/systemd/system/multi-user.target.wants/pageferry.service").is_symlink()


def test_a_purge_leaves_nothing_where_systemd_does_not_run(chroot: Host) -> None:
    """The last of that host's tests."""
    chroot.ask("pageferry", "plan", "--pid", "1", "--to", "0")  # whatever it would write
    chroot.run(*DPKG, "--purge", "pageferry")
    assert left(chroot) == set()
    assert not list(chroot.path("/etc/systemd/system").rglob("*pageferry*"))


def test_a_job_that_is_held_survives_an_upgrade_and_the_settings_stay(deb: Path, host: Host) -> None:
    assert shown(host, "ActiveState") == "active", "started by the installation"
    edited = host.path("/etc/pageferry/pageferry.toml")
    edited.write_text(EDITED)
    first = shown(host, "MainPID")
    with slurm_job(host, "v2", 4711) as job:
        job.suspend()
        wait_until(job.is_held, "the agent holds the job")
        install(host, deb)
        assert shown(host, "ActiveState") == "active"
        assert shown(host, "MainPID") != first
        assert edited.read_text() == EDITED, "the site's"
        wait_until(job.is_held, "the next agent holds what is still suspended")
        job.resume()
        assert answers(job.process, 20)  # type: ignore[arg-type]


def test_an_upgrade_does_not_start_an_agent_that_was_stopped(deb: Path, host: Host) -> None:
    host.run("systemctl", "stop", UNIT)
    install(host, deb)
    assert shown(host, "ActiveState") == "inactive"
    assert host.run("systemctl", "is-enabled", UNIT) == "enabled"
    host.run("systemctl", "start", UNIT)


def test_a_job_that_is_held_survives_a_removal_and_a_purge_leaves_nothing(host: Host) -> None:
    """The last of that host's tests."""
    host.path("/etc/pageferry/pageferry.toml").write_text(EDITED)
    with slurm_job(host, "v2", 4712) as job:
        job.suspend()
        wait_until(job.is_held, "the agent holds the job")
        host.run(*DPKG, "--remove", "pageferry")
        assert job.is_free()
        job.resume()
        assert answers(job.process, 20)  # type: ignore[arg-type]
    assert host.ask("systemctl", "is-active", UNIT)[1].strip() == "inactive"
    assert not host.path("/opt/pageferry").exists()
    assert not host.path("/run/pageferry").exists()
    assert host.path("/var/lib/pageferry/history.sqlite3").exists(), "a removal keeps what a purge does not"
    assert host.path("/etc/pageferry/pageferry.toml").read_text() == EDITED
    host.run(*DPKG, "--purge", "pageferry")
    assert left(host) == set()
    assert not list(host.path("/etc/systemd/system").rglob("*pageferry*"))


def test_a_removal_gives_moved_jobs_slurms_cpus_back_and_says_so(deb: Path) -> None:
    cpus = cgroup.read_cpuset(Path("/sys/fs/cgroup/cpuset"))
    with host_with(deb, *SYSTEMD, version="v1") as host, slurm_job(host, "v1", 4711) as job:
        group = Path("/sys/fs/cgroup/cpuset/slurm/uid_0/job_4711/step_0")
        assert cpus is not None
        own, other = sorted(cpus.effective_cpus)[:2]
        for above in [*reversed(group.parents[:3]), group]:
            made = host.path(above)
            made.mkdir()
            (made / "cpuset.mems").write_text((made.parent / "cpuset.mems").read_text())
            allowed = str(own) if above in {group, group.parent} else (made.parent / "cpuset.cpus").read_text()
            (made / "cpuset.cpus").write_text(allowed)
        host.run("sh", "-c", f"echo {host_pid(host)} > {group}/cgroup.procs")
        # A host of one node has nowhere to move memory to, so its agent moves no job: its map is written without it.
        move = f"from pageferry.cpus.assignments import *; a = Assignments(); a.restore(); a.move(4711, [{other}])"
        host.run("systemctl", "stop", UNIT)
        host.run("/opt/pageferry/bin/python3", "-I", "-c", move)
        host.run("systemctl", "start", UNIT)
        assert affinity(host) == str(other)
        said = host.run(*DPKG, "--remove", "pageferry")
        assert affinity(host) == str(own)
        assert "job 4711: on Slurm's CPUs again" in said
        assert "moved" in said
        assert answers(job.process, 20)  # type: ignore[arg-type]


def host_pid(host: Host) -> str:
    """Return the task of the job as the host numbers it."""
    return host.run("cat", "/sys/fs/cgroup/freezer/slurm/uid_0/job_4711/step_0/cgroup.procs")


def affinity(host: Host) -> str:
    """Return the CPUs that the job's task may use."""
    status = host.run("cat", f"/proc/{host_pid(host)}/status")
    found = re.search(r"^Cpus_allowed_list:\t(.+)$", status, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.long
def test_the_same_tree_and_time_give_the_same_package(deb: Path, tmp_path: Path) -> None:
    built = deb.read_bytes()
    epoch = built[24:36].decode().strip()  # of the first member: ar(5)
    script = REPOSITORY / "contrib/debian/build.sh"
    words = [str(script), str(REPOSITORY / ".venv"), "/usr/bin/python3", str(tmp_path / deb.name)]
    subprocess.run(words, check=True, capture_output=True, env=os.environ | {"SOURCE_DATE_EPOCH": epoch})
    assert (tmp_path / deb.name).read_bytes() == built

"""The Debian package on a host that serves jobs: real systemd, Slurm by its packages' units, four nodes, no network.

One story in the order of `docs/install.md`: installation, the site's files, an upgrade, a removal; two jobs run through
all of it. The machine is `make guest-package`'s, since no other has systemd. What the package does to a host's files is
`tests/host/test_debian.py`'s.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guest import freezing
from guest.steady import Steady, submit
from guest.vm import slurm as daemons
from guest.vm import slurm_units
from guest.vm.jobs import Slurm, wait_until
from pageferry import __version__, wire
from pageferry.kernel.inotify import Inotify
from pageferry.schedulers import slurm_api
from support.packaged import DPKG, UNIT

pytestmark = pytest.mark.package

REPOSITORY = Path(__file__).resolve().parents[2]
HOOKS = Path("/usr/lib/pageferry/hooks/slurm")
INCLUDES = {"slurm.conf": "Include pageferry.conf\n", "cgroup.conf": "Include pageferry-cgroup.conf\n"}
IN_OPEN = 0x20
INSTALLED = (
    "/lib/systemd/system/pageferry.service",
    "/etc/pageferry/pageferry.toml",
    "/usr/lib/pageferry/hooks/slurm/prolog.d/50-pageferry",
    "/usr/lib/pageferry/hooks/slurm/epilog.d/50-pageferry",
    "/usr/lib/pageferry/hooks/pbs/pageferry_hook.py",
    "/usr/share/man/man8/pageferry.8.gz",
    "/usr/share/man/man5/pageferry.toml.5.gz",
    "/usr/share/bash-completion/completions/pageferry",
)
AFTER_A_PURGE = ("/opt/pageferry", "/run/pageferry", "/var/lib/pageferry", "/etc/pageferry", "/usr/lib/pageferry")


@dataclass(frozen=True, slots=True)
class Site:
    """A host's Slurm and two jobs: one that will be given other CPUs, one that stays on its own and is suspended.

    `before` is what their cpusets and CPUs were before there was an agent.
    """

    slurm: Slurm
    deb: Path
    moved: Steady
    still: Steady
    before: dict[str, str]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A host as it is before the package: its jobs run, and nothing of ours is there."""
    assert Path("/run/systemd/system").is_dir(), "needs --systemd: make guest-package"
    assert [path.name for path in Path("/sys/class/net").iterdir()] == ["lo"]
    (deb,) = (REPOSITORY / "dist").glob(f"pageferry_{__version__}_*.deb")
    slurm = slurm_units.start()
    moved, still = (submit(slurm, "-n2", "-mblock:block", mib=4, shared_mib=4) for _ in range(2))
    yield Site(slurm, deb, moved, still, confined(moved) | confined(still))
    slurm.cancel_all()
    slurm_units.stop()


@pytest.fixture(scope="module")
def served(site: Site) -> Site:
    """The same, with the package installed and its agent told to Slurm, as install.md has it."""
    run(*DPKG, "--install", site.deb)
    run("/usr/bin/pageferry", "render", "slurm", "--out", daemons.CONF, "--beside", daemons.CONF)
    for name, line in INCLUDES.items():
        with (daemons.CONF / name).open("a") as file:
            file.write(line)
    shutil.copy(HOOKS / "job_submit.lua", daemons.CONF)
    slurm_units.restart(site.slurm)
    return site


def run(*command: object) -> str:
    """Return what a command said that must end well."""
    words = list(map(str, command))
    answer = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert answer.returncode == 0, f"{' '.join(words)}: {answer.stdout[-2000:]}\n{journal()}"
    return answer.stdout


def journal() -> str:
    words = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--unit={UNIT}", "--lines=30"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def shown(name: str) -> str:
    return run("systemctl", "show", "--value", "--property", name, UNIT).strip()


def ask(verb: str) -> dict[str, Any]:
    return wire.ask(wire.PATH, {"verb": verb}, 30)


def phase(job: Steady) -> str | None:
    found: str | None = ask("status")["jobs"].get(str(job.id), {}).get("phase")
    return found


def confined(job: Steady) -> dict[str, str]:
    """Return the text of each cpuset file of a job, and the CPUs that its processes may use."""
    groups = {step.parents[1] for step in job.slurm.step_freezers(job.id)}
    texts = {str(file): file.read_text() for group in groups for file in sorted(group.rglob("cpuset.*"))}
    assert texts
    return texts | {f"CPUs of {pid}": str(os.sched_getaffinity(pid)) for pid in job.slurm.pids(job.id)}


def suspend(job: Steady) -> None:
    job.slurm.suspend(job.id)
    wait_until(lambda: phase(job) == "held" and freezing.held(job.slurm, job.id), f"the agent holds it:\n{journal()}")


def ran_through(slurm: Slurm) -> None:
    """Run a job from its prolog to its epilog, and see that the node would take the next."""
    number = slurm.submit("true", "-n1", "--mem=16")
    slurm.wait_state(number, "COMPLETED")
    wait_until(lambda: slurm.node_states() in (["idle"], ["mix"]), f"the node is not drained: {slurm.node_states()}")


def ours() -> list[str]:
    """Return the command lines of processes that run the package's files."""
    commands = [freezing.command(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [repr(command) for command in commands if b"/opt/pageferry/" in command or b"/usr/bin/pageferry" in command]


def test_the_package_installs_beside_running_jobs_and_changes_none(served: Site) -> None:
    assert [shown("ActiveState"), shown("UnitFileState")] == ["active", "enabled"]
    assert shown("FragmentPath").endswith("/lib/systemd/system/pageferry.service")
    assert run("/usr/bin/pageferry", "--version") == f"pageferry {__version__}\n"
    assert [path for path in INSTALLED if not Path(path).is_file()] == []
    assert confined(served.moved) | confined(served.still) == served.before
    assert served.moved.runs()
    assert served.still.runs()


def test_slurm_runs_the_hooks_that_the_package_has_and_refuses_a_wrong_request(served: Site) -> None:
    hooks = [HOOKS / f"{kind}.d/50-pageferry" for kind in ("prolog", "epilog")]
    with closing(Inotify()) as inotify:
        watched = {inotify.watch(hook, IN_OPEN) for hook in hooks}
        opened: set[int] = set()

        def both() -> bool:
            opened.update(event.watch for event in inotify.read())
            return opened >= watched

        ran_through(served.slurm)
        wait_until(both, "prolog and epilog run")
    wrong = ["scontrol", "update", f"JobId={served.moved.id}", "AdminComment=pageferry:nodes=2-x"]
    assert subprocess.run(wrong, capture_output=True, check=False).returncode != 0


def test_a_suspended_job_finds_its_memory_on_the_nodes_that_the_operator_asked_for(served: Site) -> None:
    job = served.moved
    assert set(job.diary()[-1]["nodes"]) == {"0"}
    run("scontrol", "update", f"JobId={job.id}", "AdminComment=pageferry:nodes=2")
    suspend(job)
    job.slurm.resume(job.id)
    wait_until(lambda: phase(job) == "runs", "it was let go")
    wait_until(lambda: set(job.diary()[-1]["nodes"]) == {"2"}, f"it finds its memory there: {job.diary()[-1]}")
    assert (job.diary()[-1]["cpus"], job.diary()[-1]["intact"]) == ([4, 5], True)
    outcome = "[pageferry] guest: moved"
    wait_until(lambda: slurm_api.choose().job(job.id).admin_comment.startswith(outcome), "the operator is told")


def test_an_upgrade_leaves_no_job_held_and_none_on_other_cpus_than_before(served: Site) -> None:
    moved, still = served.moved, served.still
    suspend(still)
    first, placed = shown("MainPID"), confined(moved)
    run(*DPKG, "--unpack", served.deb)
    assert ours() == [], "no agent runs meanwhile"
    assert not freezing.held(still.slurm, still.id)
    assert confined(moved) == placed
    assert moved.runs()
    still.slurm.resume(still.id)
    assert still.runs(), "it can be resumed with no agent there"
    still.slurm.suspend(still.id)
    run(*DPKG, "--configure", "pageferry")
    assert shown("ActiveState") == "active"
    assert shown("MainPID") not in {"0", first}
    wait_until(lambda: freezing.held(still.slurm, still.id), "the next agent holds what is suspended")
    known = ask("cpus")["jobs"]
    assert {job.id: known[str(job.id)]["real"] for job in (moved, still)} == {moved.id: "4-5", still.id: "2-3"}
    still.slurm.resume(still.id)
    assert still.runs()
    assert moved.runs()
    assert confined(moved) == placed
    assert served.slurm.node_states() == ["mix"]


def test_a_removal_leaves_no_job_held_and_every_cpuset_as_slurm_made_it(served: Site) -> None:
    """The last of this host's tests: the lines come out of Slurm's files first, as install.md says."""
    moved, still = served.moved, served.still
    for name, line in INCLUDES.items():
        path = daemons.CONF / name
        path.write_text(path.read_text().replace(line, ""))
    for path in (*daemons.CONF.glob("pageferry*.conf"), daemons.CONF / "job_submit.lua"):
        path.unlink()
    slurm_units.restart(served.slurm)
    suspend(still)
    assert confined(moved).items() - served.before.items(), "it is on other CPUs"
    said = run(*DPKG, "--purge", "pageferry")
    assert f"job {moved.id}: on Slurm's CPUs again" in said
    assert not freezing.held(still.slurm, still.id)
    assert served.slurm.frozen(still.id), "by Slurm, whose suspension stays"
    assert confined(moved) | confined(still) == served.before
    assert ours() == []
    assert [path for path in AFTER_A_PURGE if Path(path).exists()] == []
    assert not list(daemons.CGROUP.rglob("*pageferry*"))
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert not [line for line in mounts if "/run/pageferry" in line.split()[4]]
    still.slurm.resume(still.id)
    for job in (moved, still):
        assert job.runs()
        assert job.diary()[-1]["intact"]
        (job.folder / "stop").touch()
        job.slurm.wait_state(job.id, "COMPLETED")
    ran_through(served.slurm)
    assert served.slurm.node_states() == ["idle"]

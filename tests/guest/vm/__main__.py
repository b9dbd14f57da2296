"""The command line of the test guest: `run` a command in it, or open a `shell` in it."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from guest.vm import session
from guest.vm.errors import GuestError, NoGuestError
from guest.vm.layouts import LAYOUTS, observed
from guest.vm.system import CODENAMES

# As env(1) and timeout(1) have them: the command's own codes stay below.
EXIT_FAILED = 125
EXIT_UNAVAILABLE = 126
WANTED_NODES = 4


def main(argv: list[str]) -> int:
    """Do what the command line says; the exit code is the command's, 125 or 126."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        if arguments.verb == "run" and arguments.here:
            return here(arguments.command, arguments.results)
        return session.run(_wanted(arguments), sys.stdout.buffer)
    except NoGuestError as error:
        print(f"guest: cannot run here: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def here(command: list[str], results: Path) -> int:
    """Run the command on this host, which must have the nodes that the tests need."""
    found = sum(1 for node in observed().nodes if node.mib)
    if found < WANTED_NODES:
        raise NoGuestError(f"{found} NUMA node(s) with memory, {WANTED_NODES} needed: leave out --here")
    results.mkdir(parents=True, exist_ok=True)
    cgroup = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    variables = session.environment("here", cgroup, results.resolve())
    try:
        return subprocess.run(command, env=os.environ | variables, check=False).returncode
    except FileNotFoundError as error:
        raise NoGuestError(f"no such command: {error.filename}") from None


def _end(number: int, _frame: FrameType | None) -> None:
    # An exception, so that qemu is ended on the way out.
    raise SystemExit(128 + number)


def _wanted(arguments: argparse.Namespace) -> session.Wanted:
    return session.Wanted(
        layout=LAYOUTS[arguments.layout],
        results=arguments.results,
        command=arguments.command,
        cgroup=arguments.cgroup,
        slurm=arguments.slurm,
        systemd=arguments.systemd,
        debian=arguments.debian,
        threads=arguments.smp_threads,
        timeout_s=arguments.timeout,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m guest.vm", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--layout", choices=LAYOUTS, default="four", help="the NUMA topology")
    common.add_argument("--cgroup", choices=("v2", "v1"), default="v2")
    common.add_argument("--slurm", action="store_true", help="start Slurm before the command")
    common.add_argument("--systemd", action="store_true", help="systemd as the first process; on cgroup v2 alone")
    common.add_argument("--debian", type=int, choices=CODENAMES, help="a Debian release instead of this host's system")
    common.add_argument(
        "--smp-threads", choices=("single", "multi"), default="multi",
        help="emulated CPUs in one thread (boots faster) or one each (real parallel speed)",
    )  # fmt: skip
    common.add_argument(
        "--results", type=Path, default=session.CACHE / "results",
        help=f"host folder that the guest sees as {session.GUEST_RESULTS}; logs are left there",
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", parents=[common], help="run a command; its exit code is the result")
    run.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds until the guest is ended")
    run.add_argument("--here", action="store_true", help="no guest: this host, if it has four NUMA nodes")
    run.add_argument("command", nargs="+", metavar="CMD")
    verbs.add_parser("shell", parents=[common], help="an interactive shell").set_defaults(command=[], timeout=None)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

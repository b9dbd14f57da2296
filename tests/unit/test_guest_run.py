"""How a run of the guest ends: well, hung, dead, refused. Small shell scripts stand in qemu's place."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guest.vm import __main__ as command_line
from guest.vm import accelerator, session, supervise, system
from guest.vm.errors import GuestError, NoGuestError, NotBootedError
from guest.vm.layouts import LAYOUTS


def run(tmp_path: Path, script: str, timeout_s: float | None = 30.0) -> tuple[int, str]:
    """Run a script as the guest; STATUS, CONSOLE and PID in it are files."""
    for name in ("STATUS", "CONSOLE", "PID"):
        script = script.replace(name, str(tmp_path / name))
    out = io.BytesIO()
    code = supervise.run(["sh", "-c", script], tmp_path / "STATUS", tmp_path / "CONSOLE", timeout_s, out)
    return code, out.getvalue().decode()


def gone(pid: int) -> bool:
    """Wait for the end of a process that is not a child of this one."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_output_and_exit_code_come_out(tmp_path: Path) -> None:
    assert run(tmp_path, "echo hello; echo 7 >STATUS") == (7, "hello\n")


def test_output_is_passed_on_before_the_guest_ends(tmp_path: Path) -> None:
    # The stand-in waits until the harness has written what it said.
    relayed = tmp_path / "relayed"
    os.mkfifo(tmp_path / "go")

    class Out(io.BytesIO):
        def flush(self) -> None:
            if b"early" in self.getvalue() and not relayed.exists():
                relayed.touch()
                (tmp_path / "go").write_text("on\n")

    script = f"echo early; read line <{tmp_path}/go; echo 0 >{tmp_path}/STATUS"
    argv = ["sh", "-c", script]
    assert supervise.run(argv, tmp_path / "STATUS", tmp_path / "CONSOLE", 30.0, Out()) == 0
    assert relayed.exists()


@pytest.mark.parametrize("hang", ["exec sleep 1000", "exec >&-; exec sleep 1000"], ids=["silent", "closed"])
def test_a_guest_that_hangs_is_ended_and_its_console_shown(tmp_path: Path, hang: str) -> None:
    with pytest.raises(GuestError, match=r"(?s)ended after 0\.5 s.*stuck in a loop"):
        run(tmp_path, f"echo stuck in a loop >CONSOLE; echo $$ >PID; {hang}", timeout_s=0.5)
    assert gone(int((tmp_path / "PID").read_text()))


def test_a_guest_that_dies_without_an_exit_code_is_a_failure_with_its_console(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"(?s)before the command did.*Kernel panic"):
        run(tmp_path, "echo Kernel panic >CONSOLE; exit 0")


def test_a_guest_whose_command_does_not_begin_is_ended_soon(tmp_path: Path) -> None:
    argv = ["sh", "-c", f"echo no timer >{tmp_path}/CONSOLE; echo $$ >{tmp_path}/PID; exec sleep 1000"]
    with pytest.raises(NotBootedError, match=r"(?s)not begun after 0\.5 s.*no timer"):
        supervise.run(argv, tmp_path / "STATUS", tmp_path / "CONSOLE", 30.0, io.BytesIO(), boot_s=0.5)
    assert gone(int((tmp_path / "PID").read_text()))


def test_a_guest_that_dies_before_its_command_begins_has_not_booted(tmp_path: Path) -> None:
    argv = ["sh", "-c", f"echo Kernel panic >{tmp_path}/CONSOLE"]
    with pytest.raises(NotBootedError, match=r"(?s)before its command began.*Kernel panic"):
        supervise.run(argv, tmp_path / "STATUS", tmp_path / "CONSOLE", 30.0, io.BytesIO(), boot_s=30.0)


def test_a_guest_that_has_begun_takes_as_long_as_it_takes(tmp_path: Path) -> None:
    begins = f"echo 'guest: the command starts after 3 s' >{tmp_path}/CONSOLE"
    argv = ["sh", "-c", f"{begins}; sleep 1; echo hello; echo 7 >{tmp_path}/STATUS"]
    out = io.BytesIO()
    assert supervise.run(argv, tmp_path / "STATUS", tmp_path / "CONSOLE", 30.0, out, boot_s=0.5) == 7
    assert out.getvalue() == b"hello\n"


def test_a_guest_that_does_not_boot_is_started_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def run(*_: object, **__: object) -> int:
        tried.append(1)
        if len(tried) == 1:
            raise NotBootedError("no timer")
        return 5

    monkeypatch.setattr(supervise, "run", run)
    monkeypatch.setattr(accelerator, "choose", lambda *_: "tcg")
    wanted = session.Wanted(LAYOUTS["four"], tmp_path, ("true",))
    assert session.run(wanted, io.BytesIO()) == 5
    assert len(tried) == 2


def test_a_half_written_exit_code_is_none(tmp_path: Path) -> None:
    with pytest.raises(GuestError):
        run(tmp_path, "printf '' >STATUS")


def test_a_guest_does_not_outlive_its_harness(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/PID; echo up; exec sleep 1000"
    program = (
        "import sys; from pathlib import Path; from guest.vm import supervise;"
        f"supervise.run(['sh', '-c', {script!r}], Path('s'), Path('c'), None, sys.stdout.buffer)"
    )
    environment = os.environ | {"PYTHONPATH": str(system.REPOSITORY / "tests")}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as harness:
        assert harness.stdout is not None
        assert harness.stdout.readline() == b"up\n"
        harness.send_signal(signal.SIGKILL)
        harness.wait()
    assert gone(int((tmp_path / "PID").read_text()))


def test_kvm_is_asked_once_for_each_boot_of_the_host(tmp_path: Path) -> None:
    kvm = tmp_path / "kvm"
    kvm.touch()
    answers = iter([False])
    assert accelerator.choose(tmp_path, lambda: next(answers), kvm) == "tcg"
    assert accelerator.choose(tmp_path, lambda: next(answers), kvm) == "tcg"


def test_kvm_that_boots_is_used_and_a_missing_one_is_not_tried(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    assert accelerator.choose(tmp_path, lambda: True, tmp_path / "kvm") == "kvm"
    assert accelerator.choose(tmp_path, lambda: True, tmp_path / "none") == "tcg"


def test_a_host_without_qemu_gets_one_line_and_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_line.main(["run", "--", "true"]) == command_line.EXIT_UNAVAILABLE
    assert capsys.readouterr().err == (
        "guest: cannot run here: no qemu-system-x86_64 in PATH: install qemu-system-x86\n"
    )


def test_here_refuses_a_host_with_too_few_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command_line, "WANTED_NODES", 1000)
    with pytest.raises(NoGuestError, match="1000 needed"):
        command_line.here(["true"], tmp_path)


def test_systemd_as_the_first_process_is_refused_on_version_1(tmp_path: Path) -> None:
    wanted = session.Wanted(LAYOUTS["four"], tmp_path / "results", ["true"], cgroup="v1", systemd=True)
    with pytest.raises(NoGuestError, match="--systemd without --cgroup v1"):
        session.run(wanted, io.BytesIO())
    assert not (tmp_path / "results").exists()


def test_here_tells_the_command_what_a_guest_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command_line, "WANTED_NODES", 1)
    script = '[ "$PAGEFERRY_GUEST_LAYOUT" = here ] && [ -d "$PAGEFERRY_RESULTS" ] && exit 9'
    assert command_line.here(["sh", "-c", script], tmp_path / "results") == 9

"""What must hold of the files that install the hook in PBS, and of what the doctor says of MoM's copy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pageferry.doctor.findings import Grade
from pageferry.doctor.pbs import examine_pbs
from pageferry.errors import UsageError
from pageferry.pbs.event import Kind
from pageferry.render import Action, shipped
from pageferry.render_pbs import CONFIG, SCRIPT, PbsOptions, render_pbs
from support.trees import write

HOOK = shipped("hooks") / "pbs/pageferry_hook.py"
HK = "hook_name=pageferry\nevent={events}\norder={order}\nalarm=30\n"
HOOKS = "var/spool/pbs/mom_priv/hooks"


def options(**also: object) -> PbsOptions:
    return PbsOptions(**{"hooks": shipped("hooks"), "command": Path("/usr/local/bin/pageferry"), **also})  # type: ignore[arg-type]


def test_the_script_names_every_event_and_a_configuration_that_the_hook_accepts(tmp_path: Path) -> None:
    script, config = render_pbs(tmp_path, options())
    text = script.path.read_text()
    assert {script.action, config.action} == {Action.WRITTEN}
    for kind in Kind:
        assert kind.value in text
    assert f"import hook pageferry application/x-python default {HOOK}" in text
    assert f"application/x-config default {tmp_path / CONFIG}" in text
    assert "create resource pageferry_outcome type = string, flag = m" in text
    words = ["/usr/bin/python3", "-I", "-S", str(HOOK)]
    checked = subprocess.run(words, input=config.path.read_bytes(), capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert json.loads(config.path.read_text())["preresume_seconds"] < 30


def test_without_resources_none_is_defined_and_none_is_used(tmp_path: Path) -> None:
    script, config = render_pbs(tmp_path, options(resources=False))
    assert "create resource" not in script.path.read_text()
    assert "resource" not in config.path.read_text()


def test_the_sites_configuration_and_edited_scripts_are_left(tmp_path: Path) -> None:
    render_pbs(tmp_path, options())
    (tmp_path / CONFIG).write_text('{"seconds": 1}')
    assert [file.action for file in render_pbs(tmp_path, options())] == [Action.UNCHANGED, Action.UNCHANGED]
    assert (tmp_path / CONFIG).read_text() == '{"seconds": 1}'
    with pytest.raises(UsageError, match="another alarm"):
        render_pbs(tmp_path, options(alarm_seconds=10))
    (tmp_path / SCRIPT).write_text((tmp_path / SCRIPT).read_text() + "set hook pageferry enabled = False\n")
    with pytest.raises(UsageError, match="was edited"):
        render_pbs(tmp_path, options())
    render_pbs(tmp_path, options(force=True))
    assert "seconds" in (tmp_path / CONFIG).read_text()


@pytest.mark.parametrize(
    "wrong", [{"hooks": Path("/a b")}, {"command": Path("x")}, {"alarm_seconds": 1}, {"freq_seconds": 0}]
)
def test_what_qmgr_could_not_take_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        render_pbs(tmp_path, options(**wrong))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with a MoM that has the hook as it should be."""
    write(tmp_path, "etc/pbs.conf", "PBS_HOME=/var/spool/pbs\nPBS_START_MOM=1\n")
    write(tmp_path, f"{HOOKS}/pageferry.HK", HK.format(events=",".join(kind.value for kind in Kind), order=200))
    write(tmp_path, f"{HOOKS}/pageferry.PY", HOOK.read_bytes())
    write(tmp_path, f"{HOOKS}/pageferry.CF", "{}")
    return tmp_path


def said(root: Path) -> list[str]:
    return [f"{finding.subject}: {finding.text}" for finding in examine_pbs(root) if finding.grade is not Grade.OK]


def test_a_host_as_it_should_be_has_nothing_to_change_and_one_without_pbs_has_no_finding(
    host: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert said(host) == []
    assert list(examine_pbs(tmp_path_factory.mktemp("none"))) == []
    write(host, "etc/pbs.conf", "PBS_HOME=/var/spool/pbs\nPBS_START_MOM=0\n")
    assert said(host) == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("pageferry.HK", HK.format(events="execjob_preresume", order=200), "events missing (execjob_begin"),
        ("pageferry.HK", HK.format(events=",".join(k.value for k in Kind), order=50), "order 50 is before pbs_cgroups"),
        ("pageferry.HK", HK.format(events=",".join(k.value for k in Kind), order=200) + "enabled=FALSE\n", "disabled"),
        (
            "pageferry.HK",
            HK.format(events=",".join(k.value for k in Kind), order=200) + "fail_action=offline_vnodes\n",
            "fail_action offline_vnodes",
        ),
        (
            "pageferry.HK",
            HK.format(events=",".join(k.value for k in Kind), order=200).replace("alarm=30", "alarm=10"),
            "its alarm is 10 s, and pageferry-hook.json says 30",
        ),
        ("pageferry.PY", "print(1)", "not this version's"),
        ("pageferry.CF", '{\n"secondss": 1}', 'line 2: "secondss": unknown key'),
        ("pageferry.CF", '{"alarm": "x"}', 'alarm = "x": expected a number'),
    ],
)
def test_each_thing_that_is_set_wrong_is_named(host: Path, file: str, text: str, complaint: str) -> None:
    write(host, f"{HOOKS}/{file}", text)
    assert any(complaint in line for line in said(host)), said(host)


def test_a_mom_without_the_hook_is_told_how_to_get_it(host: Path) -> None:
    (host / HOOKS / "pageferry.HK").unlink()
    assert any("qmgr < pageferry.qmgr" in line for line in said(host))

"""What must hold of the doctor before a Slurm and a host: each thing that is wrong is named, with what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.doctor.agent import examine_place, examine_settings, examine_watching
from pageferry.doctor.findings import Finding, Grade
from pageferry.doctor.slurm import examine_config, examine_slurm
from pageferry.errors import ConfigError
from pageferry.schedulers import slurm_config
from pageferry.schedulers.slurm_config import parse_shown, read_settings
from support.trees import plant, write

# As 22.05.8 and, for the hooks, as 24.05 and newer print it.
SHOWN = """Configuration data as of 2026-11-23T15:00:00
Epilog{epilog}
HealthCheckInterval     = {interval} sec
HealthCheckProgram      = {health}
JobSubmitPlugins        = {submit}
ProctrackType           = {tracking}
Prolog{prolog}
PrologFlags             = (null)
SLURM_CONF              = /etc/slurm/slurm.conf
SLURM_VERSION           = 22.05.8
TaskPlugin              = {task}

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%
ConstrainCores          = {cores}

Slurmctld(primary) at guest is UP
"""
GOOD = {
    "epilog": "                  = /hooks/50-pageferry",
    "prolog": "                  = /hooks/50-pageferry",
    "interval": "0",
    "health": "(null)",
    "submit": "lua",
    "tracking": "proctrack/cgroup",
    "task": "task/cgroup,task/affinity",
    "cores": "yes",
}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host on which all is well."""
    for path in ("hooks/50-pageferry", "bin/sh", "usr/bin/python3"):
        program(tmp_path, path, "# pageferry\n")
    write(tmp_path, "etc/slurm/cgroup.conf", "ConstrainCores=yes\n")
    return tmp_path


def program(root: Path, path: str, text: str, mode: int = 0o755) -> None:
    write(root, path, text)
    (root / path).chmod(mode)


def examine(root: Path, **changed: str) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine_config(parse_shown(SHOWN.format(**GOOD | changed).encode()), root):
        found.setdefault(finding.subject, []).append(finding)
    return found


def the_one(findings: list[Finding], grade: Grade) -> str:
    (finding,) = findings
    assert finding.grade is grade, finding
    return finding.text


def test_a_good_site_has_nothing_to_change(host: Path) -> None:
    found = examine(host)
    assert {finding.grade for findings in found.values() for finding in findings} == {Grade.OK}
    assert set(found) == {"ProctrackType", "TaskPlugin", "ConstrainCores", "Prolog", "Epilog", "JobSubmitPlugins"}


def test_only_another_proctrack_keeps_pageferry_from_its_work(host: Path) -> None:
    found = examine(host, tracking="proctrack/linuxproc", task="task/none", cores="no", submit="(null)")
    text = the_one(found["ProctrackType"], Grade.FAIL)
    assert text.startswith("proctrack/linuxproc; set ProctrackType=proctrack/cgroup in slurm.conf")
    assert [subject for subject in found if found[subject][0].grade is Grade.FAIL] == ["ProctrackType"]


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("task/none", "task/none; set TaskPlugin=task/cgroup,task/affinity"),
        ("(null)", "not set; set TaskPlugin=task/cgroup,task/affinity"),
        ("task/affinity", "set TaskPlugin=task/affinity,task/cgroup"),
        ("cgroup", "set TaskPlugin=task/cgroup,task/affinity"),
        ("task/cray_aries,task/cgroup", "set TaskPlugin=task/cray_aries,task/cgroup,task/affinity"),
    ],
)
def test_what_a_task_plugin_lacks_is_added_to_what_the_site_has(task: str, change: str, host: Path) -> None:
    assert change in the_one(examine(host, task=task)["TaskPlugin"], Grade.WARN)


@pytest.mark.parametrize("task", ["task/affinity,task/cgroup", "affinity,cgroup", "task/cgroup, task/affinity"])
def test_task_plugins_are_known_as_slurm_knows_them(task: str, host: Path) -> None:
    the_one(examine(host, task=task)["TaskPlugin"], Grade.OK)


@pytest.mark.parametrize(
    ("told", "own", "says"),
    [
        ("no", "ConstrainCores=yes\n", "no (slurmctld); set"),
        ("yes", "ConstrainCores=no\n", "no (/etc/slurm/cgroup.conf); set"),
        ("yes", "ConstrainRAMSpace=yes\n#ConstrainCores=yes\n", "not set (/etc/slurm/cgroup.conf); set"),
        ("yes", "ConstrainCores=yes\nconstraincores=no\n", "no (/etc/slurm/cgroup.conf); set"),
    ],
)
def test_cores_must_be_constrained_by_this_hosts_own_file_too(told: str, own: str, says: str, host: Path) -> None:
    write(host, "etc/slurm/cgroup.conf", own)
    text = the_one(examine(host, cores=told)["ConstrainCores"], Grade.WARN)
    assert says in text
    assert "set ConstrainCores=yes in /etc/slurm/cgroup.conf" in text


def test_an_included_cgroup_file_counts_and_a_lost_one_is_named(host: Path) -> None:
    write(host, "etc/slurm/cgroup.conf", "Include more.conf\n")
    assert "more.conf: No such file" in the_one(examine(host)["ConstrainCores"], Grade.WARN)
    write(host, "etc/slurm/more.conf", "ConstrainCores=yes\n")
    the_one(examine(host)["ConstrainCores"], Grade.OK)


@pytest.mark.parametrize("key", ["Prolog", "Epilog"])
@pytest.mark.parametrize(
    ("shown", "says"),
    [
        (" = (null)", "not set: "),
        (" = /gone/50-pageferry", "nothing on this host matches /gone/50-pageferry: Slurm drains the node"),
        (" = /empty/*", "nothing on this host matches /empty/*"),
        (" = hooks/50-pageferry", "hooks/50-pageferry is not an absolute path"),
        (" = /locked", "/locked cannot be run (Slurm drains the node)"),
        (" = /folder", "/folder cannot be run"),
        (" = /theirs", "/theirs: pageferry's is not among them"),
        ("[0] = /hooks/50-pageferry\n%s[1] = /locked", "/locked cannot be run"),
    ],
)
def test_a_hook_that_slurm_cannot_run_or_that_is_not_ours_is_named(key: str, shown: str, says: str, host: Path) -> None:
    program(host, "locked", "# pageferry\n", 0o644)
    program(host, "theirs", "#!/bin/sh\n")
    (host / "folder").mkdir()
    (host / "empty").mkdir()
    found = examine(host, **{key.lower(): shown.replace("%s", key)})[key]
    assert [finding for finding in found if finding.grade is Grade.WARN and says in finding.text], found


@pytest.mark.parametrize("shown", [" = /drop/*", "[0] = /theirs\nEpilog[1] = /hooks/50-pageferry", " = /caller"])
def test_a_hook_counts_in_a_folder_in_a_list_and_called_by_the_sites_own(shown: str, host: Path) -> None:
    program(host, "drop/90-theirs", "#!/bin/sh\n")
    (host / "drop/50-x").symlink_to(host / "hooks/50-pageferry")
    program(host, "theirs", "#!/bin/sh\n")
    program(host, "caller", "#!/bin/sh\n/hooks/50-pageferry\n")
    the_one(examine(host, epilog=shown)["Epilog"], Grade.OK)


def test_a_hook_without_its_python_is_named(host: Path) -> None:
    (host / "usr/bin/python3").unlink()
    assert "/usr/bin/python3 is not on this host" in the_one(examine(host)["Epilog"], Grade.WARN)


def test_a_health_check_of_ours_that_never_runs_is_named(host: Path) -> None:
    found = examine(host, health="/hooks/50-pageferry")
    assert "set HealthCheckInterval=60" in the_one(found["HealthCheckProgram"], Grade.WARN)
    the_one(examine(host, health="/hooks/50-pageferry", interval="60")["HealthCheckProgram"], Grade.OK)
    program(host, "theirs", "#!/bin/sh\n")
    assert "HealthCheckProgram" not in examine(host, health="/theirs")


def test_job_submit_needs_lua_and_our_script_where_slurmctld_has_one(host: Path) -> None:
    assert "set JobSubmitPlugins=lua" in the_one(examine(host, submit="(null)")["JobSubmitPlugins"], Grade.WARN)
    text = the_one(examine(host, submit="throttle")["JobSubmitPlugins"], Grade.WARN)
    assert "set JobSubmitPlugins=throttle,lua in slurm.conf" in text
    write(host, "etc/slurm/job_submit.lua", "function slurm_job_submit() return 0 end\n")
    text = the_one(examine(host)["JobSubmitPlugins"], Grade.WARN)
    assert "/etc/slurm/job_submit.lua does not call pageferry's" in text
    write(host, "etc/slurm/job_submit.lua", 'dofile("/etc/slurm/pageferry.lua")\n')
    the_one(examine(host)["JobSubmitPlugins"], Grade.OK)


def test_an_answer_that_says_nothing_is_no_good_site(host: Path) -> None:
    found = {finding.subject: finding.grade for finding in examine_config(parse_shown(b"\xff\n= \n[0] = x\n"), host)}
    assert found["ProctrackType"] is Grade.FAIL
    assert found["Epilog"] is Grade.WARN


def test_hostile_values_reach_no_terminal(host: Path) -> None:
    for findings in examine(host, tracking="\x1b[31mx", epilog=" = /\x1b[2J*", task="\x1b", submit="\x1b").values():
        assert all("\x1b" not in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "no scontrol on this host"),
        (
            "echo 'scontrol: error: \x1b[31mno controller' >&2; exit 1",
            r"slurmctld does not answer: scontrol: error: \x1b",
        ),
        ("kill -9 $$", "slurmctld does not answer"),
    ],
)
def test_a_slurm_that_does_not_answer_is_one_finding(script: str | None, says: str, tmp_path: Path) -> None:
    if script is not None:
        program(tmp_path, "scontrol", f"#!/bin/sh\n{script}\n")
    (finding,) = examine_slurm(tmp_path, str(tmp_path / "scontrol"))
    assert (finding.grade, finding.subject) == (Grade.WARN, "Slurm")
    assert says in finding.text


def test_a_slurm_that_hangs_is_waited_for_no_longer_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_config, "_TIME_LIMIT_SECONDS", 0.1)
    program(tmp_path, "scontrol", "#!/bin/sh\nexec sleep 60\n")
    (finding,) = examine_slurm(tmp_path, str(tmp_path / "scontrol"))
    assert "did not answer within" in finding.text


def test_settings_are_read_as_slurm_reads_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        "slurm.conf",
        'A=1 # B=2\n  C = "x y" D=3\nE=\\\n5\n# F=6 \\\nG=7\ninclude  sub/more\nInclude /gone%c\nH+=8\n',
    )
    write(tmp_path, "sub/more", "I=9\n")
    found = [(setting.key, setting.value, setting.line) for setting in read_settings(tmp_path / "slurm.conf")]
    assert found == [
        ("A", "1", 1), ("C", "x y", 2), ("D", "3", 2), ("E", "5", 3), ("G", "7", 6), ("I", "9", 1), ("H", "8", 9),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "none")


@pytest.mark.parametrize(
    ("agent", "slurmd", "shared"),
    [
        ("0::/system.slice/pageferry.service", "0::/system.slice/slurmd.service", None),
        ("0::/system.slice/slurmd.service", "0::/system.slice/slurmd.service", "/system.slice/slurmd.service"),
        (
            "0::/system.slice/h_slurmstepd.scope/job_7/step_0/user/task_0",
            "0::/",
            "/system.slice/h_slurmstepd.scope/job",
        ),
        ("4:cpuset:/slurm_h/uid_0/job_7/step_0\n0::/", "0::/", "/slurm_h/uid_0/job_7/step_0"),
        ("0::/", "0::/", None),
        ("0::/site/batch", "0::/site/batch", "/site/batch"),
    ],
)
def test_an_agent_in_slurms_own_groups_is_named(agent: str, slurmd: str, shared: str | None, tmp_path: Path) -> None:
    write(tmp_path, "proc/100/cgroup", f"{agent}\n")
    write(tmp_path, "proc/100/comm", "pageferry\n")
    write(tmp_path, "proc/200/cgroup", f"{slurmd}\n")
    write(tmp_path, "proc/200/comm", "slurmd\n")
    (finding,) = examine_place(100, tmp_path)
    if shared is None:
        assert finding.grade is Grade.OK
    else:
        assert finding.grade is Grade.WARN
        assert finding.text.startswith(shared)


def test_an_agent_that_ended_meanwhile_is_said(tmp_path: Path) -> None:
    (finding,) = examine_place(100, tmp_path)
    assert finding.grade is Grade.WARN


def test_every_fault_of_the_settings_is_named_with_its_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "pageferry.toml"
    path.write_text('[agent]\nmax_hold_second = 30\n\n[spill]\nrate = "fast"\n')
    findings = list(examine_settings(path))
    assert [(finding.grade, finding.subject) for finding in findings] == [(Grade.FAIL, "settings")] * 2
    assert [finding.text.split(" = ")[0] for finding in findings] == [
        f"{path}:2: agent.max_hold_second",
        f"{path}:5: spill.rate",
    ]


def test_settings_without_a_fault_and_no_settings_at_all_are_well(tmp_path: Path) -> None:
    path = tmp_path / "pageferry.toml"
    (finding,) = examine_settings(path)
    assert finding == Finding(Grade.OK, "settings", f"defaults (there is no {path})")
    path.write_text("[spill]\nenabled = false\n")
    (finding,) = examine_settings(path)
    assert finding == Finding(Grade.OK, "settings", str(path))


@pytest.mark.parametrize(
    ("text", "grade", "named"),
    [
        ("", Grade.WARN, ["2", 'special = "cpuless"']),
        ('special = "2"', Grade.OK, ["2: "]),
        ('special = "cpuless"', Grade.OK, ["2: "]),
        ('special = "0,2,5,252-255"', Grade.OK, ["0,2: ", "no memory here on 5,252-255"]),
        ('special = "252-255"', Grade.OK, ["none on this host", "no memory here on 252-255"]),
        ('special = ""', None, []),
    ],
)
def test_special_nodes_are_told_and_nodes_without_cpus_that_are_not_named(
    tmp_path: Path, text: str, grade: Grade | None, named: list[str]
) -> None:
    path, root = tmp_path / "pageferry.toml", plant("four_nodes", tmp_path / "root")
    path.write_text(f"[nodes]\n{text}\n")
    _, *found = examine_settings(path, root)
    assert [finding.grade for finding in found] == ([grade] if grade else [])
    assert all(words in finding.text for finding in found for words in named)


def test_a_host_all_of_whose_nodes_have_cpus_need_name_none(tmp_path: Path) -> None:
    root = plant("four_nodes", tmp_path / "root")
    (root / "sys/devices/system/node/node2/cpulist").write_text("7\n")
    assert len([*examine_settings(tmp_path / "pageferry.toml", root)]) == 1


def test_nodes_to_park_on_that_this_host_has_not_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pageferry.toml"
    path.write_text('[[rule]]\nname = "a"\npark = "0,900-901"\n[[rule]]\nname = "b\u00e9"\npark = "900"\n')
    (fine, some, none) = examine_settings(path)
    assert fine.grade is Grade.OK
    assert (some.grade, none.grade) == (Grade.WARN, Grade.WARN)
    assert some.text == 'rule a: park = "0,900-901": no memory here on 900-901: they take nothing'
    assert none.text.endswith('park = "900": no memory here on 900: its jobs are not parked')


def test_settings_that_cannot_be_read_are_not_called_well(tmp_path: Path) -> None:
    (finding,) = examine_settings(tmp_path)
    assert finding == Finding(Grade.FAIL, "settings", f"{tmp_path}: not a regular file")


V2 = "30 1 0:25 / /sys/fs/cgroup rw - cgroup2 none rw\n"
V1 = "31 1 0:26 / /sys/fs/cgroup/freezer rw - cgroup none rw,freezer\n"


@pytest.mark.parametrize(
    ("mounts", "has_freeze", "offered", "grade", "says"),
    [
        (V2, True, True, Grade.OK, "version 2"),
        (V2, False, True, Grade.WARN, "no cgroup.freeze (Linux 5.2 has it)"),
        (V1, False, True, Grade.OK, "version 1"),
        (V1, False, False, Grade.WARN, "no cgroup2 in this kernel"),
        ("", False, True, Grade.WARN, "none mounted"),
    ],
)
def test_a_host_that_cannot_freeze_is_said(
    mounts: str, has_freeze: bool, offered: bool, grade: Grade, says: str, tmp_path: Path
) -> None:
    limits(tmp_path, "8192", "128")
    write(tmp_path, "proc/self/mountinfo", mounts)
    write(tmp_path, "proc/filesystems", "nodev\tcgroup2\n" if offered else "\text4\n")
    write(tmp_path, "sys/fs/cgroup/system.slice/cgroup.procs", "")
    if has_freeze:
        write(tmp_path, "sys/fs/cgroup/system.slice/cgroup.freeze", "0\n")
    found = {finding.subject: finding for finding in examine_watching(tmp_path)}
    assert found["freezer"].grade is grade
    assert says in found["freezer"].text.replace(str(tmp_path), "")


@pytest.mark.parametrize(("watches", "instances", "wrong"), [
    ("8191", "128", "fs.inotify.max_user_watches"),
    ("8192", "15", "fs.inotify.max_user_instances"),
    ("none", "128", "fs.inotify.max_user_watches"),
])  # fmt: skip
def test_limits_of_inotify_that_are_too_low_are_named(watches: str, instances: str, wrong: str, tmp_path: Path) -> None:
    limits(tmp_path, watches, instances)
    write(tmp_path, "proc/self/mountinfo", V1)
    write(tmp_path, "proc/filesystems", "nodev\tcgroup2\n")
    bad = [finding for finding in examine_watching(tmp_path) if finding.grade is not Grade.OK]
    assert [finding.subject for finding in bad] == [wrong]


def limits(root: Path, watches: str, instances: str) -> None:
    write(root, "proc/sys/fs/inotify/max_user_watches", f"{watches}\n")
    write(root, "proc/sys/fs/inotify/max_user_instances", f"{instances}\n")


@pytest.mark.parametrize(("name", "named"), [("sEKNKTV3WPV500", True), ("job_7", False)])
def test_groups_that_are_not_named_by_job_id_are_named(name: str, named: bool, tmp_path: Path) -> None:
    limits(tmp_path, "1048576", "128")
    write(tmp_path, "proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    write(tmp_path, "proc/filesystems", "nodev\tcgroup2\n")
    write(tmp_path, f"sys/fs/cgroup/system.slice/slurmstepd.scope/{name}/step_0/cgroup.freeze", "0\n")
    write(tmp_path, "sys/fs/cgroup/system.slice/cgroup.freeze", "0\n")
    found = [finding.text for finding in examine_watching(tmp_path) if finding.subject == "job cgroups"]
    assert [text.startswith(f"{name} is no job ID: set CgroupJobIdPaths=yes") for text in found] == [True] * named

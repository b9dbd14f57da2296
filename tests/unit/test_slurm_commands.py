"""What must hold of asking Slurm's controller by its commands, whatever users call their jobs.

The stand-in pads and cuts as squeue does (src/squeue/print.c, _print_str); its answers are those of Slurm 22.05.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pageferry.errors import PageferryError, SchedulerError, UsageError
from pageferry.policy import Facts
from pageferry.schedulers import slurm_commands
from pageferry.schedulers.control import Control, features_of, nodes_here, write_outcome
from pageferry.schedulers.slurm_commands import SlurmCommands
from pageferry.schedulers.slurm_config import cluster_name
from support.trees import plant, write

STAND_IN = """#!{python}
import json, pathlib, sys, time
folder = pathlib.Path(__file__).parent
known = json.loads((folder / "known").read_text())
words = sys.argv[1:]
with (folder / "called").open("a") as called:
    called.write(json.dumps([pathlib.Path(sys.argv[0]).name, *words]) + "\\n")
verb = "squeue" if sys.argv[0].endswith("squeue") else words[0]
if verb in known["hangs"]:
    time.sleep(60)
if verb in known["refuses"]:
    sys.stderr.write(known["refuses"][verb])
    sys.exit(1)
if verb == "squeue":
    given = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    rows = known["jobs"].get(given["jobs"])
    if rows is None:
        sys.stderr.write("slurm_load_jobs error: Invalid job id specified\\n")
        sys.exit(1)
    for row in rows:
        for field in given["Format"].split(","):
            name, width = field.split(":")
            if name in known["unknown"]:
                sys.stderr.write(f"squeue: error: Invalid job format specification: {{name}}\\n")
                continue
            value = row[name].encode("utf-8", "surrogateescape")[: int(width)]
            sys.stdout.buffer.write(value.ljust(int(width)))
        sys.stdout.buffer.write(b"\\n")
elif words[:2] == ["show", "hostnames"]:
    print("\\n".join(known["hostnames"][words[2]]))
elif verb == "update":
    for rows in known["jobs"].values():
        for row in rows:
            if row["JobArrayID"] == words[1].removeprefix("JobId="):
                row["admin_comment"] = words[2].removeprefix("AdminComment=")
    (folder / "known").write_text(json.dumps(known))
"""


def row(raw: int, **more: str) -> dict[str, str]:
    return {
        "JobID": str(raw),
        "JobArrayID": str(raw),
        "State": "RUNNING",
        "UserID": "1000",
        "UserName": "ada",
        "Partition": "main",
        "QOS": "normal",
        "Account": "chem",
        "Feature": "(null)",
        "NumNodes": "1",
        "NumCPUs": "4",
        "NodeList": "n1",
        "admin_comment": "(null)",
        "Comment": "(null)",
        "Name": "a.sh",
        **more,
    }


@pytest.fixture
def commands(tmp_path: Path) -> SlurmCommands:
    for name in ("squeue", "scontrol"):
        (tmp_path / name).write_text(STAND_IN.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    known(tmp_path, {"7": [row(7)]})
    return SlurmCommands(tmp_path)


def known(folder: Path, jobs: dict[str, list[dict[str, str]]], **more: Any) -> None:
    rest = {"hangs": [], "refuses": {}, "unknown": [], "hostnames": {"n1": ["n1"], "n[1-2]": ["n1", "n2"]}}
    (folder / "known").write_text(json.dumps({"jobs": jobs, **rest, **more}))


def called(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "called").read_text().splitlines()]


def test_it_is_a_way_to_the_controller(commands: SlurmCommands) -> None:
    control: Control = commands
    assert control.describe().startswith("Slurm's commands in ")


def test_a_job_is_what_the_controller_knows_of_it(commands: SlurmCommands, tmp_path: Path) -> None:
    known(
        tmp_path,
        {"7": [row(7, NodeList="n[1-2]", admin_comment=" é 'x' \"y\"\nz  ", Comment="mine", State="SUSPENDED")]},
    )
    job = commands.job(7)
    assert (job.id, job.address, job.state, job.user_id) == (7, "7", "SUSPENDED", 1000)
    assert (job.hosts, job.partition, job.name) == (("n1", "n2"), "main", "a.sh")
    assert job.admin_comment == " é 'x' \"y\"\nz"
    assert job.comment == "mine"


def test_rules_are_told_what_the_controller_knows(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7, Feature="gpu&[rack1*2|rack2*4]", NumNodes="2048", NumCPUs="65536", Name="a\x1b")]})
    assert commands.job(7).facts("tux") == Facts(
        "slurm", "tux", "main", "normal", "chem", "ada", "a\\x1b", ("gpu", "rack1", "rack2"), 2048, 65536
    )
    assert "--noconvert" in called(tmp_path)[-2], "or 2048 would be 2K"


@pytest.mark.parametrize("said", ["2K", "", "1-2", "-1"])
def test_a_size_that_cannot_be_read_is_not_known(said: str, commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7, NumNodes=said)]})
    assert commands.job(7).facts(None).nodes is None


@pytest.mark.parametrize(
    ("constraint", "features"),
    [("", ()), ("a", ("a",)), ("a&b|a", ("a", "b")), ("(a&b)|c", ("a", "b", "c")), ("a,b*2", ("a", "b")), ("[*]", ())],
)
def test_a_constraint_names_its_features(constraint: str, features: tuple[str, ...]) -> None:
    assert features_of(constraint) == features


def test_the_cluster_is_that_of_slurm_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    assert cluster_name(str(tmp_path / "none"), tmp_path) is None
    write(tmp_path, "run/slurm/conf/slurm.conf", "ClusterName=Tux\n")
    assert cluster_name(str(tmp_path / "none"), tmp_path) == "tux"
    write(tmp_path, "other.conf", "ClusterName = other\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "other.conf"))
    assert cluster_name(str(tmp_path / "none"), tmp_path) == "other"


def test_a_job_without_comment_and_nodes_has_none(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7, NodeList="", State="PENDING")]})
    assert (commands.job(7).admin_comment, commands.job(7).hosts) == ("", ())


@pytest.mark.parametrize(
    "name",
    [
        "AdminComment=pageferry:nodes=9",
        "x\n8               8" + " " * 63 + "RUNNING",
        "\n" + "8".ljust(16) + "8".ljust(64) + "RUNNING".ljust(24) + "0".ljust(16) + "m".ljust(256),
        "é" * 300,
    ],
)
def test_a_name_forges_nothing(name: str, commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7, Name=name)], "8": [row(8, Name=name), row(7, admin_comment="pageferry:nodes=9")]})
    assert (commands.job(7).admin_comment, commands.job(7).user_id) == ("", 1000)
    assert (commands.job(8).admin_comment, commands.job(8).id) == ("", 8)
    assert commands.job(7).name.isprintable()


def test_a_line_end_in_a_comment_makes_no_second_job(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(6, admin_comment="a\n7"), row(7, admin_comment="mine\n")]})
    assert commands.job(7).admin_comment == "mine\n"


def test_bytes_that_are_no_text_come_back_as_they_were(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7, admin_comment="a\udcff")]})
    assert commands.job(7).admin_comment == "a\udcff"
    commands.set_admin_comment(7, "b\udcfe")
    assert called(tmp_path)[-1][-1] == "AdminComment=b\udcfe"


ARRAY = [row(9, JobArrayID="9_3"), row(11, JobArrayID="9_2", admin_comment="two"), row(10, JobArrayID="9_1")]


def test_what_is_told_of_an_arrays_last_task_is_told_of_it_alone(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"9": ARRAY, "9_3": ARRAY[:1]})
    assert commands.job(9).address == "9_3"
    for change in (commands.suspend, commands.resume, lambda job: commands.set_admin_comment(job, "x")):
        change(9)
        assert called(tmp_path)[-1][2].removeprefix("JobId=") == "9_3"


def test_an_array_task_is_found_by_either_name(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"11": ARRAY[1:2], "9_2": ARRAY[1:2]})
    assert commands.job(11) == commands.job("9_2")
    assert commands.job(11).admin_comment == "two"


def test_an_arrays_pending_part_is_the_array(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"9": [row(9, JobArrayID="9_[4-800]", State="PENDING", NodeList="")]})
    assert (commands.job(9).id, commands.job(9).address) == (9, "9")


def test_of_an_array_of_thousands_only_ids_are_asked_for(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"9": ARRAY, "9_3": ARRAY[:1]})
    commands.job(9)
    first, second, _ = called(tmp_path)
    assert "admin_comment" not in first[-1]
    assert second[-2] == "--jobs=9_3"


@pytest.mark.parametrize("text", ["", "0", "-1", "7 8", "7,8", "7_", "7\n", "--help", "7+1", "9" * 11])
def test_what_is_no_job_id_is_not_asked_for(text: str, commands: SlurmCommands, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a Slurm job ID"):
        commands.job(text)
    assert not (tmp_path / "called").exists()


def test_a_job_that_is_not_there_is_said_so(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"5": []})
    for job in (4, 5):
        with pytest.raises(UsageError, match=f"^job {job}: no such job$"):
            commands.job(job)
        with pytest.raises(UsageError, match="no such job"):
            commands.suspend(job)


@pytest.mark.parametrize(
    ("verb", "said", "kind", "complaint"),
    [
        ("suspend", "Job/step already completing or completed for job 7\n", UsageError, "the job has ended"),
        ("update", "Job has already finished for job 7\n", UsageError, "the job has ended"),
        ("update", "Access/permission denied for job 7\n", SchedulerError, "rights of an operator"),
        ("resume", "Job is pending execution for job 7\n", SchedulerError, "scontrol resume: Job is pending execution"),
        ("suspend", "", SchedulerError, "Slurm does not say why"),
        (
            "update",
            "scontrol: error: pageferry: AdminComment: no\nInvalid argument for job 7\n",
            SchedulerError,
            "scontrol update: scontrol: error: pageferry: AdminComment: no; Invalid argument",
        ),
        ("update", "\x1b[2J\xff" * 900, SchedulerError, r"\\x1b\[2J"),
    ],
)
def test_a_refusal_is_one_line_that_says_why(
    verb: str, said: str, kind: type[PageferryError], complaint: str, commands: SlurmCommands, tmp_path: Path
) -> None:
    known(tmp_path, {"7": [row(7)]}, refuses={verb: said})
    with pytest.raises(kind, match=complaint) as refused:
        {"suspend": commands.suspend, "resume": commands.resume}.get(
            verb, lambda job: commands.set_admin_comment(job, "x")
        )(7)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 2000


def test_to_resume_what_runs_is_success(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7)]}, refuses={"resume": "Job is not suspended for job 7\n"})
    commands.resume(7)


def test_a_field_that_slurm_does_not_know_shifts_no_other(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7)]}, unknown=["admin_comment"])
    with pytest.raises(SchedulerError, match="Invalid job format specification: admin_comment"):
        commands.job(7)


def test_a_controller_that_hangs_is_given_up(
    commands: SlurmCommands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(slurm_commands, "READ_SECONDS", 0.5)
        known(tmp_path, {}, hangs=["squeue"])
        with pytest.raises(SchedulerError, match=r"^squeue --all: slurmctld did not answer within"):
            commands.job(7)
    monkeypatch.setattr(slurm_commands, "WRITE_SECONDS", 0.6)
    known(tmp_path, {"7": [row(7)]}, hangs=["suspend"])
    with pytest.raises(SchedulerError, match="it may still be done"):
        commands.suspend(7)


def test_a_host_without_slurm_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SchedulerError, match="squeue cannot be run: No such file or directory"):
        SlurmCommands(tmp_path).job(7)


def test_a_list_of_nodes_that_was_cut_is_not_taken_for_whole(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7, NodeList="n1," * 4000)]})
    with pytest.raises(SchedulerError, match="list of nodes is longer"):
        commands.job(7)


def test_the_environment_does_not_change_what_is_asked(
    commands: SlurmCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    assert "SQUEUE_STATES" not in slurm_commands._environment()
    assert "PATH" in slurm_commands._environment()


def test_no_comment_holds_what_no_command_can_say(commands: SlurmCommands) -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(UsageError):
            commands.set_admin_comment(7, text)


def test_an_outcome_is_written_beside_other_peoples_words(commands: SlurmCommands, tmp_path: Path) -> None:
    known(tmp_path, {"7": [row(7, admin_comment="ticket 1", NodeList="n[1-2]")]})
    assert write_outcome(commands, 7, "n1", "moved", served="pageferry:nodes=1", sleep=lambda _seconds: None)
    assert commands.job(7).admin_comment == "ticket 1 [pageferry] n1: moved"


def test_an_outcome_that_another_host_wrote_over_is_written_again(
    commands: SlurmCommands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(tmp_path, {"7": [row(7, admin_comment="pageferry:nodes=1", NodeList="n[1-2]")]})
    really, others = SlurmCommands.set_admin_comment, ["[pageferry] n2: moved; asked nodes=1"]

    def beaten(control: SlurmCommands, job: int, text: str) -> None:
        really(control, job, others.pop() if others else text)

    monkeypatch.setattr(SlurmCommands, "set_admin_comment", beaten)
    assert write_outcome(commands, 7, "n1", "moved", served="pageferry:nodes=1", sleep=lambda _seconds: None)
    assert commands.job(7).admin_comment == "[pageferry] n2: moved; n1: moved"


def test_an_outcome_is_looked_for_again_after_a_host_that_had_read_the_comment_before_wrote(
    commands: SlurmCommands, tmp_path: Path
) -> None:
    known(tmp_path, {"7": [row(7, admin_comment="pageferry:nodes=1", NodeList="n[1-2]")]})
    late = ["[pageferry] n2: moved; asked nodes=1"]

    def meanwhile(seconds: float) -> None:
        if late:
            commands.set_admin_comment(7, late.pop())

    assert write_outcome(commands, 7, "n1", "moved", served="pageferry:nodes=1", sleep=meanwhile)
    assert commands.job(7).admin_comment == "[pageferry] n2: moved; n1: moved"


@pytest.mark.parametrize("fresh", ["pageferry:nodes=3", "pageferry:n1:nodes=3;nodes=1", "pageferry:nodes=x"])
@pytest.mark.parametrize("served", ["pageferry:nodes=1", "pageferry:nodes=", ""])
def test_an_outcome_does_not_take_the_place_of_another_request(
    commands: SlurmCommands, tmp_path: Path, fresh: str, served: str
) -> None:
    known(tmp_path, {"7": [row(7, admin_comment=fresh, NodeList="n[1-2]")]})
    assert write_outcome(commands, 7, "n1", "moved", served=served, sleep=lambda _seconds: None)
    assert commands.job(7).admin_comment == fresh


@pytest.mark.parametrize("served", ["pageferry:n1:nodes=2,now;nodes=1", "pageferry:nodes=x"])
def test_an_outcome_takes_the_place_of_its_own_request_whatever_that_was(
    commands: SlurmCommands, tmp_path: Path, served: str
) -> None:
    known(tmp_path, {"7": [row(7, admin_comment=served, NodeList="n1")]})
    assert write_outcome(commands, 7, "n1", "moved", served=served, sleep=lambda _seconds: None)
    assert commands.job(7).admin_comment == "[pageferry] n1: moved"


def test_a_host_knows_itself_by_the_name_that_slurm_gave_it(tmp_path: Path) -> None:
    root = plant("slurm_v2", tmp_path)
    write(root, "sys/fs/cgroup/system.slice/slurmstepd.scope/job_77/cgroup.procs", "")
    assert nodes_here(77, ["only"], "elsewhere", root) == ("only",)
    assert nodes_here(77, ["n1", "n2"], "n2.site.org", root) == ("n2",)
    assert nodes_here(77, ["n1.site.org", "n2"], "n1", root) == ("n1.site.org",)
    assert nodes_here(77, ["n1", "n2"], "n3", root) == ()
    assert nodes_here(78, ["n1"], "n3", root) == (), "not here"


def test_several_slurmd_on_a_host_are_told_apart_by_their_scopes(tmp_path: Path) -> None:
    root = plant("slurm_v2", tmp_path)
    for node in ("g0", "g1"):
        write(root, f"sys/fs/cgroup/system.slice/{node}_slurmstepd.scope/job_77/cgroup.procs", "")
    assert nodes_here(77, ["g0", "g1", "g2"], "g2", root) == ("g0", "g1")


def test_on_version_1_the_node_is_in_the_path_too(tmp_path: Path) -> None:
    root = plant("slurm_v1", tmp_path)
    write(root, "sys/fs/cgroup/freezer/slurm_g1/uid_0/job_77/cgroup.procs", "")
    assert nodes_here(77, ["g0", "g1"], "elsewhere", root) == ("g1",)

"""What must hold of what is shipped: the wheel made from the source archive has both packages, and it runs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


MODULES = ("pageferry/cli/main.py", "pageferry/py.typed", "pageferry_planner/maps.py", "pageferry_planner/py.typed")
SHIPPED = (
    *(f"pageferry/share/hooks/slurm/{when}.d/50-pageferry" for when in ("prolog", "epilog", "healthcheck")),
    "pageferry/share/hooks/slurm/job_submit.lua",
    "pageferry/share/hooks/systemd/pageferry.service",
    "pageferry/share/policy.d/20-observe-first.toml",
    "pageferry/share/slurm.conf.d/pageferry.conf.j2",
    "pageferry/share/slurm.conf.d/cgroup.conf.j2",
    "pageferry/page/report.html.j2",
    "pageferry/page/report.css",
)


def test_the_wheel_has_both_packages_and_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (*MODULES, *SHIPPED):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", ".venv/", ".cache/"))]
    (tmp_path / "there").mkdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "there")
    ran = [sys.executable, "-m", "pageferry", "--version"]
    answer = subprocess.run(ran, capture_output=True, text=True, check=True, cwd=tmp_path / "there")
    assert answer.stdout.split()[-1].count(".") == 2

"""The main job, end to end, on a real Slurm; `make demo` shows the same to a person."""

from __future__ import annotations

from guest import demo
from guest.vm.jobs import Slurm


def test_a_suspended_job_is_moved_and_resumes_with_its_memory_and_cpus_there(slurm: Slurm) -> None:
    assert slurm.node_states()
    assert demo.main() == 0

"""The main job, end to end, on a real Slurm; `make demo` shows the same to a person."""

from __future__ import annotations

import pytest

from guest import demo
from guest.vm import slurm as daemons


@pytest.mark.long
def test_scontrol_alone_reassigns_a_job_and_a_neighbours_end_brings_memory_home() -> None:
    daemons.stop()  # the demonstration configures a Slurm of its own
    assert demo.main() == 0

"""A process that does not answer, beside a job whose memory moves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from guest import rights, witness
from guest.proof import request
from guest.ranks import SHARED, job
from pageferry.errors import Silent
from support.stuck import stuck

SECONDS = 5.0


def test_an_innocent_job_moves_and_the_stuck_one_ends_with_a_reason(several_nodes: None, tmp_path: Path) -> None:
    with stuck(tmp_path) as silent, job(node=0) as made:
        memory = made.first.map(64).write()
        shared = made.first.map(64, made.first.memfd(64), flags=SHARED).write()
        began = time.monotonic()
        outcome = rights.move(made.pids, request(2))
        assert time.monotonic() - began < 2 * SECONDS
        assert outcome.complete
        assert set(witness.node_vector(made.first.pid, *memory.span)) == {2}
        assert set(witness.node_vector(made.first.pid, *shared.span)) == {0}, "the stuck process may map it"
        assert outcome.plan.excluded["reference-count"] >= 64
        began = time.monotonic()
        with pytest.raises(Silent):
            rights.move((*made.pids, silent), request(2))
        assert time.monotonic() - began < SECONDS

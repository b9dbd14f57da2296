"""Fixtures of the tests that need several NUMA nodes: what the machine is, and a Slurm on it.

Run by `python -m guest.vm run -- pytest tests/guest`. Elsewhere every test here fails: a test that did not
run has shown nothing.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import pytest

from guest.vm import slurm as daemons
from guest.vm.jobs import Slurm
from guest.vm.layouts import LAYOUTS, Layout, observed


@pytest.fixture(scope="session", autouse=True)
def several_nodes() -> None:
    """Fail each test unless this machine was declared to be a guest, or a host of several nodes."""
    if "PAGEFERRY_GUEST_LAYOUT" not in os.environ:
        pytest.fail("needs several NUMA nodes: python -m guest.vm run [--here] -- pytest ...", pytrace=False)


@pytest.fixture(scope="session")
def layout(several_nodes: None) -> Layout:
    """The topology that was asked for; on a host of several nodes, the one it has."""
    name = os.environ["PAGEFERRY_GUEST_LAYOUT"]
    return observed() if name == "here" else LAYOUTS[name]


@pytest.fixture(scope="session")
def cgroup(several_nodes: None) -> Literal["v1", "v2"]:
    """The cgroup version that was asked for."""
    return cast(Literal["v1", "v2"], os.environ["PAGEFERRY_GUEST_CGROUP"])


@pytest.fixture(scope="session")
def results(several_nodes: None) -> Path:
    """A folder that is left on the host."""
    return Path(os.environ["PAGEFERRY_RESULTS"])


@pytest.fixture(scope="session")
def slurm(layout: Layout) -> Iterator[Slurm]:
    """Slurm, started when the first test asks for it; one that runs already is used and left."""
    if layout.name == "observed":
        pytest.fail("Slurm is configured in a guest only; run without --here", pytrace=False)
    ran = daemons.running()
    yield daemons.start()
    if not ran:
        daemons.stop()

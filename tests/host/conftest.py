"""What several files of tests on this host share: the Debian package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pageferry import __version__

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deb() -> Path:
    """The Debian package of this working tree, built unless it is there already."""
    made = subprocess.run(["make", "deb"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (package,) = (REPOSITORY / "dist").glob(f"pageferry_{__version__}_*.deb")
    return package

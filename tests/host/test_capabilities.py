"""What must hold of telling what we may do, on this kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.kernel.capabilities import effective, missing
from support.children import python

UNPRIVILEGED = """
import os, sys
sys.path[:0] = {path!r}
from pageferry.kernel.capabilities import effective, missing
os.setresuid(65534, 65534, 65534)
print(sorted(effective()), len(missing(effective())), flush=True)
"""


def test_root_and_nobody_differ_in_what_they_may_do() -> None:
    if "CAP_SYS_ADMIN" not in effective():
        pytest.skip("needs root, to give it up")
    assert {"CAP_SYS_NICE", "CAP_SYS_PTRACE"} <= effective()
    assert missing(effective()) == ()
    plugin = str(Path(__file__).parents[2] / "plugin")
    with python(UNPRIVILEGED.format(path=[plugin])) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"[] 6\n"

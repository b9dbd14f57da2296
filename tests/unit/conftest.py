"""What the tests without a system share.

Properties have no time limit of their own: the machines that run them are shared and slow.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from pageferry.kernel import bounded

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not answer is waited for only shortly."""
    monkeypatch.setattr(bounded, "SILENT_SECONDS", 0.4)

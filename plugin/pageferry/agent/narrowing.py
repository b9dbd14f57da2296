"""What of narrowing is the agent's: a job whose memory did not follow is widened, and what errands did is told.

Around a move, the errand that moves narrows and widens by itself; how, is `pageferry.mems`'.
"""

from __future__ import annotations

import logging
from functools import partial

from pageferry.agent import chores
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.errand import Result
from pageferry.agent.errands import ASK_SECONDS, Errands
from pageferry.agent.placing import Placing
from pageferry.agent.tended import Tended
from pageferry.mems import record


class Narrowing:
    """Widens jobs by errands: the kernel may take its time."""

    def __init__(self, errands: Errands, placing: Placing, chronicle: Chronicle) -> None:
        self._errands = errands
        self._placing = placing
        self._chronicle = chronicle

    def widen(self, tended: Tended) -> None:
        """Let a job allocate wherever Slurm lets it, if it is narrowed: its memory is not known to be where it is."""
        if record.is_recorded(tended.job, self._placing.mems):
            chore = chores.widen(tended.job, self._placing.mems)
            self._errands.send(chore, partial(self._widened, tended), job=tended.job, seconds=ASK_SECONDS)

    def _widened(self, tended: Tended, result: Result) -> None:
        if result.value is None:
            self._chronicle.tell(tended, "not widened", result.error or "", logging.WARNING)
        elif result.value["widened"]:
            self._chronicle.tell(tended, "widened", "cpuset.mems is as Slurm wrote it")

    def moved(self, tended: Tended, result: Result) -> None:
        """Say what an errand that moved a job did to its cpuset.mems; if it failed, the job is widened."""
        if result.value is None:
            self.widen(tended)
            return
        mems = result.value.get("mems", {})
        if nodes := mems.get("nodes"):
            self._chronicle.tell(tended, "narrowed", f"cpuset.mems {nodes}")
        if why := mems.get("why"):
            self._chronicle.tell(tended, "not narrowed", why, logging.WARNING)

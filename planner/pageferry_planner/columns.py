"""Tables as columns: what all of them can do, once.

The one base class of the planner: a table is a frozen dataclass of numpy arrays of one length, one row per thing, and
knows no more than its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Columns:
    """Base of tables. Columns are int64, or bool where annotated as Bools."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.columns()[0])

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Return the columns in the order of the fields."""
        return tuple(getattr(self, name) for name in type(self).__annotations__)

    def take(self, rows: Ints | Bools) -> Self:
        """Return the given rows (numbers or mask), in that order."""
        return type(self)(*(column[rows] for column in self.columns()))

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        return cls(*(np.zeros(0, bool if kind == "Bools" else np.int64) for kind in cls.__annotations__.values()))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(part.columns() for part in parts), strict=True)
        return cls(*map(np.concatenate, columns)) if parts else cls.empty()

"""Weights of nodes, by which memory is dealt out over them: the kernel's, and as people write them.

The kernel has them since 6.9, for MPOL_WEIGHTED_INTERLEAVE. Since 6.16 it makes them of the nodes' bandwidths (`auto`),
until somebody writes others; the files of the nodes have the weights that hold, either way.
Source: Documentation/ABI/testing/sysfs-kernel-mm-mempolicy-weighted-interleave.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import numbered, read_bytes
from pageferry.kernel.lists import MOST_NODES, parse_list
from pageferry_planner.model import MOST_WEIGHT

_FOLDER = "sys/kernel/mm/mempolicy/weighted_interleave"
_WANTED = f'expected nodes below {MOST_NODES}, each once, with weights of 1 to {MOST_WEIGHT}, such as "0:3,2:1"'

Weights = tuple[tuple[int, int], ...]
"""Pairs of a node and its weight, by ascending node."""


def read_weights(root: Path = Path("/")) -> Weights:
    """Return the kernel's weights; nothing where it has none, or all are 1, as they are until somebody sets one.

    Raises KernelError for a file that holds no weight.
    """
    folder = root / _FOLDER
    try:
        nodes = numbered(folder, "node")
    except Vanished:
        return ()
    found: list[tuple[int, int]] = []
    for node in nodes:
        with suppress(Vanished):  # a node whose memory was taken out of the host
            found.append((node, _weight(folder / f"node{node}")))
    return tuple(found) if any(weight != 1 for _, weight in found) else ()


def parse_weights(text: str) -> Weights:
    """Return the weights that a text such as "0:3,2:1" or "0-3:1,4-7:3" means. Raises ValueError."""
    found: dict[int, int] = {}
    for part in text.split(","):
        nodes, _, weight = part.partition(":")
        try:
            members = parse_list(nodes) if nodes == nodes.strip() else frozenset()
        except ValueError as error:
            raise ValueError(_WANTED) from error
        if not members or max(members) >= MOST_NODES or members & found.keys() or not _is_weight(weight):
            raise ValueError(_WANTED)
        found.update(dict.fromkeys(members, int(weight)))
    return tuple(sorted(found.items()))


def _weight(path: Path) -> int:
    text = read_bytes(path).strip().decode("latin-1")
    if not _is_weight(text):
        raise KernelError(f"{path}: not a weight of 1 to {MOST_WEIGHT}: {text[:80]!a}")
    return int(text)


def _is_weight(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= MOST_WEIGHT

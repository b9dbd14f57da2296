"""Where migrate_pages(2) puts pages: a transcription of the kernel's C, for the planner to be compared with.

Sources: Linux 6.1 lib/bitmap.c (bitmap_pos_to_ord, bitmap_bitremap, behind node_remap()) and mm/mempolicy.c
(do_migrate_pages). Nodemasks are sets here; the order of for_each_node_mask() is ascending.
"""

from __future__ import annotations

from collections.abc import Collection

NUMA_NO_NODE = -1


def bitmap_pos_to_ord(bits: Collection[int], position: int) -> int:
    if position not in bits:
        return -1
    return sum(1 for bit in bits if bit < position)


def find_nth_bit(bits: Collection[int], number: int) -> int:
    for bit in sorted(bits):
        if number == 0:
            return bit
        number -= 1
    raise AssertionError("the caller takes the number modulo the weight")


def node_remap(node: int, old: Collection[int], new: Collection[int]) -> int:
    weight = len(new)
    number = bitmap_pos_to_ord(old, node)
    if number < 0 or weight == 0:
        return node
    return find_nth_bit(new, number % weight)


def do_migrate_pages(pages: dict[str, int], from_: Collection[int], to: Collection[int]) -> None:
    """Move `pages` (name → node) as the system call does, one node after another."""
    remaining = set(from_)
    while remaining:
        source, dest = NUMA_NO_NODE, 0
        for node in sorted(remaining):
            if len(from_) != len(to) and node in to:
                continue
            there = node_remap(node, from_, to)
            if node == there:
                continue
            source, dest = node, there
            if dest not in remaining:
                break
        if source == NUMA_NO_NODE:
            break
        remaining.remove(source)
        for page, node in pages.items():
            if node == source:
                pages[page] = dest


def where_pages_go(from_: Collection[int], to: Collection[int]) -> dict[int, int]:
    """Return, for each old node, where the system call leaves a page of it."""
    pages = {str(node): node for node in from_}
    do_migrate_pages(pages, from_, to)
    return {node: pages[str(node)] for node in from_}

"""What of kernel, privileges, cgroups and Slurm is there, found out by trying, and what to change.

Features are probed, never versions compared. A finding is FAIL only if pageferry cannot do its work without it. What
concerns a site's schedulers and the agent is left to `doctor.slurm`, `doctor.pbs`, `doctor.agent` and `doctor.metrics`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from pageferry import config, hotness
from pageferry.doctor.agent import examine_agent, examine_settings, examine_watching
from pageferry.doctor.findings import Finding, Grade
from pageferry.doctor.metrics import examine_metrics
from pageferry.doctor.pbs import examine_pbs
from pageferry.doctor.slurm import examine_slurm
from pageferry.errors import PageferryError, Vanished
from pageferry.kernel import capabilities, libnuma, objects, pagemap
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.kernel.files import printable, read_bytes
from pageferry.kernel.lists import format_list
from pageferry.kernel.pageflags import flags_of
from pageferry.kernel.pfn_ranges import read_pfn_ranges
from pageferry.kernel.topology import read_topology

__all__ = ["Finding", "Grade", "examine"]


def examine(settings: Path = config.PATH) -> list[Finding]:
    """Look at everything, with these settings; what a check cannot find out is a finding, too."""
    checks = _CHECKS | {
        "settings": partial(examine_settings, settings),
        "metrics": partial(examine_metrics, settings),
    }
    findings: list[Finding] = []
    for subject, check in checks.items():
        findings += _guarded(subject, check)
    return findings


def _guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except (PageferryError, OSError) as error:
        yield Finding(Grade.WARN, subject, printable(str(error)))


def _nodes() -> Iterator[Finding]:
    topology = read_topology()
    with_memory = topology.nodes_with_memory()
    text = f"{len(with_memory)} with memory ({format_list(with_memory)})"
    without_cpus = frozenset(node.number for node in topology.nodes if not node.cpus)
    if without_cpus:
        text += f", without CPUs: {format_list(without_cpus)}"
    if len(with_memory) < 2:
        yield Finding(Grade.FAIL, "NUMA nodes", f"{text}: there is nowhere to move to on this host")
    else:
        yield Finding(Grade.OK, "NUMA nodes", text)


def _libnuma() -> Iterator[Finding]:
    try:
        libnuma.require()
        libnuma.query_pages(os.getpid(), np.zeros(1, np.uint64))
    except (PageferryError, OSError) as error:
        yield Finding(Grade.FAIL, "move_pages", str(error))
    else:
        yield Finding(Grade.OK, "move_pages", "libnuma is here, and the kernel answers")


def _privileges() -> Iterator[Finding]:
    held = capabilities.effective()
    gaps = capabilities.missing(held)
    for gap in gaps:
        yield Finding(Grade.WARN, gap.capability, f"missing: {gap.lost}; {gap.kept}")
    if not gaps:
        yield Finding(Grade.OK, "capabilities", "all that are used")


def _page_tables() -> Iterator[Finding]:
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[0] = 1
    page = np.frombuffer(memory, np.uint8).ctypes.data // mmap.PAGESIZE
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        entry = np.frombuffer(os.pread(descriptor, 8, page * 8), np.uint64)
        scans = pagemap.scan(descriptor, page, page + 1, mmap.PAGESIZE) is not None
    finally:
        os.close(descriptor)
    pfn = (entry & pagemap.PFN).astype(np.int64)
    if not pfn[0]:
        yield Finding(Grade.WARN, "page frames", "hidden: nodes are asked by move_pages, which is slower")
    else:
        node = int(read_pfn_ranges().node_of(pfn.view(np.uint64))[0])
        flags_of(pfn)
        yield Finding(Grade.OK, "page frames", f"visible, with their flags and nodes (a new page is on node {node})")
    yield Finding(
        Grade.OK, "PAGEMAP_SCAN", "used" if scans else "not in this kernel (6.7 has it): page tables are read plainly"
    )


def _shared_objects() -> Iterator[Finding]:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[0] = 1
    start = np.frombuffer(memory, np.uint8).ctypes.data
    path = objects.path_of(os.getpid(), start, start + mmap.PAGESIZE)
    try:
        with objects.mapped(path, 0, 1) as mapped:
            objects.populate(mapped, 0, 1)
    except OSError as error:
        text = f"cannot be mapped ({error.strerror}): what no carrier touched is asked of other processes"
        yield Finding(Grade.WARN, "shared objects", text)
    else:
        yield Finding(Grade.OK, "shared objects", "can be mapped here, so that all of their pages are reached")


def _use() -> Iterator[Finding]:
    means = hotness.means()
    why = {
        hotness.Means.PAGES: "idle bits",
        hotness.Means.MAPPINGS: "referenced bits; for jobs of others this takes CAP_DAC_OVERRIDE",
        hotness.Means.NONE: "a kernel with CONFIG_PROC_PAGE_MONITOR tells it; what most processes map goes first",
    }
    yield Finding(Grade.OK, "pages in use", f"told {means.value} ({why[means]})")


def _balancing() -> Iterator[Finding]:
    with suppress(Vanished):
        if read_bytes("/proc/sys/kernel/numa_balancing").strip() != b"0":
            text = "kernel.numa_balancing is on: the kernel may move pages back (sysctl kernel.numa_balancing=0)"
            yield Finding(Grade.WARN, "AutoNUMA", text)
            return
    yield Finding(Grade.OK, "AutoNUMA", "off")


def _cgroups() -> Iterator[Finding]:
    hierarchies = read_hierarchies()
    if hierarchies.unified is not None:
        yield Finding(Grade.OK, "cgroup v2", f"at {hierarchies.unified}")
    wanted = {"cpuset", "freezer", "memory"} & set(hierarchies.legacy)
    if wanted:
        yield Finding(Grade.OK, "cgroup v1", f"{', '.join(sorted(wanted))} at {hierarchies.legacy[min(wanted)].parent}")
    if hierarchies.unified is None and not wanted:
        yield Finding(Grade.WARN, "cgroups", "none mounted: only --pid can be a target")


_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "NUMA nodes": _nodes,
    "move_pages": _libnuma,
    "capabilities": _privileges,
    "page tables": _page_tables,
    "shared objects": _shared_objects,
    "pages in use": _use,
    "AutoNUMA": _balancing,
    "cgroups": _cgroups,
    "watching": examine_watching,
    "settings": examine_settings,
    "agent": examine_agent,
    "metrics": examine_metrics,
    "Slurm": examine_slurm,
    "OpenPBS": examine_pbs,
}

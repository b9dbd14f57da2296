"""What the kernel keeps free of each node, read from captured and from broken files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.kernel.watermarks import read_kept_free
from support.trees import write

ZONEINFO = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     3840
        boost    0
        min      67
        low      83
        high     99
        protection: (0, 1890, 1890, 1890, 1890)
  pagesets
    cpu: 0
              high:  0
Node 0, zone    DMA32
        min      8399
        high     12597
Node 3, zone   Normal
        high     6745
Node 3, zone  Movable
        high     0
"""


def test_the_watermarks_of_a_nodes_zones_are_added_up_with_what_is_protected(tmp_path: Path) -> None:
    write(tmp_path, "proc/zoneinfo", ZONEINFO)
    assert read_kept_free(tmp_path) == {0: (99 + 1890 + 12597) * 4096, 3: 6745 * 4096}


def test_no_more_is_protected_than_is_free(tmp_path: Path) -> None:
    write(tmp_path, "proc/zoneinfo", ZONEINFO.replace("free     3840", "free     100"))
    assert read_kept_free(tmp_path)[0] == (99 + 1 + 12597) * 4096
    write(tmp_path, "proc/zoneinfo", ZONEINFO.replace("free     3840", "free     50"))
    assert read_kept_free(tmp_path)[0] == (99 + 12597) * 4096


@pytest.mark.parametrize("text", ["", "        high     12\n", "nothing of the kind\n"])
def test_a_file_that_names_no_zone_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, "proc/zoneinfo", text)
    with pytest.raises(KernelError, match="zoneinfo"):
        read_kept_free(tmp_path)


def test_this_hosts_own_file_can_be_read() -> None:
    assert read_kept_free()[0] > 0

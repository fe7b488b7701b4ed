"""How much memory this process can still get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still get, or None where nobody says.

    Linux: the least of MemAvailable and what each control group above the process has left, the
    page cache counted as free where it would be given up first. Elsewhere: half of the machine's
    memory where the system tells its size (macOS), for want of a better figure; Windows: None.

    Args:
        root: where /proc and /sys are; another folder for tests.
    """
    known = [limit for limit in (_meminfo(root), *_cgroups(root)) if limit is not None]
    if known:
        return max(0, min(known))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return None


def _meminfo(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroups(root: Path) -> Iterator[int | None]:
    """Yield what each control group that holds this process has left, version 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            top, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A limit binds everything below it. In a container the path may be the host's, which is
        # not there: its own group is then what lies at the top.
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            if ".." not in group.parts:
                yield _left(root / top / group, *names)


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most = int((group / limit).read_text())  # "max" where there is none: a ValueError
        used = int((group / usage).read_text())
    except (OSError, ValueError):
        return None
    try:
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == cache:
                used -= int(value)
    except (OSError, ValueError):
        pass
    return most - used

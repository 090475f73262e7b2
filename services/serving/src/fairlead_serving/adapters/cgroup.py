"""Reads how much processor time the kernel gives this process."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fairlead_serving.domain.threads import CpuLimit

_UNLIMITED = frozenset({"max", "-1"})


def read_limits(root: Path = Path("/")) -> list[CpuLimit]:
    """Read the limits of this process's control groups, of version 1 or 2.

    Args:
        root: Where `proc` and `sys` are.

    Returns:
        Those of its own group and of all around it that can be seen from here. A container sees
        its own group as the root, by whatever name the host has for it.
    """
    return [limit for folder in _folders(root) if (limit := _read(folder)) is not None]


def count_processors() -> int:
    """Count the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Not every system has it.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folders(root: Path) -> Iterator[Path]:
    mounts = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = mounts / "cpu" if controllers else mounts
        group = PurePosixPath(path).relative_to("/")
        yield from (mount / part for part in (group, *group.parents))


def _read(folder: Path) -> CpuLimit | None:
    both = _text(folder / "cpu.max") or " ".join(
        _text(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    )
    quota, _, period = both.partition(" ")
    return CpuLimit(int(quota), int(period)) if period and quota not in _UNLIMITED else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""

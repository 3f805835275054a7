"""How much of this machine's memory a data set may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["Memory", "Room", "memories", "room"]

ASSUMED = 4 * 10**9
"""Bytes of memory where the system does not say: what the smallest machines that train have."""
UNLIMITED = 1 << 60
"""A version 1 control group without a limit has one above this: the largest number of whole pages."""


class Memory(NamedTuple):
    """A memory that this process draws on: the machine's, or what a container or batch system allows.

    Attributes:
        total: bytes.
        free: bytes of them that can be had without swapping.
    """

    total: int
    free: int


class Room(NamedTuple):
    """Bytes that a data set may take, and words on it that follow the number."""

    bytes: int
    note: str = ""


def room(system: Path = Path("/")) -> Room:
    """The least of a quarter of each memory and half of what is free of it, shared by the processes of the machine.

    The quarter hardly ever changes, so that a resumed run finds the same; the half is for a machine that is in use.

    Args:
        system: where proc and sys/fs/cgroup are.
    """
    found = memories(system)
    note = "" if found else ", since this system does not say how much it has"
    shares = [min(total // 4, free // 2) for total, free in found or [Memory(ASSUMED, ASSUMED)]]
    return Room(min(shares) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), note)


def memories(system: Path = Path("/")) -> list[Memory]:
    """The machine's memory, and that of each control group with a limit in which this process is.

    Source: the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    return [*_machine(system), *_groups(system)]


def _machine(system: Path) -> list[Memory]:
    table = _table(system / "proc/meminfo")
    if "MemTotal:" in table:
        total = 1024 * table["MemTotal:"]
        return [Memory(total, 1024 * table.get("MemAvailable:", table["MemTotal:"]))]
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such function, as on Windows, or no such name
        return []
    return [Memory(total, total)] if total > 0 else []


def _groups(system: Path) -> list[Memory]:
    found = []
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        top = system / "sys/fs/cgroup"
        if controllers == "":
            names = "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            top = top / "memory"
        else:
            continue
        # A container may see its own group as the top one, by a path that is not there. Limits of all above hold too.
        own = top / path.lstrip("/")
        for group in dict.fromkeys([own, *own.parents, top]):
            if group == top or top in group.parents:
                found += _group(group, *names)
    return found


def _group(group: Path, limit: str, usage: str, cache: str) -> list[Memory]:
    total = _read(group / limit).strip()
    if not total.isdecimal() or int(total) >= UNLIMITED:  # no such file, or "max"
        return []
    used = _read(group / usage).strip()
    # Files that were read count as used, and are given up as soon as something else needs the memory.
    held = int(used or 0) - _table(group / "memory.stat").get(cache, 0)
    return [Memory(int(total), max(0, int(total) - max(0, held)))]


def _table(path: Path) -> dict[str, int]:
    rows = [line.split() for line in _read(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not Linux, or not to be seen from within a container
        return ""

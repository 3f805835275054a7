from __future__ import annotations

from pathlib import Path

import pytest

from robustfast.data.room import Memory, Room, memories, room

GB = 1 << 30


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.fixture
def system(tmp_path):
    """Write a system's files; returns its root, a machine of 64 GB with 60 GB to be had unless told otherwise."""

    def build(groups: str = "", free: int = 60, **files: object) -> Path:
        kilobytes = 64 << 20, free << 20
        written = {
            "proc/meminfo": "MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\n".format(*kilobytes),
            "proc/self/cgroup": groups,
            **{f"sys/fs/cgroup/{name}": f"{value}\n" for name, value in files.items()},
        }
        for name, text in written.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def test_a_quarter_of_the_machine_and_half_of_what_is_free(system, monkeypatch):
    assert memories(system()) == [Memory(64 * GB, 60 * GB)]
    assert room(system()) == Room(16 * GB)
    assert room(system(free=8)) == Room(4 * GB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert room(system()) == Room(4 * GB)


def test_a_container_that_sees_its_own_group_as_the_top_one(system):
    root = system("0::/\n", **{"memory.max": 8 * GB, "memory.current": GB})
    assert memories(root)[1:] == [Memory(8 * GB, 7 * GB)]
    assert room(root) == Room(2 * GB)


def test_files_that_were_read_do_not_count_as_used(system):
    written = {"memory.max": 8 * GB, "memory.current": 7 * GB}
    root = system("0::/\n", **written, **{"memory.stat": f"anon {GB}\ninactive_file {6 * GB}"})
    assert memories(root)[1:] == [Memory(8 * GB, 7 * GB)]
    root = system("0::/\n", **written, **{"memory.stat": f"anon {7 * GB}\ninactive_file 0"})
    assert room(root) == Room(GB // 2)


def test_the_limits_of_the_groups_above_hold_too(system):
    job = {"job/memory.max": 12 * GB, "job/memory.current": 0}
    step = {"job/step/memory.max": "max", "job/step/memory.current": 0}
    other = {"other/memory.max": GB, "other/memory.current": 0}
    root = system("0::/job/step\n", **job, **step, **other)
    assert memories(root)[1:] == [Memory(12 * GB, 12 * GB)]


@pytest.mark.parametrize("path", ["/docker/abc", "/elsewhere"])
def test_the_groups_of_version_1(system, path):
    """A container may be told a path that only the machine outside has: its own group is the top one then."""
    folder = "memory/docker/abc" if path == "/docker/abc" else "memory"
    files = {f"{folder}/memory.limit_in_bytes": 6 * GB, f"{folder}/memory.usage_in_bytes": 3 * GB}
    files[f"{folder}/memory.stat"] = f"total_inactive_file {GB}"
    root = system(f"5:cpu,cpuacct:{path}\n4:memory:{path}\n1:name=systemd:/\n0::/\n", **files)
    assert memories(root)[1:] == [Memory(6 * GB, 4 * GB)]
    assert room(root) == Room(6 * GB // 4)


def test_no_limit(system):
    root = system("0::/\n", **{"memory.max": "max", "memory.current": GB})
    assert room(root) == Room(16 * GB)
    files = {"memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": GB}
    assert room(system("4:memory:/\n", **files)) == Room(16 * GB)


def test_systems_that_name_their_memory_otherwise(tmp_path, monkeypatch):
    numbers = {
        "SC_PHYS_PAGES": 2 * GB // 4096,
        "SC_PAGE_SIZE": 4096,
    }  # macOS has these and not the free pages
    monkeypatch.setattr("os.sysconf", numbers.__getitem__, raising=False)
    assert room(tmp_path) == Room(GB // 2)


def missing(name: str) -> int:
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize("sysconf", [None, missing])
def test_a_system_that_does_not_say(tmp_path, monkeypatch, sysconf):
    if sysconf is None:
        monkeypatch.delattr("os.sysconf")
    else:
        monkeypatch.setattr("os.sysconf", sysconf)
    assert room(tmp_path) == Room(10**9, ", since this system does not say how much it has")

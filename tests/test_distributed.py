"""What processes tell each other, with three real ones; and what one says of an environment that makes no sense."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from warm import Warm

from robustfast.distributed import World
from robustfast.errors import UserError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture(scope="module")
def heard(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes heard."""
    folder = tmp_path_factory.mktemp("heard")
    ends = warm.world(3, Path(__file__).with_name("world_program.py"), folder)
    # The last of them is killed in the end.
    assert [end.returncode for end in ends] == [0, 0, -signal.SIGKILL], [end.stderr for end in ends]
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """environment(NAME=value): torchrun's variables, a None taken out."""

    def set_up(**changes: str | None) -> None:
        for name in (*TORCHRUN, "TORCHELASTIC_RESTART_COUNT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (TORCHRUN | changes).items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return set_up


def test_ranks(heard: list[dict[str, Any]]) -> None:
    parts = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert [process["world"] for process in heard] == [
        (rank, 3, 0, rank == 0, part) for rank, part in enumerate(parts)
    ]
    # Chosen for the processes of one machine, and put back for whoever asks later.
    assert [process["interface"] for process in heard] == [os.environ.get("GLOO_SOCKET_IFNAME")] * 3


def test_messages(heard: list[dict[str, Any]]) -> None:
    for rank, process in enumerate(heard):
        assert process["sum"].tolist() == [3, 30]
        assert process["given"].tolist() == [rank, 10 * rank]
        assert process["stack"].tolist() == [[0, 0], [1, 10], [2, 20]]
        assert process["any"] == [False, True]
        assert [(said["rank"], said["labels"].tolist()) for said in process["gather"]] == [
            (0, []),
            (1, [0]),
            (2, [0, 1]),
        ]
        assert process["broadcast"] == "from 0"


def test_gradients(heard: list[dict[str, Any]]) -> None:
    for process in heard:
        found = process["gradients"]
        assert torch.equal(found["everywhere"], torch.arange(24.0).reshape(2, 3, 2, 2) * 111)
        assert found["strides"]
        assert found["somewhere"].tolist() == [1, 2, 3]
        assert found["nowhere"] is None
        assert found["double"].tolist() == pytest.approx([0.3, 0.3], abs=1e-15)
        assert found["messages"] == [torch.float32, torch.float64]


def test_running_statistics(heard: list[dict[str, Any]]) -> None:
    for process in heard:
        found = {name: value.tolist() for name, value in process["buffers"].items()}
        assert found == {
            "constant": torch.tensor([0.1]).tolist(),
            "0.running_mean": [1, 1],
            "0.running_var": [1, 1],
            "0.num_batches_tracked": 5,
            "1.0.running_mean": [0, 0, 0],
            "1.0.running_var": [7, 7, 7],
            "1.0.num_batches_tracked": 0,
        }


def test_running_statistics_that_are_alike_stay_to_the_bit(heard: list[dict[str, Any]]) -> None:
    for process in heard:
        before, after = process["untrained"]["before"], process["untrained"]["after"]
        assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads a process's threads from /proc")
def test_no_thread_outlives_the_group(
    torchrun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    # Processes of their own: what matters is that torch imports nothing for the optimizer before there is a group.
    torchrun(2, Path(__file__).with_name("threads_program.py"), tmp_path)
    for rank in range(2):
        fresh, before, after = json.loads((tmp_path / f"{rank}.json").read_text())
        assert fresh
        assert not [name for name in after if "gloo" in name], after
        assert len(before) == len(after)


def test_a_process_that_works_for_longer_is_waited_for(heard: list[dict[str, Any]]) -> None:
    assert [process["late"] for process in heard] == ["all came"] * 3


def test_a_lost_process_is_one_line(heard: list[dict[str, Any]]) -> None:
    assert "lost" not in heard[2]
    for rank in range(2):
        line = heard[rank]["lost"]
        assert line.startswith(f"process {rank} of 3 lost touch with the others (")
        assert line.endswith("): one of them hangs, was killed, or says itself what went wrong")
        assert "\n" not in line


@pytest.mark.parametrize(
    "variables", [{}, {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}]
)
def test_alone(environment: Callable[..., None], variables: dict[str, str]) -> None:
    environment(**(dict.fromkeys(TORCHRUN) | variables))
    with World.joined() as world:
        assert not dist.is_initialized()
        assert (world.rank, world.size, world.writes, world.part(7)) == (0, 1, True, range(7))
        assert world.restarts == int(variables.get("TORCHELASTIC_RESTART_COUNT", 0))
        value = torch.arange(3)
        assert world.sum(value) is value
        assert world.stack(value).tolist() == [[0, 1, 2]]
        assert world.gather("a") == ["a"]
        assert world.broadcast("a") == "a"
        assert (world.any(True), world.any(False)) == (True, False)
        parameter = nn.Parameter(torch.zeros(1))
        world.sum_gradients([parameter])
        assert parameter.grad is None
        world.same_buffers(nn.BatchNorm1d(1))
        world.barrier()
        world.wait()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set, expected a whole number, at least 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number, at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', expected a whole number, at least 1"),
        ({"RANK": None}, "RANK is not set, expected a whole number, 0 to 1"),
        ({"RANK": "2"}, "RANK is '2', expected a whole number, 0 to 1"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "²"}, "RANK is '²'"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is '2', expected a whole number, 0 to 1"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set, expected rank 0's machine"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is '', expected a whole number, 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT is 'x'"),
    ],
)
def test_an_environment_without_sense_is_one_line(
    environment: Callable[..., None], changes: dict[str, str | None], words: str
) -> None:
    environment(**changes)
    with pytest.raises(UserError) as mistake, World.joined():
        pass
    assert words in str(mistake.value)
    assert "torchrun" in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_others_out_of_reach_is_one_line(environment: Callable[..., None], rank: int) -> None:
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        port = str(closed.getsockname()[1])
    environment(RANK=f"{rank}", MASTER_PORT=port)
    with pytest.raises(UserError) as mistake, World.joined(timeout=timedelta(seconds=1)):
        pass
    assert f"process {rank} of 2 cannot reach the others at localhost:{port} (" in str(mistake.value)
    assert "\n" not in str(mistake.value)
    assert not dist.is_initialized()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_gpus_is_one_line(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    environment()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="has no GPU of its own, it has 1: give torchrun --nproc-per-node 1"):
        World.joined(device).__enter__()

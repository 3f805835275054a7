"""Batch norm over three real processes equals that of one with the whole batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from warm import Warm

from robustfast.distributed import World
from robustfast.models import ThreeWay
from robustfast.models.sync_batch_norm import SyncBatchNorm, synchronise

PROGRAM = Path(__file__).with_name("sync_batch_norm_program.py")
CPU = torch.device("cpu")


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = load_program()


@pytest.fixture(scope="module")
def got(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes got."""
    folder = tmp_path_factory.mktemp("got")
    ends = warm.world(3, PROGRAM, folder)
    assert [end.returncode for end in ends] == [0] * 3, [end.stderr for end in ends]
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", program.CASES)
def test_three_processes_are_one(got: list[dict[str, Any]], name: str) -> None:
    expected = program.computed(*program.whole(**program.CASES[name]))
    parts = [process[name] for process in got]
    # Roundings of outputs of a few units; bfloat16 has 2^-8 of relative error, in the gradient twice.
    rounding = {"float64": 1e-13, "bfloat16": 1e-2, "far from zero": 2e-4}.get(name, 3e-6)
    for what in ("trained", "grad", "attacked", "evaluated"):
        close(torch.cat([part[what] for part in parts]), expected[what], rounding)
    for key, value in expected["parameters"].items():
        close(sum(part["parameters"][key] for part in parts), value, 10 * rounding)
    for part in parts:
        assert part["dense"]
        assert list(part["buffers"]) == list(expected["buffers"])
        for key, value in expected["buffers"].items():
            close(part["buffers"][key], value, min(rounding, 1e-5))
            assert torch.equal(part["buffers"][key], parts[0]["buffers"][key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_zero_nothing_cancels(dtype: torch.dtype) -> None:
    """The mean has as few digits as the images; the difference of two sums of squares would have none in float32."""
    torch.manual_seed(0)
    synced = SyncBatchNorm(nn.BatchNorm2d(4).to(dtype), World())
    x = (torch.randn(64, 4, 5, 5, dtype=torch.float64) + 1e4).to(dtype)
    truth = nn.BatchNorm2d(4).double()(x.double())
    assert (synced(x) - truth).abs().max() <= 10 * 1e4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}])
def test_one_value_per_channel_has_no_variance(settings: dict[str, bool]) -> None:
    """Torch's own refuses it too; the running variance would be nan."""
    source = nn.BatchNorm1d(3, **settings)
    before = {name: buffer.clone() for name, buffer in source.named_buffers()}
    synced, x = SyncBatchNorm(source, World()), torch.randn(1, 3)
    with pytest.raises(
        ValueError, match=r"expected more than 1 value per channel .* input of shape \(1, 3\)"
    ):
        synced(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in synced.named_buffers())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        source(x)
    assert synced(torch.randn(1, 3, 2)).isfinite().all()


def test_a_model_changes_in_place() -> None:
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    keys = list(model.state_dict())
    model.encoder_n.eval()
    synchronise(model, World(0, 2), CPU)
    assert list(model.state_dict()) == keys
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[name] is value for name, value in before.items())
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [SyncBatchNorm] * 4
    assert [norm.training for norm in norms] == [True, True, False, False]


def test_alone_a_model_stays_as_it_is() -> None:
    model = nn.Sequential(norm := nn.BatchNorm2d(3))
    synchronise(model, World(), CPU)
    assert model[0] is norm


def test_on_cuda_it_is_torchs() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    parameters, keys = list(model.parameters()), list(model.state_dict())
    synchronise(model, World(0, 2), torch.device("cuda"))
    assert [type(norm) for norm in model] == [nn.SyncBatchNorm] * 2
    assert [norm.training for norm in model] == [True, False]
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys

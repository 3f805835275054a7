"""Networks small enough for thousands of attack steps, and a record of what an attack runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustfast.attacks import cuda_graph


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """Images [B, 3, 8, 8] -> logits [B, 5], with batch norm whose statistics are not the defaults, and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(54, 5),
        )
        net(torch.rand(16, 3, 8, 8))
    return net.to(dtype)


class Record(TorchDispatchMode):
    """Every aten call and its arguments, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls.append((func.name(), args))
        return func(*args, **(kwargs or {}))

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)

    def arguments(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, args in self.calls if called == name]


@pytest.fixture
def make_net() -> Callable[..., nn.Module]:
    return build


@pytest.fixture
def net() -> nn.Module:
    return build()


@pytest.fixture
def record() -> type[Record]:
    return Record


@pytest.fixture
def visits() -> Callable[..., list[Tensor]]:
    """Calls an attack and returns every batch of images the network was run on, one repeated at once only once."""

    def run(net: nn.Module, call: Callable[[], object]) -> list[Tensor]:
        seen: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            images = args[0].detach().clone()
            if not (seen and seen[-1].shape == images.shape and torch.equal(seen[-1], images)):
                seen.append(images)

        handle = net.register_forward_pre_hook(look)
        try:
            call()
        finally:
            handle.remove()
        return seen

    return run


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Images [8, 3, 8, 8] in [0, 1] and labels [8]. Eight: a mean over them scales gradients exactly."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 3, 8, 8, generator=generator), torch.randint(0, 5, (8,), generator=generator)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Capturing without a GPU: the shapes captured, in order. A replay runs the loop on the values of the call."""
    shapes = []

    def capture(
        loop: Callable[..., None], first: dict[str, Any], keywords: dict[str, Any], memory: object
    ) -> Callable[..., Any]:
        shapes.append(tuple(first["x"].shape))

        def replay(values: dict[str, Any]) -> dict[str, Any]:
            static = {name: value.clone() for name, value in values.items()}
            loop(**static, **keywords)
            return static

        return replay

    monkeypatch.setattr(cuda_graph, "capture", capture)
    return shapes

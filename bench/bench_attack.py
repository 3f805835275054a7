"""The PGD-10 loop on a model: as people write it, the reference backend, and ours in every precision and layout.

"folded": the encoder runs as a plan in which its batch norms are folded into the convolutions before them or fused with
ReLU and sum; on a GPU each of ours is one CUDA graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import PGD
from robustfast.attacks.folding import folding
from robustfast.models import ThreeWay
from robustfast.ops import use_backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# backbone -> images of a batch; one step on a CPU takes 0.2 s (SmallCNN) and 1 s (PreAct-ResNet18).
MODELS = {
    "small_cnn": ((128 if DEVICE.type == "cuda" else 64, 1, 28, 28), 0.3, 0.06),
    "preact_resnet18": ((128 if DEVICE.type == "cuda" else 8, 3, 32, 32), 8 / 255, 2 / 255),
}
STEPS = 10


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, step_size: float) -> Tensor:
    """As most scripts have it: the loss's backward, all parameters included."""
    x_adv = start
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(model(x_adv), y).backward()
        x_adv = x_adv.detach() + step_size * x_adv.grad.sign()
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - eps), x + eps), 0, 1)
    return x_adv.detach()


@pytest.mark.parametrize("name", MODELS)
def bench_pgd_10(name: str, compare: Any, measuring: bool) -> None:
    shape, eps, step_size = MODELS[name]
    shape = shape if measuring else (4, *shape[1:])
    torch.manual_seed(0)
    model = ThreeWay(name, num_classes=10, in_channels=shape[1]).to(DEVICE).eval()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x, y = torch.rand(shape, device=DEVICE), torch.randint(10, shape[:1], device=DEVICE)
    x_last = x.contiguous(memory_format=torch.channels_last)
    rule = {"eps": eps, "step_size": step_size, "steps": STEPS, "random_start": False}

    def plain() -> Tensor:
        found = plain_pgd(model.way("r"), x, y, x, eps, step_size)
        model.zero_grad()
        return found

    def attack(
        net: ThreeWay, images: Tensor, bf16: bool, fold: str = "off", **more: Any
    ) -> Callable[[], Tensor]:
        pgd = PGD(net.way("r"), **rule, **more)

        def run() -> Tensor:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16), folding(fold):
                return pgd(images, y)

        return run

    def reference() -> Tensor:
        with use_backend("reference"):
            return eager()

    eager = attack(model, x, bf16=False, engine="eager")
    rivals = {
        "people": plain,
        "reference": reference,
        "fp32": attack(model, x, bf16=False),
        "fp32 folded": attack(model, x, bf16=False, fold="on"),
        "fp32 channels-last": attack(last, x_last, bf16=False),
        "fp32 channels-last folded": attack(last, x_last, bf16=False, fold="on"),
        "bf16 channels-last": attack(last, x_last, bf16=True),
        "bf16 channels-last folded": attack(last, x_last, bf16=True, fold="on"),
    }
    expected = eager()

    def check(rival: str, found: Tensor) -> None:
        if rival in ("reference", "fp32") and DEVICE.type == "cpu":
            assert torch.equal(found, expected)
            return
        # Another rounding of the gradient's sign, here and there: judged by what the attack reaches.
        with torch.no_grad():
            ours, theirs = (F.cross_entropy(model.way("r")(images), y) for images in (found, expected))
        assert (found - x).abs().max() <= eps + 1e-6
        assert abs(ours - theirs) <= 0.05 * theirs, f"{rival} reaches a loss of {ours}, fp32 {theirs}"

    compare("pgd_10", f"{name}-{'x'.join(map(str, shape))}", rivals, check)

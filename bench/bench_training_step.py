"""One training step of each method: as people write it, ours on the reference backend, and ours.

"people" is the plainest code (`plain_training.py`): float32, contiguous, eager, the attack's backward through the
weights; "people bf16 channels-last" is the same code at the precision and layout of our fastest. "reference" is our
step with every op on the reference backend: what the objectives, the attack loop and the model's ways bring without
kernels. The others are ours as a user runs it: "folded" with the encoders folded in the attack, "whole step" that as
one CUDA graph. What each lever brings by itself, `ablation.py` takes apart.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measure import full_float32
from plain_training import PlainTraining
from torch import Tensor

from robustfast.attacks import AttackConfig
from robustfast.attacks.folding import folding
from robustfast.data import Batch
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES
from robustfast.objectives.trades import normal
from robustfast.ops import random_start, use_backend
from robustfast.seeds import derive
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS
from robustfast.training.whole_step import WholeStep

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    *(("small_cnn", method) for method in ("adversarial", "at", "trades", "aat", "aatpp")),
    *(("preact_resnet18", method) for method in ("adversarial", "at", "aatpp")),
]
# On a CPU a step of AAT++ takes 4 s on PreAct-ResNet18 with four images.
SHAPES = {
    "small_cnn": (128 if DEVICE.type == "cuda" else 64, 1, 28, 28),
    "preact_resnet18": (128 if DEVICE.type == "cuda" else 8, 3, 32, 32),
}
STRENGTHS = {
    "small_cnn": AttackConfig(eps=0.3, step_size=0.06, steps=10),
    "preact_resnet18": AttackConfig(eps=8 / 255, step_size=2 / 255, steps=10),
}
SEED = 3
# Seen: 1e-7 to 3e-7, and 1e-3 for AAT++ on PreAct-ResNet18, where an attack amplifies the order of sums in the head.
FLOAT32_ERROR = 1e-2


@pytest.mark.parametrize(("name", "method"), CASES, ids=["-".join(case) for case in CASES])
def bench_training_step(name: str, method: str, compare: Any, measuring: bool) -> None:
    # "adversarial": AT on attacked images alone; "at" adds the natural ones, as the AAT paper's baseline does.
    objective_class = OBJECTIVES["at" if method == "adversarial" else method]
    settings = objective_class.Config(**({"half": False} if method == "adversarial" else {}))
    shape, strength = SHAPES[name], STRENGTHS[name]
    if method == "aatpp" and name == "preact_resnet18" and DEVICE.type == "cpu":
        shape = (4, *shape[1:])
    if not measuring:
        shape, strength = (
            (min(4, shape[0] // 4), *shape[1:]),
            AttackConfig(strength.eps, strength.step_size, steps=2),
        )
    torch.manual_seed(0)
    initial = ThreeWay(name, num_classes=10, in_channels=shape[1]).to(DEVICE).train()
    # Dropout would draw other masks for other pass orders, and nothing could be compared.
    for module in initial.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = Batch(
        torch.rand(shape, device=DEVICE),
        torch.randint(10, shape[:1], device=DEVICE),
        torch.arange(shape[0], device=DEVICE),
    )

    def same_start(way: str, x: Tensor, y: Tensor, eps: float) -> Tensor:
        if method == "trades":
            return x + 0.001 * normal(x, seed=derive(SEED, "trades", 0), index=batch.index)
        seed = derive(SEED, way) if method in ("aat", "aatpp") else SEED
        return random_start(x, eps=eps, seed=derive(seed, "pgd", 0, 0), index=batch.index)

    def people(bf16: bool = False, channels_last: bool = False) -> Callable[[], list[Tensor]]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = copy.deepcopy(initial).to(memory_format=layout)
        x = batch.x.contiguous(memory_format=layout)
        plain = PlainTraining(model, strength, same_start)
        trained = {id(p) for way in objective_class.main_ways for p in model.way(way).parameters()}
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if id(p) in trained], lr=0.1, momentum=0.9, weight_decay=5e-4
        )

        def step() -> list[Tensor]:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
                loss, _ = getattr(plain, method)(x, batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return [p.grad for p in model.parameters() if p.grad is not None and id(p) in trained]

        return step

    def ours(
        backend: str, precision: str, channels_last: bool, fold: str = "off", whole: bool = False
    ) -> Callable[[], list[Tensor]]:
        config = dataclasses.replace(
            PRESETS["cifar10-prn18-at"],
            precision=precision,
            batch_size=shape[0],
            attack=strength,
            whole_step="graph" if whole else "eager",
        )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = copy.deepcopy(initial).to(memory_format=layout)
        given = batch._replace(x=batch.x.contiguous(memory_format=layout))
        objective = objective_class(model, settings, strength, seed=SEED)
        objective.begin(0, 0.0)
        engine = Engine(objective, config, DEVICE)
        runner = WholeStep(engine, say=pytest.fail) if whole else engine

        def step() -> list[Tensor]:
            with use_backend(backend), folding(fold):
                runner.step(given, lr=0.1)
            return [p.grad for p in model.parameters() if p.grad is not None]

        if whole:
            # The step that is checked is a replay, at the weights that the others start from.
            for _ in range(3):
                step()
            with torch.no_grad():
                for value, start in zip(
                    model.state_dict().values(), initial.state_dict().values(), strict=True
                ):
                    value.copy_(start)
        return step

    rivals = {
        "people": people(),
        "people bf16 channels-last": people(bf16=True, channels_last=True),
        "reference": ours("reference", "fp32", channels_last=False),
        "fp32": ours("auto", "fp32", channels_last=False),
        "fp32 channels-last": ours("auto", "fp32", channels_last=True),
        "fp32 folded": ours("auto", "fp32", channels_last=False, fold="on"),
        "bf16": ours("auto", "bf16", channels_last=False),
        "bf16 channels-last": ours("auto", "bf16", channels_last=True),
        "bf16 channels-last folded": ours("auto", "bf16", channels_last=True, fold="on"),
    }
    if DEVICE.type == "cuda":
        rivals["whole step"] = ours("auto", "bf16", channels_last=True, fold="on", whole=True)
    with full_float32():
        expected = [gradient.detach().clone() for gradient in people()()]
    of_people: dict[str, float] = {}

    def error_of(gradients: list[Tensor]) -> float:
        assert len(gradients) == len(expected)
        distance = sum(float((a - b).square().sum()) for a, b in zip(gradients, expected, strict=True))
        return (distance / sum(float(b.square().sum()) for b in expected)) ** 0.5

    def check(rival: str, gradients: list[Tensor]) -> None:
        """All rivals start from the same weights and draws, so their first gradients are of the same function.

        In bfloat16 the plain code's own error is the measure: 0.3 for an untrained PreAct-ResNet18; so it is in float32
        on a GPU, whose convolutions take TF32. In another layout, or with another order of scaling, a gradient's sign
        flips here and there in the attack.
        """
        error = error_of(gradients)
        if rival.startswith("people"):
            of_people[rival] = error
            return
        if "bf16" in rival or rival == "whole step":
            allowed = max(0.05, 1.5 * of_people["people bf16 channels-last"])
        else:
            same_order = rival in ("reference", "fp32")
            allowed = max(FLOAT32_ERROR if same_order else 0.05, 1.5 * of_people["people"])
        assert error < allowed, f"{rival}: relative error of the gradient {error:.3g}, allowed {allowed:.3g}"

    compare("training_step", f"{name}-{method}-{'x'.join(map(str, shape))}", rivals, check)

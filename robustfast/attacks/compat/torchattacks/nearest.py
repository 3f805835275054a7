"""The attacks of torchattacks that look for the nearest adversarial image under l2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.compat.torchattacks.attack import Attack
from robustfast.attacks.presets import ATTACKS

__all__ = ["CW", "DeepFool"]


class CW(Attack):
    """``CW(model, c=1, kappa=0, steps=50, lr=0.01)``: no search for c.

    On purpose different: pixels at 0 and 1 move (torchattacks leaves binary images exactly as they are), the margin is
    that of the logits whatever their sign, an image counts as found where it leads by `kappa`, and all steps are run
    for each sample by itself, where torchattacks stops the batch once its summed loss rises.
    """

    def __init__(self, model: Any, c: float = 1, kappa: float = 0, steps: int = 50, lr: float = 0.01) -> None:
        super().__init__("CW", model)
        self.c = c
        self.kappa = kappa
        self.steps = steps
        self.lr = lr
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self.on_device(images, labels)
        return self.run(
            ATTACKS["cw-l2"].attack, images, key=0, c=self.c, confidence=self.kappa, steps=self.steps,
            step_size=self.lr, search_steps=1, abort_early=False, **self._goal(images, labels),
        )  # fmt: skip


class DeepFool(Attack):
    """``DeepFool(model, steps=50, overshoot=0.02)``: all classes, each step overshot by itself, last point kept."""

    def __init__(self, model: Any, steps: int = 50, overshoot: float = 0.02) -> None:
        super().__init__("DeepFool", model)
        self.steps = steps
        self.overshoot = overshoot

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self.on_device(images, labels)
        return self.run(
            ATTACKS["deepfool"].attack, images, labels, key=0, steps=self.steps, overshoot=self.overshoot,
            candidates=None, cumulative=False, nudge=0.0, keep_failed=True,
        )  # fmt: skip

    def forward_return_target_labels(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images, and what the model says of them."""
        adv_images = self.forward(images, labels)
        with torch.no_grad():
            return adv_images, self.get_logits(adv_images).argmax(1)

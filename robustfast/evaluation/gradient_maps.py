"""What one way of a model looks at: the gradient of its loss with respect to the image, made visible."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import eval_mode

__all__ = ["gradient_map", "input_gradient"]


def gradient_map(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The input gradient of each image as an image (AAT, appendix D.1).

    Clipped to its mean ± 3 standard deviations and scaled so that these limits are 0 and 1: grey is the mean. The paper
    does not say over what mean and deviation go; here they are those of each image.

    Args:
        model: images [B, C, H, W] -> logits [B, K], such as one way of a three-way model; run in eval mode.
        x: images in [0, 1], float32 [B, C, H, W].
        y: labels, int64 [B].

    Returns:
        float32 [B, C, H, W] in [0, 1]; 0.5 everywhere where the gradient is the same everywhere.
    """
    grad = input_gradient(model, x, y)
    mean = grad.mean(dim=(1, 2, 3), keepdim=True)
    reach = 3 * grad.std(dim=(1, 2, 3), keepdim=True, correction=0)
    scaled = (grad - mean) / torch.where(reach > 0, reach, torch.ones_like(reach))
    return (scaled.clamp(-1, 1) + 1) / 2


def input_gradient(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the cross entropy of each image with respect to that image, [B, C, H, W]; no weight gradient."""
    with eval_mode(model), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        loss = F.cross_entropy(model(leaf), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
    return grad

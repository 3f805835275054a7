"""StAdv: images bent by a small flow."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks.losses import Loss
from robustfast.attacks.smoothness import smoothness
from robustfast.attacks.transformed import State, TransformAttack

__all__ = ["StAdv"]


class StAdv(TransformAttack):
    """Spatially transformed adversarial examples of Xiao et al. 2018 (arXiv:1801.02612), bounded as in mister_ed.

    Each pixel is read from where a flow points, bilinearly. Adam climbs

        margin(model(bent x), y) - (smoothing / eps) * sum over pixels and their four neighbours of |flow difference|_2

    over the flow, from zero; after each step the flow is confined so that no pixel is read from outside the image and
    no coordinate moves by more than eps. The last flow counts, not the best.

    Implementations differ:

    * The paper minimises the flow loss plus the margin by L-BFGS, without any bound: what its images differ by is
      decided by a weight.
    * mister_ed, which the perceptual-adversarial code and CD-VAE's evaluation run, is this one. Its ``keep_best`` is
      computed and not used. It works on square images alone; here any.
    * ``align_corners`` says where -1 and 1 lie: with False, as torch has it since 1.3 and those codes ran, at the outer
      edges of the outer pixels, so that a flow at the border may mix in half a pixel of what lies outside: zeros.
      With True, as mister_ed was written for, at the centres of the outer pixels, and nothing outside is ever read.
      One setting serves the grid and the sampling; two that differ would scale the image.

    Args:
        model: see `Attack`; images [B, C, H, W].
        eps: bound on each coordinate of the flow, in units in which the image spans -1 to 1: 0.05 of 32 pixels is 0.8
            pixel.
        steps, step_size: of Adam, the latter in units of eps.
        smoothing: weight of the unevenness, for eps 1.
        align_corners: see above.
        random_start, restarts, eot, early_stop: see `TransformAttack`.
        loss, targeted, bounds, batch_norm, seed, engine: see `Attack`. "compile" runs eagerly.

    Raises:
        ValueError: a setting out of range or an unknown name; in a call, images that are not [B, C, H, W].
    """

    name = "stadv"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float = 0.05,
        steps: int = 100,
        step_size: float = 0.01,
        smoothing: float = 0.0025,
        align_corners: bool = False,
        random_start: bool = False,
        restarts: int = 1,
        eot: int = 1,
        early_stop: bool = False,
        loss: str | Loss = "margin",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if not 0 <= smoothing < float("inf"):
            raise ValueError(f"smoothing is {smoothing}, expected a weight >= 0")
        super().__init__(
            model, eps=eps, steps=steps, step_size=step_size, optimizer="adam", random_start=random_start,
            restarts=restarts, eot=eot, early_stop=early_stop, loss=loss, targeted=targeted, bounds=bounds,
            batch_norm=batch_norm, seed=seed, engine=engine,
        )  # fmt: skip
        self.smoothing = smoothing
        self.align_corners = align_corners

    def _prepare(self, x: Tensor) -> State:
        if x.dim() != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}, StAdv bends images [B, C, H, W]")
        return {"grid": identity_grid(x, align_corners=self.align_corners)}

    def _size(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[2:], 2)

    def _images(self, x: Tensor, offset: Tensor, prepared: State, *, first: bool = False) -> Tensor:
        grid = prepared["grid"] + offset
        bent = F.grid_sample(x, grid, "bilinear", "zeros", align_corners=self.align_corners)
        return bent.clamp(*self.bounds)

    def _confine(self, offset: Tensor, prepared: State) -> Tensor:
        # The grid lies in [-1, 1], so that zero is allowed by either bound and the order of the two does not matter.
        grid = prepared["grid"]
        return torch.minimum(torch.maximum(offset, -1 - grid), 1 - grid).clamp_(-self.eps, self.eps)

    def _penalty(self, offset: Tensor) -> Tensor | None:
        return smoothness(offset) * (self.smoothing / self.eps) if self.smoothing and self.eps else None


def identity_grid(x: Tensor, *, align_corners: bool) -> Tensor:
    """Where each pixel of `x` [B, C, H, W] lies: [B, H, W, 2], across then down, in [-1, 1]."""
    still = x.new_tensor([[1, 0, 0], [0, 1, 0]]).expand(len(x), 2, 3)
    return F.affine_grid(still, list(x.shape), align_corners=align_corners)

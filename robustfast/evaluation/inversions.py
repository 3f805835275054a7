"""What a representation holds: images found from noise that an encoder takes for the ones it was shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfast.models import Network
from robustfast.objectives import invert
from robustfast.seeds import derive

__all__ = ["Inversion", "invert_representations"]

STEP_SIZE = 1.0
"""In pixel units, as the paper has it."""
CHUNK = 25
"""Steps between two looks at the progress: a chunk computes the target's features once more, 4 % of its passes."""


@dataclass(frozen=True)
class Inversion:
    """Images whose representation is nearly that of others.

    Attributes:
        encoder: the way that it feeds, "r" or "n".
        images: float32 [N, C, H, W] in [0, 1], on the CPU.
        distances: how far their representation still is, [N]: ||g(x) - g(target)||_2 / ||g(target)||_2.
    """

    encoder: str
    images: Tensor
    distances: Tensor


def invert_representations(
    model: Network,
    encoders: str,
    target: Tensor,
    *,
    steps: int,
    seed: int,
    on_steps: Callable[[int], None] = lambda steps: None,
) -> list[Inversion]:
    """Invert the representations of `target` (AAT, appendix D.2, figures 2a and 4).

    From uniform noise in [0, 1], the same for each encoder, `steps` steps of length 1 along the unit gradient of the
    distance, each clipped to [0, 1]. The paper takes 10,000 steps and leaves noise and optimiser open.

    Args:
        model: the model; run in eval mode.
        encoders: which to invert, by the ways that they alone feed.
        target: images in [0, 1], float32 [N, C, H, W].
        steps: from 1.
        seed: of the noise.
        on_steps: called with the number of steps made since the last call, for a progress bar.
    """
    generator = torch.Generator().manual_seed(derive(seed, "inversion"))
    noise = torch.rand(target.shape, generator=generator, dtype=target.dtype).to(target.device)
    found = []
    for name in encoders:
        (encoder,) = model.encoders(name).values()
        x, left = noise, steps
        while left:
            now = min(CHUNK, left)
            x, distances = invert(encoder, target, x, steps=now, step_size=STEP_SIZE)
            left -= now
            on_steps(now)
        found.append(Inversion(name, x.cpu(), distances.cpu()))
    return found

"""Images laid out in rows on white, as one image."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["image_grid"]


def image_grid(images: Tensor, columns: int, *, gap: int = 2) -> Tensor:
    """Lay images out row by row, white between them and where the last row ends early.

    Args:
        images: float [N, C, H, W] in [0, 1], at least one.
        columns: images in a row, from 1.
        gap: pixels between two images.

    Returns:
        float32 [C, H', W'] on the CPU, with H' = rows * (H + gap) - gap and W' = columns * (W + gap) - gap: what
        TensorBoard's ``add_image`` takes.

    Raises:
        ValueError: no images, another number of dimensions, or fewer columns than one.
    """
    if images.ndim != 4 or not len(images) or columns < 1:
        raise ValueError(
            f"expected images [N, C, H, W] with at least one and columns from 1, got {list(images.shape)} and {columns}"
        )
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = torch.ones(rows * columns, channels, height + gap, width + gap)
    cells[:count, :, :height, :width] = images.detach().cpu()
    laid = cells.view(rows, columns, channels, height + gap, width + gap).permute(2, 0, 3, 1, 4)
    whole = laid.reshape(channels, rows * (height + gap), columns * (width + gap))
    return whole[:, : rows * (height + gap) - gap, : columns * (width + gap) - gap].contiguous()

"""An image as it is, one pixel for one pixel, in a page."""

from __future__ import annotations

import base64
import io

from matplotlib.image import imsave
from torch import Tensor

__all__ = ["data_uri"]


def data_uri(image: Tensor) -> str:
    """A PNG of the image's own size as the address an <img> takes, so that a page holds it.

    Args:
        image: float [C, H, W] in [0, 1], with one or three channels.

    Raises:
        ValueError: another shape.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected an image [1 or 3, H, W], got {list(image.shape)}")
    pixels = (image * 255).round().clamp(0, 255).byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

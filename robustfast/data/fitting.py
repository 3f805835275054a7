"""Images for a model that was trained on others."""

from __future__ import annotations

from typing import TypeVar

from robustfast.data.dataset import Dataset
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError

__all__ = ["fitting"]

Images = TypeVar("Images", Dataset, ImageFiles)


def fitting(images: Images, channels: int, size: tuple[int, int] | None) -> Images:
    """Return images as a model takes them that was trained on others of the same data set.

    A split of a folder can happen to be all grey where training had colour: its files are then read as RGB, as grey
    files among coloured ones are. Nothing else is changed, since it would lose something of the images.

    Args:
        images: the images to be checked or evaluated with.
        channels: of the training images.
        size: (height, width) of the training images; None: not known.

    Raises:
        UserError: coloured images where training had grey ones, or another size.
    """
    if isinstance(images, ImageFiles) and (images.channels, channels) == (1, 3):
        images = images.coloured()
    if images.channels != channels:
        raise UserError(
            f"the test images of {images.name} have {images.channels} channels, those trained on have {channels}: "
            f"convert either, so that both are grey or both are coloured"
        )
    found = images.height, images.width
    if size is not None and found != size:
        raise UserError(
            f"the test images of {images.name} have {found[1]}x{found[0]} pixels, those trained on have "
            f"{size[1]}x{size[0]}: bring them to one size, or give --image-size in training"
        )
    return images

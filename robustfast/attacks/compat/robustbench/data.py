"""``robustbench.data``: the first test images of a data set of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from robustfast.attacks.compat.model import unsupported
from robustfast.data import load
from robustfast.errors import UserError

__all__ = ["first_images", "load_cifar10", "load_cifar100"]


def load_cifar10(
    n_examples: int | None = None, data_dir: str | Path = "./data", transforms_test: Any = None
) -> tuple[Tensor, Tensor]:
    """The first test images float32 [N, 3, 32, 32] in [0, 1], and labels."""
    return first_images("cifar10", n_examples, data_dir, transforms_test)


def load_cifar100(
    n_examples: int | None = None, data_dir: str | Path = "./data", transforms_test: Any = None
) -> tuple[Tensor, Tensor]:
    """The first test images float32 [N, 3, 32, 32] in [0, 1], and labels."""
    return first_images("cifar100", n_examples, data_dir, transforms_test)


def first_images(
    dataset: str, n_examples: int | None, data_dir: str | Path, preprocessing: Any
) -> tuple[Tensor, Tensor]:
    """The first test images float32 [N, C, H, W] in [0, 1], through `preprocessing` where it is given, and labels.

    Raises:
        ValueError: a preprocessing by name.
        UserError: a data set that is not found, or cannot be read.
    """
    if isinstance(preprocessing, str):
        raise ValueError(f"preprocessing is {preprocessing!r}, expected a function of images in [0, 1]")
    try:
        split = load(dataset, "test", data_dir)
    except UserError as error:
        # The message names the command line's flag; here it is an argument.
        raise UserError(str(error).replace("--data-dir", "data_dir")) from None
    split = split.take(torch.arange(min(len(split), len(split) if n_examples is None else n_examples)))
    split = split.decode()
    x = split.images.float() / split.scale
    return x if preprocessing is None else preprocessing(x), split.labels


def __getattr__(name: str) -> NoReturn:
    raise unsupported("robustbench.data", name)

"""The one function that picks a loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from robustfast.data.batches import Batch, Feed
from robustfast.data.dali import DaliFeed, broken, missing
from robustfast.data.dataset import Dataset
from robustfast.data.draws import PAD
from robustfast.data.image_files import ImageFiles
from robustfast.data.resident import ResidentFeed
from robustfast.data.room import Room, room
from robustfast.data.torch_loader import TorchFeed
from robustfast.registry import lookup

__all__ = ["LOADERS", "Batch", "Feed", "feed"]

LOADERS: dict[str, type[Feed]] = {"resident": ResidentFeed, "dali": DaliFeed, "torch": TorchFeed}


def feed(
    dataset: Dataset | ImageFiles,
    batch_size: int,
    *,
    loader: str = "auto",
    seed: int,
    device: str | torch.device = "cpu",
    augment: bool = False,
    rand_augment: bool = False,
    crop: str = "pad",
    channels_last: bool = False,
    shuffle: bool = True,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    say: Callable[[str], Any] | None = print,
) -> Feed:
    """Return batches of a data set from the loader that suits it.

    All loaders give the same images in the same order with the same crops and flips for a seed: of arrays the same
    bits, of image files pixels that differ by what two libraries round differently when they resize.

    Args:
        loader: "resident" keeps all images on the device as bytes; "dali" sends them through NVIDIA DALI; "torch"
            through PyTorch's DataLoader. "auto" takes resident where the images fit (padded, in half of the GPU's free
            memory, or in the machine's as `robustfast.data.room` has it) and --crop is pad, else dali where it is
            installed, else torch.
        say: told in one line what "auto" took and why; None keeps it quiet.
        others: as `Feed`.

    Raises:
        UserError: as `Feed`; an unknown loader, one that is not installed, or one that cannot do what is asked.
    """
    options: dict[str, Any] = {
        "seed": seed,
        "device": device,
        "augment": augment,
        "rand_augment": rand_augment,
        "crop": crop,
        "channels_last": channels_last,
        "shuffle": shuffle,
        "drop_last": drop_last,
        "rank": rank,
        "world": world,
    }
    chosen: type[Feed] = lookup("loader", {**LOADERS, "auto": Feed}, loader)
    if loader == "auto":
        # Refuse what no loader can do before any is chosen and said.
        Feed(dataset, batch_size, **options)
        name, why = _choose(dataset, torch.device(device), augment=augment, crop=crop)
        chosen = LOADERS[name]
        if say is not None:
            say(f"loader: {name} ({why})")
    return chosen(dataset, batch_size, **options)


def _choose(
    dataset: Dataset | ImageFiles, device: torch.device, *, augment: bool, crop: str
) -> tuple[str, str]:
    """The name of the loader that suits, and why."""
    if crop == "resized":
        why = "--crop resized takes another part of each file in each epoch"
    else:
        pad = 2 * PAD if augment else 0
        size = len(dataset) * dataset.channels * (dataset.height + pad) * (dataset.width + pad)
        free, note = _room(device)
        if isinstance(dataset, ImageFiles):  # they are decoded in the machine's memory
            free, note = min((free, note), _room(torch.device("cpu")))
        taken = f"{dataset.name} is {_bytes(size)} as {'padded ' if augment else ''}bytes"
        if size <= free:
            return "resident", f"{taken}, memory for {_bytes(free)}{note}"
        why = f"{taken}, more than the {_bytes(free)} that there is memory for{note}"
    if reason := missing() or broken():
        return "torch", f"{why}; {reason}"
    return "dali", why


def _room(device: torch.device) -> Room:
    """What a data set may take of a device's memory; the rest is for the model, or for other programs."""
    return Room(torch.cuda.mem_get_info(device)[0] // 2) if device.type == "cuda" else room()


def _bytes(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"

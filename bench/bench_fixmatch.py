"""RandAugment and cutout of a batch: Pillow one image at a time, as in the published code, and ours.

Both give the same pixels. Pillow is handed its draws, and its images as its own, which it keeps: neither is timed.
"""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
from pillow_fixmatch import by_pillow_whole, from_pillow, steps, to_pillow

from robustfast.data.fixmatch import rand_augment

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEED = 2**40 + 1
SHAPES = {
    "128x3x32x32": (128, 3, 32, 32),
    "1024x3x32x32": (1024, 3, 32, 32),
    "64x3x224x224": (64, 3, 224, 224),
}


@pytest.mark.parametrize("shape", SHAPES)
def bench_fixmatch(shape: str, compare: Any, benchmark: Any, measuring: bool) -> None:
    batch, channels, height, width = SHAPES[shape]
    if not measuring:
        batch = 16
    generator = torch.Generator().manual_seed(0)
    # Blocks of one colour, so that the images are neither flat nor noise to the operations that look at histograms.
    small = torch.randint(0, 256, (batch, channels, 8, 8), generator=generator, dtype=torch.uint8)
    images = small.repeat_interleave(height // 8, dim=2).repeat_interleave(width // 8, dim=3)
    index = torch.arange(batch)
    pillow = [to_pillow(image) for image in images]
    drawn = [steps(number, (width, height), seed=SEED) for number in range(batch)]
    there, numbers = images.to(DEVICE), index.to(DEVICE)
    expected = rand_augment(images, seed=SEED, index=index)

    def check(name: str, result: Any) -> None:
        found = torch.stack([from_pillow(image) for image in result]) if name == "pillow" else result.cpu()
        # Pillow's compiler may fuse a product and a sum where the processor can; see the test.
        allowed = 0.05 if name == "pillow" and platform.machine() != "x86_64" else 0
        assert (found != expected).float().mean() <= allowed

    rivals = {
        "pillow": lambda: [by_pillow_whole(image, own) for image, own in zip(pillow, drawn, strict=True)],
        "ours": lambda: rand_augment(there, seed=SEED, index=numbers),
    }
    compare("rand_augment", shape, rivals, check)
    if measuring:
        seconds = benchmark.extra_info["seconds"]
        benchmark.extra_info["images_per_second"] = {
            name: batch / timing["median"] for name, timing in seconds.items()
        }

"""Crop, flip and scale of a batch: as scripts do it, the reference, it compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor

from robustfast.ops import augment, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import augment as reference

PAD, SEED = 4, 2**40 + 1
# Images in the store, far more than a cache holds, and the batch taken from them.
SHAPES = {
    "256x3x32x32": (50_000, 256, 3, 32, 32),
    "256x1x28x28": (60_000, 256, 1, 28, 28),
    "64x3x224x224": (1_000, 64, 3, 224, 224),
}
FORMATS = {"planes": torch.contiguous_format, "last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "uint8": torch.uint8}
CASES = [
    *product(["256x3x32x32"], ["planes-planes", "last-last"], DTYPES),
    *product(["256x3x32x32"], ["planes-last", "last-planes"], ["float32"]),
    *product(["256x1x28x28"], ["planes-planes"], ["float32"]),
    *product(["64x3x224x224"], ["planes-planes", "last-last"], ["float32"]),
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def eager(images: Tensor, index: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """As scripts with a resident data set have it: one place for the whole batch, a flip for each image."""
    top, left = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
    height, width = images.shape[2] - 2 * PAD, images.shape[3] - 2 * PAD
    x = images[index][:, :, top : top + height, left : left + width]
    if dtype != torch.uint8:
        x = (x.float() / 255).to(dtype)
    flip = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(flip, x.flip(3), x).contiguous(memory_format=memory_format)


def is_one_window(result: Tensor, whole: Tensor) -> bool:
    """Whether every image of `result` is that of `whole`, cropped at one place, mirrored or not."""
    height, width = result.shape[2:]
    for top, left in product(range(2 * PAD + 1), repeat=2):
        window = whole[:, :, top : top + height, left : left + width]
        same = [(result == w).flatten(1).all(1) for w in (window, window.flip(3))]
        if torch.stack(same).any(0).all():
            return True
    return False


@pytest.mark.parametrize(("shape", "layouts", "kind"), CASES)
def bench_augment(
    shape: str, layouts: str, kind: str, compare: Any, fused: Any, measuring: bool, benchmark: Any
) -> None:
    images, batch, channels, height, width = SHAPES[shape]
    if not measuring:
        images, batch = 20, 4
    store_format, memory_format = (FORMATS[name] for name in layouts.split("-"))
    dtype = DTYPES[kind]
    generator = torch.Generator().manual_seed(0)
    padded = (images, channels, height + 2 * PAD, width + 2 * PAD)
    store = torch.randint(0, 256, padded, generator=generator, dtype=torch.uint8).to(
        DEVICE, memory_format=store_format
    )
    # An epoch's batches, one after the other: one batch again and again would be read from the cache.
    order = torch.randperm(images, generator=generator)[: images // batch * batch].to(DEVICE)
    indices = order.reshape(-1, batch).unbind()
    rule = {"pad": PAD, "seed": SEED, "out_dtype": dtype, "memory_format": memory_format}
    out = torch.empty(batch, channels, height, width, dtype=dtype, device=DEVICE)
    out = out.contiguous(memory_format=memory_format)
    backends = fused("augment", DEVICE)
    automatic = backends[-1] if backends else "reference"

    def on(backend: str, **more: Any) -> Callable[[], Tensor]:
        batches = cycle(indices)

        def call() -> Tensor:
            return augment(store, index=next(batches), **rule, **more)

        def run() -> Tensor:
            with use_backend(backend):
                return call()

        # Entering a backend takes 24 us; nobody enters the one that is chosen anyway.
        return call if backend == automatic else run

    torch._dynamo.reset()
    compiled = torch.compile(reference.augment, fullgraph=True)
    eager_batches, compiled_batches = cycle(indices), cycle(indices)

    def run_compiled() -> Tensor:
        settings = {"seed": SEED, "pad": PAD, "flip": True, "scale": 255.0, "dtype": dtype}
        return compiled(store, next(compiled_batches), **settings).contiguous(memory_format=memory_format)

    rivals: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: eager(store, next(eager_batches), dtype, memory_format),
        "reference": on("reference"),
        "compiled": run_compiled,
        **{backend: on(backend, out=out) for backend in backends},
    }
    sample = Sample(f"{shape}-{layouts}-{kind}", (store,), {**rule, "index": indices[0]})

    def check(name: str, result: Tensor) -> None:
        if name == "eager":
            whole = store[indices[0]]
            assert is_one_window(result, whole if dtype == torch.uint8 else (whole.float() / 255).to(dtype))
        elif name == "compiled":
            torch.testing.assert_close(result, augment(store, index=indices[0], **rule), rtol=1e-6, atol=0)
        else:
            assert_agrees(augment, sample, [result])

    # The window's bytes in, the batch out.
    compare("augment", sample.label, rivals, check, nbytes=out.numel() + out.nbytes, device=DEVICE)
    if measuring:
        seconds = benchmark.extra_info["seconds"]
        benchmark.extra_info["images_per_second"] = {
            name: batch / timing["median"] for name, timing in seconds.items()
        }

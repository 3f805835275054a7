"""CIFAR-sized images, cropped and mirrored: the loader of most scripts, and the three of this project.

"per sample" is what most scripts are: a data set that pads, crops, mirrors and scales one image with torch's own
operations, in a DataLoader without worker processes, drawing from the global generator. The images are random; their
number fits no cache. Times are of this process with all its threads, so DALI's own thread counts: a loader that works
ahead in another thread is no faster here for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import data

from robustfast.data import Batch, Dataset, Feed, draws, feed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_DALI = (
    importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
)
BATCH_SIZE = 128
SEED, EPOCH = 3, 1


class PerSample(data.Dataset[tuple[Tensor, int]]):
    """One image at a time; `places` gives the draws that it would make itself."""

    def __init__(self, dataset: Dataset, places: list[tuple[int, int, bool]] | None = None) -> None:
        self.images, self.labels = dataset.images, dataset.labels.tolist()
        self.places = places

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if self.places is None:
            top, left = torch.randint(9, (2,)).tolist()
            mirror = torch.rand(1).item() < 0.5
        else:
            top, left, mirror = self.places[number]
        padded = torch.nn.functional.pad(self.images[number], (4, 4, 4, 4))
        image = padded[:, top : top + 32, left : left + 32]
        if mirror:
            image = image.flip(2)
        return image.float() / 255, self.labels[number]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def bench_loaders(layout: str, compare: Any, benchmark: Any, measuring: bool) -> None:
    images = 100 * BATCH_SIZE if measuring else 2 * BATCH_SIZE + 3
    generator = torch.Generator().manual_seed(0)
    dataset = Dataset(
        name="random",
        images=torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8),
        labels=torch.randint(0, 10, (images,), generator=generator),
        classes=tuple("0123456789"),
    )
    memory_format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    feeds: dict[str, Feed] = {
        name: feed(
            dataset,
            BATCH_SIZE,
            loader=name,
            seed=SEED,
            device=DEVICE,
            augment=True,
            channels_last=layout == "channels-last",
        )
        for name in ("torch", *(["dali"] if HAS_DALI else []), "resident")
    }
    expected = list(feeds["resident"].batches(EPOCH))
    places = list(
        zip(
            *(each.tolist() for each in draws.crops(torch.arange(images), seed=SEED, epoch=EPOCH)),
            strict=True,
        )
    )
    order = [batch.index.tolist() for batch in expected]

    def per_sample(**options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        given = PerSample(dataset, options.pop("places", None))
        for x, y in data.DataLoader(given, **options):
            yield x.to(DEVICE, memory_format=memory_format), y.to(DEVICE)

    def people() -> Iterator[tuple[Tensor, Tensor]]:
        return per_sample(batch_size=BATCH_SIZE, shuffle=True)

    def assert_equal(batches: list[Batch] | list[tuple[Tensor, Tensor]]) -> None:
        assert len(batches) == len(expected)
        for batch, wanted in zip(batches, expected, strict=True):
            assert torch.equal(batch[0], wanted.x)
            assert batch[0].stride() == wanted.x.stride()
            assert torch.equal(batch[1], wanted.y)

    assert_equal(list(per_sample(batch_sampler=order, places=places)))
    for source in feeds.values():
        assert_equal(list(source.batches(EPOCH)))

    def served(batches: Callable[[], Iterator[Any]]) -> Callable[[], int]:
        return lambda: sum(len(batch[1]) for batch in batches())

    rivals = {
        "per sample": served(people),
        **{name: served(lambda source=source: source.batches(EPOCH)) for name, source in feeds.items()},
    }

    def check(name: str, count: int) -> None:
        assert count == images, f"{name} served {count} images, expected {images}"

    compare("loaders", f"{images}x3x32x32-{layout}", rivals, check)
    if measuring:
        seconds = benchmark.extra_info["seconds"]
        rates = {name: round(images / timing["median"]) for name, timing in seconds.items()}
        benchmark.extra_info["images_per_second"] = rates
        print(f"\nimages/s, {layout}: " + ", ".join(f"{name} {rate:,}" for name, rate in rates.items()))

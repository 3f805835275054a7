"""Serve images through NVIDIA DALI: arrays a batch at a time, image files read and decoded by DALI itself.

DALI draws nothing: order, windows and mirroring are this project's and are fed to the pipelines as inputs.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustfast.data import draws
from robustfast.data.batches import Batch, Feed, Rows, processors
from robustfast.data.dataset import Dataset
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError

__all__ = ["DaliFeed", "broken", "missing"]

PREFETCH = 2  # batches that a pipeline works ahead


def missing() -> str | None:
    """Why DALI cannot be had here and what to do, or None where it is installed."""
    if sys.platform != "linux":
        return f"there is no DALI for {platform.system()}"
    try:
        found = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # nothing of NVIDIA's is installed
        found = False
    if found:
        return None
    cuda = "120" if (torch.version.cuda or "").startswith("12.") else "130"
    return f"DALI is not installed: pip install nvidia-dali-cuda{cuda}"


def broken() -> str | None:
    """Why an installed DALI does not import, or None where it does. Imports it, which takes a second."""
    try:
        importlib.import_module("nvidia.dali.plugin.pytorch")
    except Exception as error:
        return f"DALI is installed but does not import ({error!r}): reinstall it"
    return None


class DaliFeed(Feed):
    """A `Feed` whose images pass through a DALI pipeline, on the CPU or on the GPU as the batches are.

    Raises:
        UserError: as `Feed`; DALI is not installed or does not import.
    """

    def __init__(self, dataset: Dataset | ImageFiles, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, **options)
        if reason := missing():
            raise UserError(f"--loader dali: {reason}, or take --loader torch")
        if reason := broken():
            raise UserError(f"--loader dali: {reason}, or take --loader torch")
        self._labels = dataset.labels.to(self.device)
        self._sizes = dataset.sizes if isinstance(dataset, ImageFiles) else None

    def _batches(self, epoch: int, start: int) -> Generator[Batch]:
        rows = self._rows(epoch, start, "cpu")
        if not rows:
            return
        # A pipeline of its own for each epoch takes milliseconds, and has no state that a resumed epoch would lack.
        outputs = (
            self._files(self.dataset, rows, epoch)
            if isinstance(self.dataset, ImageFiles)
            else self._arrays(self.dataset, rows, epoch)
        )
        with _kept_while_used(self.device) as keep:
            for number, (index, share) in enumerate(rows):
                pixels = self._next(outputs, rows[number : number + 2 * PREFETCH + 1])
                index = index.to(self.device, non_blocking=True)
                x = self._finish(pixels, index, epoch)
                keep(pixels)
                yield Batch(x, self._labels[index], index, share)

    def _arrays(self, dataset: Dataset, rows: list[Rows], epoch: int) -> Iterator[Tensor]:
        """uint8 [B, C, H, W] of each batch: its images are gathered here, cropped and mirrored by DALI."""
        from nvidia.dali import fn

        # Drawn for the epoch at once: a batch at a time, the draws would take a quarter of all that is done.
        crops = self._crops(torch.cat([index for index, _ in rows]), epoch)
        size = max(len(index) for index, _ in rows)

        def inputs() -> Iterator[list[np.ndarray]]:
            ends = np.cumsum([len(index) for index, _ in rows])
            # One buffer for all batches, since DALI copies what it is given: a new one has its pages to be found first.
            gathered = dataset.images.new_empty((size, *dataset.images.shape[1:]))
            for (index, _), *drawn in zip(rows, *(np.split(each, ends[:-1]) for each in crops), strict=True):
                batch = torch.index_select(dataset.images, 0, index, out=gathered[: len(index)])
                yield [batch.numpy(), *drawn]

        with self._pipeline(size, threads=1) as pipeline:
            images, *nodes = fn.external_source(inputs(), num_outputs=1 + len(crops), layout=["CHW"])
            images = images.gpu() if self._on_gpu else images
            pipeline.set_outputs(self._cut(images, nodes))
        return _outputs(pipeline)

    def _files(self, dataset: ImageFiles, rows: list[Rows], epoch: int) -> Iterator[Tensor]:
        """As `_arrays`, of files that DALI reads in this order and decodes, the windows of which it is told."""
        from nvidia.dali import fn, types

        order = torch.cat([index for index, _ in rows])
        crops = self._crops(order, epoch)
        size = len(rows[0].index)

        def inputs() -> Iterator[list[np.ndarray]]:
            for first in range(0, len(order), size):
                # The reader fills the last batch up with its last file, which the iterator takes off again.
                places = np.arange(first, first + size).clip(max=len(order) - 1)
                yield [*self._windows(dataset, order[places], epoch), *(each[places] for each in crops)]

        with self._pipeline(size, threads=processors()) as pipeline:
            encoded, _ = fn.readers.file(
                files=[str(dataset.files[number]) for number in order.tolist()],
                name="Reader",
                pad_last_batch=True,
                prefetch_queue_depth=PREFETCH,
            )
            low, high, *nodes = fn.external_source(inputs(), num_outputs=2 + len(crops))
            decoding = {
                "device": "mixed" if self._on_gpu else "cpu",
                "output_type": types.GRAY if dataset.channels == 1 else types.RGB,
                "adjust_orientation": False,
            }
            resizing = {"size": [dataset.height, dataset.width], "antialias": True}
            if self.crop == "resized":
                images = fn.decoders.image_slice(encoded, start=low, end=high, axis_names="HW", **decoding)
                images = fn.resize(images, **resizing)
            else:
                images = fn.decoders.image(encoded, **decoding)
                images = fn.resize(images, roi_start=low, roi_end=high, **resizing)
            pipeline.set_outputs(self._cut(images, nodes))
        return (images.permute(0, 3, 1, 2) for images in _outputs(pipeline, reader="Reader"))

    def _next(self, outputs: Iterator[Tensor], rows: list[Rows]) -> Tensor:
        """The pixels of the first of `rows`; the others are those on which the pipeline may already work."""
        try:
            pixels = next(outputs)
            if len(pixels) < len(rows[0].index):
                # The last batch can hold one image more for this process than the others did.
                pixels = torch.cat([pixels, next(outputs)])
        except RuntimeError as error:
            # Its frames hold the pipeline, whose threads would live as long as the error does.
            traceback.clear_frames(error.__traceback__)
            if isinstance(self.dataset, ImageFiles):
                # DALI's message has many lines and seldom a file's name; reading what it works ahead on finds it.
                for number in torch.cat([index for index, _ in rows]).tolist():
                    self.dataset.read(number)
            raise
        return pixels

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _pipeline(self, batch_size: int, *, threads: int) -> Any:
        from nvidia.dali import Pipeline

        device = None
        if self._on_gpu:
            device = torch.cuda.current_device() if self.device.index is None else self.device.index
        return Pipeline(batch_size, threads, device, prefetch_queue_depth=PREFETCH, py_num_workers=0)

    def _windows(self, dataset: ImageFiles, index: Tensor, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """[B, 2] each, row before column: where the part of each file begins and ends that becomes the image."""
        assert self._sizes is not None
        sizes = self._sizes[index]
        if self.crop == "resized":
            windows = draws.windows(sizes, index, seed=self.seed, epoch=epoch).int()
        else:
            windows = draws.centres(sizes, dataset.width, dataset.height).float()
        return windows[:, [1, 0]].numpy(), windows[:, [3, 2]].numpy()

    def _crops(self, index: Tensor, epoch: int) -> list[np.ndarray]:
        """What `_cut` is told of each image: int32 [B], whether to mirror it, and int32 [B, 2], where a crop begins."""
        if not self.augment:
            return []
        top, left, mirror = draws.crops(index, seed=self.seed, epoch=epoch)
        mirrored = [mirror.int().numpy()]
        if self.crop == "resized":
            return mirrored
        begin = torch.stack([top, left], dim=1) - draws.PAD  # negative in the border of zeros
        return [*mirrored, begin.int().numpy()]

    def _cut(self, images: Any, nodes: list[Any]) -> Any:
        """Crop and mirror images in a pipeline; `nodes` bring what `_crops` returns."""
        from nvidia.dali import fn

        if len(nodes) == 2:
            shape = [self.dataset.height, self.dataset.width]
            images = fn.slice(
                images, start=nodes[1], shape=shape, axis_names="HW", out_of_bounds_policy="pad"
            )
        return fn.flip(images, horizontal=nodes[0]) if nodes else images


def _outputs(pipeline: Any, reader: str | None = None) -> Iterator[Tensor]:
    """What a pipeline puts out until its inputs end, as tensors that share DALI's memory."""
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    policy = LastBatchPolicy.PARTIAL if reader else LastBatchPolicy.FILL
    batches = DALIGenericIterator(
        pipeline, ["images"], reader_name=reader, last_batch_policy=policy, prepare_first_batch=False
    )
    for (batch,) in batches:
        yield batch["images"]


@contextmanager
def _kept_while_used(device: torch.device) -> Iterator[Any]:
    """Give a function that holds tensors back until the work queued on them so far is done.

    DALI takes its memory back when the last reference goes, and knows nothing of the kernels that still read it.
    """
    if device.type != "cuda":
        yield lambda tensor: None
        return
    held: list[tuple[torch.cuda.Event, Tensor]] = []

    def keep(tensor: Tensor) -> None:
        done = torch.cuda.Event()
        done.record()
        held[:] = [entry for entry in held if not entry[0].query()]
        held.append((done, tensor))

    try:
        yield keep
    finally:
        torch.cuda.current_stream(device).synchronize()

"""Serve images through PyTorch's DataLoader: from the host's memory, or from files that worker processes decode."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from robustfast.data import draws
from robustfast.data.batches import Batch, Feed, processors
from robustfast.data.dataset import Dataset
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError

__all__ = ["TorchFeed"]

STOPPING = {signal.SIGINT, signal.SIGTERM}

Key = tuple[int, list[int]]
"""One batch as a `DataLoader` asks for it: the epoch and the numbers of the images."""


class TorchFeed(Feed):
    """A `Feed` whose batches a `torch.utils.data.DataLoader` gathers as bytes, to be scaled on the device."""

    def __init__(self, dataset: Dataset | ImageFiles, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, **options)
        self._source: data.Dataset[Tensor] | data.Dataset[Tensor | UserError]
        if isinstance(dataset, ImageFiles):
            self._source = _Files(dataset, self.crop, augment=self.augment, seed=self.seed)
            self._workers = processors()
        else:
            # A gather takes less than handing its result over from another process would.
            self._source, self._workers = _Arrays(self, dataset), 0
        self._labels = dataset.labels.to(self.device)

    def _batches(self, epoch: int, start: int) -> Generator[Batch]:
        rows = self._rows(epoch, start, "cpu")
        keys: list[Key] = [(epoch, index.tolist()) for index, _ in rows]
        loader = data.DataLoader(
            self._source,
            sampler=keys,
            batch_size=None,  # a key is a batch
            num_workers=min(self._workers, len(keys)),
            worker_init_fn=_outlive_a_signal,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        loaded = _started(loader)
        for index, share in rows:
            pixels = _next(loaded)
            if isinstance(pixels, UserError):
                # The error holds this frame, and with it would keep the workers, for whose end the process waits.
                del loaded
                raise pixels
            index = index.to(self.device, non_blocking=True)
            x = self._finish(pixels.to(self.device, non_blocking=True), index, epoch)
            yield Batch(x, self._labels[index], index, share)


def _started(loader: data.DataLoader[Any]) -> Iterator[Any]:
    """Start the workers, without the handler by which torch hears of their ends.

    It raises in the middle of whatever is done then, be it the writing of a checkpoint. The next batch that is asked
    for finds a worker gone just as well, within 5 seconds.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return _held(loader)
    before = signal.getsignal(signal.SIGCHLD)
    loaded = _held(loader)
    if before is not None:  # else set by no Python code, and so not to be put back by any
        signal.signal(signal.SIGCHLD, before)
    return loaded


def _held(loader: data.DataLoader[Any]) -> Iterator[Any]:
    """Start the workers with the signals that stop a run held back, until `_outlive_a_signal` has made each ready."""
    if not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(loaded: Iterator[Any]) -> Tensor | UserError:
    """The next batch, or why there is none: a file that does not decode, or a worker that is gone."""
    workers: list[Any] = getattr(loaded, "_workers", [])
    try:
        return next(loaded)
    except (RuntimeError, OSError, EOFError):
        # Torch says that a worker is gone, or, where it was handing a batch over, a connection is cut just before.
        ended = wait([worker.sentinel for worker in workers], timeout=1)
        if not ended:
            raise
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(timeout=5)  # its files are closed a moment before the system tells how it ended
    return _gone(workers)


def _gone(workers: list[Any]) -> UserError:
    """What to say where a worker has ended before its time, as far as can be known by what; ends the others."""
    codes = {worker.exitcode for worker in workers} - {None, 0}
    for worker in workers:
        worker.kill()  # it may wait for what the one that is gone held
    how = " and ".join(
        f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}" for code in sorted(codes)
    )
    return UserError(
        f"a worker process of --loader torch was ended{' ' + how if how else ''} while images were decoded; systems do "
        f"that where memory or /dev/shm runs out: make room (docker run --memory, --shm-size) or take --loader dali or "
        f"--loader resident, and continue with --resume"
    )


def _outlive_a_signal(worker: int) -> None:
    """Let a worker go on after Ctrl-C, or the SIGTERM of a scheduler, either of which reaches all of a run's processes.

    The training process finishes its step first, for which it may need a batch, and then ends its workers. A second
    SIGTERM, from whoever no longer waits, ends them as ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


class _Arrays(data.Dataset[Tensor]):
    """Batches of an array, cropped and mirrored: uint8 [B, C, H, W]."""

    def __init__(self, feed: Feed, dataset: Dataset) -> None:
        self.feed = feed
        self.store = feed._store(dataset, "cpu")

    def __getitem__(self, key: Key) -> Tensor:
        epoch, index = key
        return self.feed._take(self.store, torch.tensor(index), epoch, torch.uint8)


class _Files(data.Dataset["Tensor | UserError"]):
    """Batches of image files, decoded, cropped and mirrored: uint8 [B, C, H, W].

    An error is handed over as a value: raised in a worker, it would arrive with the worker's traceback in its message.
    """

    def __init__(self, dataset: ImageFiles, crop: str, *, augment: bool, seed: int) -> None:
        self.dataset = dataset
        self.sizes = dataset.sizes if crop == "resized" else None
        self.size = (dataset.width, dataset.height)
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: Key) -> Tensor | UserError:
        epoch, numbers = key
        index = torch.tensor(numbers)
        try:
            return _shared(self._batch(index, epoch))
        except UserError as error:
            return error

    def _batch(self, index: Tensor, epoch: int) -> Tensor:
        images = torch.from_numpy(np.stack(self._decoded(index, epoch)))
        if not self.augment:
            return images
        top, left, mirror = draws.crops(index, seed=self.seed, epoch=epoch)
        if self.sizes is not None:
            top, left = torch.full_like(top, draws.PAD), torch.full_like(left, draws.PAD)
        return draws.cut(images, top, left, mirror)

    def _decoded(self, index: Tensor, epoch: int) -> list[np.ndarray]:
        dataset = self.dataset
        if self.sizes is None:
            return [dataset.read(number) for number in index.tolist()]
        from robustfast.data.image_file import decode

        windows = draws.windows(self.sizes[index], index, seed=self.seed, epoch=epoch)
        return [
            decode(dataset.files[number], dataset.channels, self.size, tuple(window))
            for number, window in zip(index.tolist(), windows.tolist(), strict=True)
        ]


def _shared(images: Tensor) -> Tensor:
    """Images moved to shared memory, in which a worker hands them over.

    The thread that would move them otherwise only prints that there is no room: the batch is then waited for without
    end.

    Raises:
        UserError: no room in it.
    """
    try:
        return images.share_memory_() if data.get_worker_info() is not None else images
    except RuntimeError as error:
        raise UserError(
            f"--loader torch: a batch of {images.nbytes} bytes finds no room in shared memory ({error}): give it more "
            f"(docker run --shm-size), take a smaller --batch-size, or --loader dali or --loader resident"
        ) from error

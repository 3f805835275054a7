from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_feeds import assert_same, becomes, children, epoch_of, needs_proc, threads, toy

from robustfast.data import feed
from robustfast.data.image_files import ImageFiles
from robustfast.data.torch_loader import TorchFeed, _outlive_a_signal


@pytest.fixture
def files(photograph, tmp_path) -> ImageFiles:
    paths = tuple(photograph(tmp_path / f"{number:02d}.jpg", number, (40, 36)) for number in range(11))
    return ImageFiles("pictures", paths, torch.arange(11) % 2, ("a", "b"), image_size=16)


def states() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("kind", ["array", "files"])
def test_no_global_generator_is_read_or_set(kind, files):
    source = feed(files if kind == "files" else toy(), 4, loader="torch", seed=0, augment=True)
    before = states()
    first = list(source.batches(0))
    assert states() == before
    torch.manual_seed(99)
    assert_same(list(source.batches(0)), first)


@needs_proc
def test_arrays_are_gathered_in_this_process():
    before = children()
    batches = feed(toy(), 4, loader="torch", seed=0, augment=True).batches(0)
    next(batches)
    assert children() <= before


@needs_proc
def test_no_process_outlives_its_epoch(files, monkeypatch):
    monkeypatch.setattr(importlib.import_module("robustfast.data.torch_loader"), "processors", lambda: 2)
    source = feed(files, 4, loader="torch", seed=0, augment=True)
    before, before_threads = children(), threads()
    epoch_of(source, 0)
    assert becomes(lambda: children() <= before)
    batches = source.batches(1)
    next(batches)
    assert len(children() - before) == 2
    source.close()
    assert becomes(lambda: children() <= before)
    assert becomes(lambda: threads() <= before_threads)
    assert list(batches) == []


@needs_proc
def test_signals_that_stop_a_run_leave_the_batches_it_still_needs(files):
    source = feed(files, 1, loader="torch", seed=0, augment=True)
    expected = list(source.batches(0))
    before = children()
    batches = source.batches(0)
    found = [next(batches)]
    workers = children() - before
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    assert_same([*found, *batches], expected)
    assert becomes(lambda: children() <= before)


def test_so_do_signals_that_reach_a_worker_before_it_is_ready(files, monkeypatch):
    def signalled(worker: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        _outlive_a_signal(worker)

    source = feed(files, 4, loader="torch", seed=0, augment=True)
    expected = list(source.batches(0))
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(
        importlib.import_module("robustfast.data.torch_loader"), "_outlive_a_signal", signalled
    )
    assert_same(list(source.batches(0)), expected)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == held


def answer(connection) -> None:
    _outlive_a_signal(0)
    while True:
        connection.send(connection.recv())


def test_a_second_signal_ends_a_worker():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=answer, args=(theirs,), daemon=True)
    worker.start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        ours.send(number)
        assert ours.recv() == number
        os.kill(worker.pid, number)
    ours.send("after")
    assert ours.recv() == "after"
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == -signal.SIGTERM


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_processes_changes_nothing(files, monkeypatch, workers):
    expected = list(feed(files, 2, loader="torch", seed=0, augment=True, crop="resized").batches(0))
    monkeypatch.setattr(
        importlib.import_module("robustfast.data.torch_loader"), "processors", lambda: workers
    )
    found = list(feed(files, 2, loader="torch", seed=0, augment=True, crop="resized").batches(0))
    assert_same(found, expected)


def test_skipped_batches_are_not_computed(monkeypatch, files):
    taken = []
    take = TorchFeed._take
    monkeypatch.setattr(TorchFeed, "_take", lambda self, *args: taken.append(args) or take(self, *args))
    assert len(list(feed(toy(40), 5, loader="torch", seed=2).batches(0, start=6))) == len(taken) == 2
    source = feed(files, 4, loader="torch", seed=0, shuffle=False)
    assert (source.dataset.channels, source.dataset.width) == (3, 16)
    for path in files.files[:8]:
        path.write_bytes(b"no image")
    (batch,) = source.batches(0, start=2)
    assert batch.index.tolist() == [8, 9, 10]


def test_parts_are_the_windows_that_were_drawn(files):
    """Each image is what Pillow makes of its window, mirrored where that was drawn."""
    from PIL import Image

    from robustfast.data import draws

    source = feed(files, 4, loader="torch", seed=7, augment=True, crop="resized")
    x, y, index = epoch_of(source, 3)
    assert torch.equal(y, files.labels[index])
    windows = draws.windows(torch.tensor([[40, 36]]).expand(11, 2), index, seed=7, epoch=3)
    _, _, mirror = draws.crops(index, seed=7, epoch=3)
    for image, number, window, turned in zip(x, index, windows.tolist(), mirror, strict=True):
        with Image.open(files.files[number]) as whole:
            part = whole.crop(window).resize((16, 16), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(part)).permute(2, 0, 1)
        expected = expected.flip(2) if turned else expected
        assert torch.equal(image, (expected.double() / 255).float())


@needs_proc
def test_a_worker_that_is_killed_is_said_in_one_line(files, one_line_error):
    source = feed(files, 1, loader="torch", seed=0)
    before, handler = children(), signal.getsignal(signal.SIGCHLD)
    batches = source.batches(0)
    next(batches)
    # Torch's own would raise in the middle of a step, or of a checkpoint.
    assert signal.getsignal(signal.SIGCHLD) is handler
    for worker in children() - before:
        os.kill(worker, signal.SIGKILL)
    with one_line_error("--loader torch was ended by SIGKILL", "/dev/shm", "--loader dali", "--resume"):
        list(batches)
    assert becomes(lambda: children() <= before)


CHILD = """
import signal, sys
from pathlib import Path

import torch

from robustfast.data import feed
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError

{setting}
files = tuple(map(Path, sys.argv[1:]))
images = ImageFiles("pictures", files, torch.zeros(len(files), dtype=torch.int64), ("a",), image_size=600)
try:
    list(feed(images, 1, loader="torch", seed=0).batches(0))
except UserError as error:
    print(error)
"""


@needs_proc
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        # Larger than what may be written stands for a /dev/shm that is too small.
        (
            "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))",
            "a batch of 1080000 bytes finds no room in shared memory",
        ),
        ("Path(sys.argv[2]).write_bytes(b'no image')", "01.jpg: 8 bytes that do not decode"),
    ],
    ids=["shared memory", "damaged"],
)
def test_an_error_of_a_worker_ends_the_process_too(files, setting, said):
    ended = subprocess.run(
        [sys.executable, "-c", CHILD.format(setting=setting), *map(str, files.files[:4])],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    (line,) = ended.stdout.splitlines()
    assert said in line
    assert ended.stderr == ""

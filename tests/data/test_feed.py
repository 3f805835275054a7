from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from toy_feeds import LOADERS, needs_dali, toy

from robustfast.data import feed
from robustfast.data.dali import DaliFeed
from robustfast.data.image_files import ImageFiles
from robustfast.data.resident import ResidentFeed
from robustfast.data.room import Room, room
from robustfast.data.torch_loader import TorchFeed

# By its name alone `robustfast.data.feed` is the function.
PICKS = importlib.import_module("robustfast.data.feed")
NOT_INSTALLED = "DALI is not installed: pip install nvidia-dali-cuda130"


def picked(dataset, **options) -> tuple[type, str]:
    """The loader that "auto" takes, and what it says."""
    lines: list[str] = []
    source = feed(dataset, 4, seed=0, say=lines.append, **options)
    (line,) = lines
    return type(source), line


@pytest.fixture
def files(photograph, tmp_path) -> ImageFiles:
    paths = tuple(photograph(tmp_path / f"{number}.jpg", number, (40, 36)) for number in range(5))
    return ImageFiles("pictures", paths, torch.zeros(5, dtype=torch.int64), ("a",), image_size=16)


@pytest.fixture
def no_dali(monkeypatch) -> None:
    for module in ("robustfast.data.dali", "robustfast.data.feed"):
        monkeypatch.setattr(importlib.import_module(module), "missing", lambda: NOT_INSTALLED)


@pytest.fixture
def no_room(monkeypatch) -> None:
    monkeypatch.setattr(PICKS, "_room", lambda device: Room(2_000))


def test_auto_takes_resident_where_the_images_fit():
    loader, line = picked(toy(), augment=True)
    assert loader is ResidentFeed
    # 37 images of 3 x (7 + 8) x (9 + 8) bytes.
    assert line.startswith("loader: resident (toy is 28.3 kB as padded bytes, memory for ")
    assert picked(toy())[1].startswith("loader: resident (toy is 6.99 kB as bytes, memory for ")


def test_auto_takes_resident_for_files_that_fit(files):
    loader, line = picked(files, augment=True)
    assert loader is ResidentFeed
    assert line.startswith("loader: resident (pictures is 8.64 kB as padded bytes, memory for ")


@needs_dali
def test_auto_takes_dali_for_what_does_not_fit(no_room):
    assert picked(toy(), augment=True) == (
        DaliFeed,
        "loader: dali (toy is 28.3 kB as padded bytes, more than the 2 kB that there is memory for)",
    )


@needs_dali
def test_auto_takes_dali_for_parts_of_files(files):
    assert picked(files, augment=True, crop="resized") == (
        DaliFeed,
        "loader: dali (--crop resized takes another part of each file in each epoch)",
    )


def test_auto_takes_torch_where_there_is_no_dali(no_room, no_dali):
    assert picked(toy()) == (
        TorchFeed,
        f"loader: torch (toy is 6.99 kB as bytes, more than the 2 kB that there is memory for; {NOT_INSTALLED})",
    )


def test_auto_takes_torch_where_dali_does_not_import(no_room, monkeypatch):
    monkeypatch.setattr(PICKS, "missing", lambda: None)
    monkeypatch.setitem(sys.modules, "nvidia.dali.plugin.pytorch", None)
    loader, line = picked(toy())
    assert loader is TorchFeed
    assert "; DALI is installed but does not import (" in line


def test_auto_says_where_the_memory_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(PICKS, "room", lambda: room(tmp_path))
    monkeypatch.delattr("os.sysconf")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert picked(toy())[1] == (
        "loader: resident (toy is 6.99 kB as bytes, memory for 1 GB, since this system does not say how much it has)"
    )


def test_a_loader_that_is_named_is_taken_without_a_word(capsys):
    assert type(feed(toy(), 4, loader="torch", seed=0)) is TorchFeed
    assert type(feed(toy(), 4, seed=0, say=None)) is ResidentFeed
    assert capsys.readouterr().out == ""
    feed(toy(), 4, seed=0)
    assert capsys.readouterr().out.startswith("loader: resident (")


@pytest.mark.parametrize("loader", [*LOADERS, "auto"])
def test_bad_arguments(loader, one_line_error):
    options = {
        "loader": loader,
        "seed": 0,
        "say": lambda line: pytest.fail(f"chose before it refused: {line}"),
    }
    with one_line_error("batch size is 0"):
        feed(toy(), 0, **options)
    with one_line_error("batch size of 38", "37 images"):
        feed(toy(), 38, drop_last=True, **options)
    with one_line_error("toy", "augmentation", "--no-augment"):
        feed(toy(augmentable=False), 8, augment=True, **options)
    with one_line_error("toy", "augmentation", "--no-rand-augment"):
        feed(toy(augmentable=False), 8, rand_augment=True, **options)
    with one_line_error("--crop resized", "toy is an array", "--crop pad"):
        feed(toy(), 8, augment=True, crop="resized", **options)
    with one_line_error("unknown crop 'random'", "pad, resized"):
        feed(toy(), 8, crop="random", **options)
    with one_line_error("--batch-size 36", "the last batch of the 37 images of toy has 1", "2 processes"):
        feed(toy(), 36, world=2, **options)
    with one_line_error("--batch-size 2", "a batch of the 37 images of toy has 2", "3 processes"):
        feed(toy(), 2, world=3, drop_last=True, **options)
    with pytest.raises(ValueError, match=r"rank is 2, expected 0\.\.1"):
        feed(toy(), 8, rank=2, world=2, **options)


@pytest.mark.parametrize("loader", LOADERS)
def test_bad_epochs_and_starts(loader):
    source = feed(toy(), 10, loader=loader, seed=0)
    for start in (-1, 5):
        with pytest.raises(ValueError, match=rf"start is {start}, expected 0\.\.4"):
            source.batches(0, start=start)
    assert list(source.batches(0, start=4)) == []
    with pytest.raises(ValueError, match="epoch is -1"):
        source.batches(-1)


def test_what_only_some_loaders_do(files, one_line_error, no_dali):
    with one_line_error("unknown loader 'dalli'", "auto, dali, resident, torch"):
        feed(toy(), 4, loader="dalli", seed=0)
    with one_line_error("--loader resident", "--crop resized", "--loader dali or --loader torch"):
        feed(files, 4, loader="resident", seed=0, augment=True, crop="resized")
    with one_line_error("--crop resized", "--augment"):
        feed(files, 4, seed=0, crop="resized")
    with one_line_error("--loader dali", NOT_INSTALLED, "--loader torch"):
        feed(toy(), 4, loader="dali", seed=0)


@pytest.mark.parametrize(("drop_last", "batches", "images"), [(False, 4, 37), (True, 3, 30)])
def test_lengths_are_those_of_all_processes(drop_last, batches, images):
    for rank in range(2):
        source = feed(toy(), 10, seed=0, say=None, drop_last=drop_last, rank=rank, world=2)
        assert (len(source), source.images) == (batches, images)


def test_dali_is_imported_for_its_own_loader_alone():
    code = """
import sys, torch
from robustfast.data import Dataset, feed
dataset = Dataset("toy", torch.zeros(4, 1, 3, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",))
for loader in ("auto", "resident", "torch"):
    list(feed(dataset, 2, loader=loader, seed=0).batches(0))
assert not [name for name in sys.modules if name.startswith("nvidia.dali")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)

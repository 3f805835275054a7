"""A few images in the published format: the loaders read them as they read the whole set."""

import pytest
import torch

from robustfast.data import Dataset, load
from robustfast.errors import UserError
from robustfast.evaluation.reduced_data import FORMATS, reduced_data

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
CLASSES = {
    "mnist": tuple("0123456789"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def made(name, images, seed):
    draws = torch.Generator().manual_seed(seed)
    return Dataset(
        name=name,
        images=torch.randint(0, 256, (images, *SHAPES[name]), dtype=torch.uint8, generator=draws),
        labels=torch.randint(0, 10, (images,), generator=draws),
        classes=CLASSES[name],
    )


@pytest.fixture(params=sorted(FORMATS))
def whole(request, tmp_path):
    """(name, folder, splits) of a data set of random images in its published format."""
    name = request.param
    splits = {"train": made(name, 60, 0), "test": made(name, 30, 1)}
    folder = tmp_path / "whole" / name
    folder.mkdir(parents=True)
    FORMATS[name](folder, splits)
    return name, folder.parent, splits


def test_written_sets_load_as_they_were(whole):
    name, folder, splits = whole
    for split, dataset in splits.items():
        loaded = load(name, split, folder)
        assert torch.equal(loaded.images, dataset.images)
        assert torch.equal(loaded.labels, dataset.labels)
        assert loaded.classes == dataset.classes


def test_images_are_spread_over_the_split(whole, tmp_path):
    name, source, splits = whole
    folder = reduced_data(name, source, tmp_path / "few", train=20, test=10)
    for split, count in (("train", 20), ("test", 10)):
        loaded = load(name, split, folder)
        assert torch.equal(loaded.images, splits[split].images[::3])
        assert torch.equal(loaded.labels, splits[split].labels[::3])
        assert len(loaded) == count


def test_made_once(whole, tmp_path):
    name, source, _ = whole
    folder = reduced_data(name, source, tmp_path / "few", train=20, test=10)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    # The whole set is not needed again.
    assert reduced_data(name, tmp_path / "gone", folder, train=20, test=10) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_what_a_killed_process_left_is_made_again(whole, tmp_path):
    name, source, _ = whole
    (tmp_path / "few.partial" / name).mkdir(parents=True)
    (tmp_path / "few.partial" / name / "half").write_text("half")
    folder = reduced_data(name, source, tmp_path / "few", train=20, test=10)
    assert not list(folder.rglob("half"))
    assert not (tmp_path / "few.partial").exists()


def test_missing_data_is_one_line(tmp_path):
    with pytest.raises(UserError, match="mnist") as mistake:
        reduced_data("mnist", tmp_path / "none", tmp_path / "few", train=1, test=1)
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "few").exists()


def test_unknown_format(tmp_path):
    with pytest.raises(UserError, match="unknown reducible data set 'svhn'"):
        reduced_data("svhn", tmp_path, tmp_path / "few", train=1, test=1)

"""A few images in the published format: the loaders read them as they read the whole set."""

import pytest
import torch
from PIL import Image

from robustfast.data import Dataset, load
from robustfast.data.imagenette import CLASSES as CLASS_NAMES
from robustfast.errors import UserError
from robustfast.evaluation.reduced_data import FORMATS, reduced_data

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "svhn": (3, 32, 32)}
CLASSES = {
    "mnist": tuple("0123456789"),
    "svhn": tuple("0123456789"),
    "cifar100": tuple(f"class {number}" for number in range(100)),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def made(name, images, seed):
    draws = torch.Generator().manual_seed(seed)
    return Dataset(
        name=name,
        images=torch.randint(0, 256, (images, *SHAPES[name]), dtype=torch.uint8, generator=draws),
        labels=torch.randint(0, len(CLASSES[name]), (images,), generator=draws),
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
    with pytest.raises(UserError, match="unknown reducible data set 'digits'"):
        reduced_data("digits", tmp_path, tmp_path / "few", train=1, test=1)


def drawn(path, shade):
    """An image file of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path, "JPEG")


def test_a_folder_for_each_class_keeps_two_of_each(tmp_path):
    wnids = sorted(CLASS_NAMES)
    for split in ("train", "val"):
        for label, wnid in enumerate(wnids):
            for number in range(6):
                drawn(tmp_path / "imagenette2" / split / wnid / f"{wnid}_{number}.JPEG", 20 * label)
    folder = reduced_data("imagenette", tmp_path, tmp_path / "few", train=30, test=4)
    for split, count in (("train", 30), ("test", 20)):
        images = load("imagenette", split, folder, image_size=8)
        assert torch.bincount(images.labels, minlength=10).tolist() == [count // 10] * 10
        assert [file.parent.name for file in images.files] == [
            wnids[label] for label in images.labels.tolist()
        ]


def test_tiny_imagenet_is_read_back_with_its_lists(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    wnids = ("n01", "n02", "n03")
    lines = []
    for label, wnid in enumerate(wnids):
        for number in range(5):
            drawn(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 40 * label)
            drawn(root / "val" / "images" / f"val_{5 * label + number}.JPEG", 40 * label)
            lines.append(f"val_{5 * label + number}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(wnids)))
    (root / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}\n" for wnid in wnids))
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    folder = reduced_data("tiny_imagenet", tmp_path, tmp_path / "few", train=9, test=1)
    for split, count in (("train", 9), ("test", 6)):
        images = load("tiny_imagenet", split, folder, image_size=8)
        assert len(images) == count
        assert images.classes == tuple(f"name of {wnid}" for wnid in wnids)
        shades = images.decode().images[:, 0, 0, 0].int()
        assert (shades - 40 * images.labels).abs().max() <= 3

"""The class list, and small trees of the published form."""

from __future__ import annotations

import pytest

from robustfast.data import load
from robustfast.data.restricted_imagenet import CLASSES

RANGES = [(151, 268), (281, 285), (30, 37), (80, 100), (365, 382), (389, 397), (118, 121), (300, 319)]


def test_the_203_classes_of_the_paper():
    assert sorted(CLASSES) == sorted(number for low, high in RANGES for number in range(low, high + 1))
    assert list(CLASSES) == sorted(CLASSES)
    assert len(CLASSES) == len(dict(CLASSES.values())) == len({name for _, name in CLASSES.values()}) == 203


def test_wordnet_ids_rise_with_the_numbers():
    """ImageNet numbers its classes in the order of their ids, so an id in the wrong row shows."""
    wnids = [wnid for wnid, _ in CLASSES.values()]
    assert wnids == sorted(wnids)
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in wnids)


@pytest.mark.parametrize(
    ("number", "wnid", "name"),
    [
        (30, "n01641577", "bullfrog"),
        (100, "n01860187", "black swan"),
        (121, "n01981276", "king crab"),
        (151, "n02085620", "Chihuahua"),
        (207, "n02099601", "golden retriever"),
        (268, "n02113978", "Mexican hairless"),
        (281, "n02123045", "tabby"),
        (300, "n02165105", "tiger beetle"),
        (365, "n02480495", "orangutan"),
        (397, "n02655020", "puffer"),
    ],
)
def test_known_classes(number, wnid, name):
    assert CLASSES[number] == (wnid, name)


@pytest.fixture(scope="module")
def imagenet(photograph, tmp_path_factory):
    """All 203 classes and two others, one image of each in both splits."""
    folder = tmp_path_factory.mktemp("imagenet")
    for number, wnid in enumerate([*dict(CLASSES.values()), "n01440764", "n15075141"]):
        photograph(folder / "imagenet" / "train" / wnid / f"{wnid}_1.JPEG", number, (40 + number % 7, 48))
        photograph(folder / "imagenet" / "val" / wnid / "ILSVRC2012_val_00000001.JPEG", number, (40, 48))
    return folder


def test_only_the_203_classes_are_read(imagenet):
    for split in ("train", "test"):
        images = load("restricted_imagenet", split, imagenet)
        assert images.labels.tolist() == list(range(203))
        assert [
            (file.parent.name, name) for file, name in zip(images.files, images.classes, strict=True)
        ] == list(CLASSES.values())
        assert (images.channels, images.height, images.width) == (3, 224, 224)
    assert load("restricted_imagenet", "train", imagenet, image_size=16).decode().images.shape == (
        203,
        3,
        16,
        16,
    )


def test_missing_classes_are_counted_and_named(tmp_path, photograph, one_line_error):
    photograph(tmp_path / "train" / "n01641577" / "n01641577_0.JPEG", 0)
    with one_line_error(tmp_path / "train", "lacks 202 of the 203", "n01644373 (tree frog)", "image-net.org"):
        load("restricted_imagenet", "train", tmp_path)


def test_validation_images_that_nobody_sorted(tmp_path, photograph, one_line_error):
    photograph(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", 0)
    with one_line_error("ILSVRC2012_val_00000001.JPEG", "sort the validation images", "development kit"):
        load("restricted_imagenet", "test", tmp_path)

"""On small trees of the published form."""

from __future__ import annotations

import pytest

from robustfast.data import load
from robustfast.data.imagenette import CLASSES


def test_the_ten_classes():
    assert list(CLASSES) == sorted(CLASSES)
    assert len(CLASSES) == 10
    assert list(CLASSES.values())[0::9] == ["tench", "parachute"]


@pytest.fixture
def root(photograph, tmp_path):
    """imagenette2-160: one training and one validation image of each class, of different shapes."""
    root, rows = tmp_path / "imagenette2-160", ["path,noisy_labels_0,is_valid"]
    for number, wnid in enumerate(CLASSES):
        photograph(root / "train" / wnid / f"{wnid}_{number}.JPEG", number, (160, 160 + number))
        photograph(root / "val" / wnid / f"ILSVRC2012_val_{number}.JPEG", 10 + number, (160 + number, 160))
        rows += [f"train/{wnid}/{wnid}_{number}.JPEG,{wnid},False"]
        rows += [f"val/{wnid}/ILSVRC2012_val_{number}.JPEG,{wnid},True"]
    (root / "noisy_imagenette.csv").write_text("\n".join(rows) + "\n")
    return root


def test_classes_labels_and_sizes(root):
    for split in ("train", "test"):
        images = load("imagenette", split, root.parent)
        assert images.classes == tuple(CLASSES.values())
        assert images.labels.tolist() == list(range(10))
        assert [file.parent.name for file in images.files] == list(CLASSES)
        assert (images.channels, images.height, images.width) == (3, 224, 224)
    assert load("imagenette", "train", root).sizes.tolist() == [[160, 160 + number] for number in range(10)]
    assert load("imagenette", "test", root, image_size=24).decode().images.shape == (10, 3, 24, 24)


def test_a_folder_of_another_class_is_left_alone(root, photograph):
    photograph(root / "train" / "n02086240" / "dog.JPEG", 0)
    assert len(load("imagenette", "train", root)) == 10


def test_missing_classes_and_images(root, one_line_error):
    kept = root / "train" / "n03028079"
    kept.rename(root / "church")
    with one_line_error(
        root / "train", "lacks 1 of the 10", "n03028079 (church)", "github.com/fastai/imagenette"
    ):
        load("imagenette", "train", root)
    (root / "church").rename(kept)
    (root / "val" / "n03028079" / "ILSVRC2012_val_4.JPEG").rename(root / "val" / "n03028079" / "else.JPEG")
    with one_line_error("lacks 1 of the 10 images", "noisy_imagenette.csv", "ILSVRC2012_val_4.JPEG"):
        load("imagenette", "test", root)
    assert len(load("imagenette", "train", root)) == 10


def test_two_of_the_published_folders_side_by_side(root, one_line_error):
    (root.parent / "imagenette2" / "train").mkdir(parents=True)
    with one_line_error(root, root.parent / "imagenette2", "2 times", "--data-dir"):
        load("imagenette", "train", root.parent)
    assert len(load("imagenette", "train", root)) == 10

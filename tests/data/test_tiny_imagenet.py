"""On a small tree of the published form: three classes, two training and two validation images of each."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from robustfast.data import load

WNIDS = ["n02124075", "n01443537", "n07749582"]  # as in wnids.txt: in no order
NAMES = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat", "n07749582": "lemon"}


@pytest.fixture(scope="module")
def published(photograph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    root = folder / "tiny-imagenet-200"
    annotations, number = [], 0
    for wnid in WNIDS:
        for image in range(2):
            photograph(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", number, (64, 64))
            # Across the classes, as the published numbers go.
            file = f"val_{2 * image + number % 2}{wnid[-1]}.JPEG"
            photograph(root / "val" / "images" / file, 50 + number, (64, 64))
            annotations.append(f"{file}\t{wnid}\t0\t32\t44\t62\n")
            number += 1
        boxes = "".join(f"{wnid}_{image}.JPEG\t0\t0\t62\t63\n" for image in range(2))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    names = {"n00001740": "entity"} | NAMES
    (root / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in names.items()))
    (root / "test" / "images").mkdir(parents=True)
    return folder


@pytest.fixture
def root(published, tmp_path):
    """A copy to damage."""
    return shutil.copytree(published / "tiny-imagenet-200", tmp_path / "tiny-imagenet-200")


def test_classes_follow_the_sorted_ids(published):
    for split in ("train", "test"):
        images = load("tiny_imagenet", split, published)
        assert images.classes == tuple(NAMES[wnid] for wnid in sorted(WNIDS))
        assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert (len(images), images.channels, images.height, images.width) == (6, 3, 64, 64)


def test_each_image_has_the_label_of_its_class(published):
    train, test = load("tiny_imagenet", "train", published), load("tiny_imagenet", "test", published)
    for file, label in zip(train.files, train.labels, strict=True):
        assert file.parent.parent.name == sorted(WNIDS)[label]
    text = (published / "tiny-imagenet-200" / "val" / "val_annotations.txt").read_text()
    wnid_of = dict(line.split("\t")[:2] for line in text.splitlines())
    for file, label in zip(test.files, test.labels, strict=True):
        assert wnid_of[file.name] == sorted(WNIDS)[label]


def test_pixels_are_the_files_own(published):
    train = load("tiny_imagenet", "train", published)
    for pixels, file in zip(train.decode().images, train.files, strict=True):
        assert torch.equal(pixels, torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1))


def test_another_size(published):
    assert load("tiny_imagenet", "test", published, image_size=32).decode().images.shape == (6, 3, 32, 32)


def test_the_folder_itself_may_be_given(published):
    assert len(load("tiny_imagenet", "train", published / "tiny-imagenet-200")) == 6


def test_what_is_missing_is_named(root, one_line_error):
    def lacks(path, *parts, split="train"):
        kept = path.with_name("kept")
        path.rename(kept)
        with one_line_error(*parts):
            load("tiny_imagenet", split, root)
        kept.rename(path)

    train, val = root / "train", root / "val"
    lacks(root / "wnids.txt", root / "wnids.txt", "is missing", "cs231n.stanford.edu")
    lacks(root / "words.txt", root / "words.txt", "is missing")
    lacks(train / "n02124075", train, "lacks 1 of the 3 class folders", "n02124075 (Egyptian cat)")
    lacks(train / "n02124075" / "images", train / "n02124075" / "images", "is missing")
    lacks(val / "val_annotations.txt", val / "val_annotations.txt", "is missing", split="test")
    lacks(val / "images", val / "images", "is missing", split="test")
    lacks(val, "tiny_imagenet not found", "val/val_annotations.txt", "cs231n.stanford.edu", split="test")


def test_images_that_the_lists_name_and_the_folder_lacks(root, one_line_error):
    (root / "train" / "n02124075" / "images" / "n02124075_1.JPEG").unlink()
    with one_line_error("lacks 1 of the 2 images", "n02124075_boxes.txt", "n02124075_1.JPEG"):
        load("tiny_imagenet", "train", root)
    gone = sorted((root / "val" / "images").iterdir())[0]
    gone.unlink()
    with one_line_error("lacks 1 of the 6 images", "val_annotations.txt", gone.name):
        load("tiny_imagenet", "test", root)


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("val/val_annotations.txt", "val_0.JPEG n02124075\n", ["line 1 has 1 fields", "expected 6"]),
        ("wnids.txt", "n02124075\nn02124075\n", ["n02124075 stands there twice"]),
        ("wnids.txt", "", ["no WordNet ids"]),
        ("words.txt", "n02124075\tEgyptian cat\n", ["no name for n01443537"]),
    ],
)
def test_damaged_lists(root, one_line_error, file, text, parts):
    (root / file).write_text(text)
    with one_line_error(root / file, *parts):
        load("tiny_imagenet", "test", root)


def test_an_annotation_of_a_class_that_is_none(root, one_line_error):
    (root / "wnids.txt").write_text("n02124075\nn01443537\n")
    with one_line_error("val_annotations.txt gives n07749582, which wnids.txt lacks, for val_"):
        load("tiny_imagenet", "test", root)


def test_an_image_that_no_list_names(root, photograph, one_line_error):
    photograph(root / "val" / "images" / "val_99.JPEG", 9, (64, 64))
    with one_line_error("val_annotations.txt gives no class for val_99.JPEG"):
        load("tiny_imagenet", "test", root)

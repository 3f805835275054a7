from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_feeds import toy

from robustfast.data import load
from robustfast.data.fitting import fitting

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def root(tmp_path) -> Path:
    """Coloured images of 6x4 pixels in train, grey ones in test."""
    for file, mode in (("train/a/0.png", "RGB"), ("train/a/1.png", "L"), ("test/a/0.png", "L")):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (6, 4), 77 if mode == "L" else (1, 2, 3)).save(path)
    return tmp_path


def test_grey_files_are_read_as_those_among_coloured_ones(root):
    train, test = load("image_folder", "train", root), load("image_folder", "test", root)
    assert (train.channels, test.channels) == (3, 1)
    images = fitting(test, 3, (4, 6))
    assert (images.channels, images.height, images.width) == (3, 4, 6)
    assert torch.equal(images.decode().images[0], train.decode().images[1])
    assert test.channels == 1


def test_images_that_fit_are_left_as_they_are(root):
    for images in (load("image_folder", "test", root), toy(channels=1, height=4, width=6)):
        assert fitting(images, 1, (4, 6)) is images
        assert fitting(images, 1, None) is images


def test_what_does_not_fit_is_refused(root, one_line_error):
    with one_line_error("image_folder have 3 channels", "those trained on have 1", "convert"):
        fitting(load("image_folder", "train", root), 1, None)
    with one_line_error("toy have 1 channels", "those trained on have 3"):
        fitting(toy(channels=1), 3, None)
    with one_line_error("image_folder have 6x4 pixels", "those trained on have 6x5", "--image-size"):
        fitting(load("image_folder", "test", root), 1, (5, 6))

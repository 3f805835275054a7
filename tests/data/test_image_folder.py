from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustfast.data import load


def save(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (6, 4), **options) -> np.ndarray:
    """Write a random image of `size` = (width, height); return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], *([len(mode)] if len(mode) > 1 else []))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode=None).convert(mode).save(path, **options)
    return pixels


@pytest.fixture
def root(tmp_path):
    """Two classes, train and test, PNG files of 6x4 pixels."""
    for number, file in enumerate(
        ["train/cat/b.png", "train/cat/a.png", "train/ant/c.PNG", "test/cat/d.png"]
    ):
        save(tmp_path / file, number)
    return tmp_path


def test_order_labels_and_pixels(root):
    (root / "train" / ".DS_Store").touch()
    (root / "train" / "cat" / ".hidden").touch()
    train, test = load("image_folder", "train", root), load("image_folder", "test", root)
    assert train.classes == test.classes == ("ant", "cat")
    assert train.labels.tolist() == [0, 1, 1]
    assert test.labels.tolist() == [1]
    images = train.decode().images
    assert images.shape == (3, 3, 4, 6)
    for image, seed in zip(images, (2, 1, 0), strict=True):
        expected = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


def test_the_root_may_lie_in_a_folder_of_the_sets_name(root, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    root.rename(outer / "image_folder")
    assert len(load("image_folder", "train", outer)) == 3


def test_val_stands_in_for_test_but_not_beside_it(root):
    (root / "test").rename(root / "val")
    assert len(load("image_folder", "test", root)) == 1
    for number in range(2):
        save(root / "test" / "ant" / f"{number}.png", number)
    assert len(load("image_folder", "test", root)) == 2


def test_jpeg_files_decode_as_pillow_does(tmp_path):
    for name in ("a.jpg", "b.jpeg"):
        save(tmp_path / "train" / "cat" / name, 0, size=(16, 16))
    decoded = np.asarray(Image.open(tmp_path / "train" / "cat" / "b.jpeg"))
    images = load("image_folder", "train", tmp_path).decode().images
    assert torch.equal(images[1], torch.from_numpy(decoded.copy()).permute(2, 0, 1))


def test_grey_images_keep_one_channel_and_take_three_among_coloured_ones(tmp_path):
    grey = torch.from_numpy(save(tmp_path / "train" / "a" / "0.png", 0, mode="L"))
    images = load("image_folder", "train", tmp_path).decode().images
    assert images.shape == (1, 1, 4, 6)
    assert torch.equal(images[0, 0], grey)
    save(tmp_path / "train" / "b" / "1.png", 1)
    images = load("image_folder", "train", tmp_path).decode().images
    assert torch.equal(images[0], grey.expand(3, 4, 6))


def test_images_of_two_sizes(root, one_line_error):
    odd = root / "train" / "cat" / "z.png"
    save(odd, 9, size=(8, 8))
    with one_line_error("c.PNG has 6x4", f"{odd} has 8x8", "1 of 4", "--image-size"):
        load("image_folder", "train", root)


def test_image_size_cuts_the_centre_and_resamples(tmp_path):
    # 24x8 pixels, grey from 6 to 18, black and white beside: the square about the centre, 8 to 16, is grey, and so is
    # what the resampling reads one pixel beyond it.
    pixels = np.full((8, 24, 3), 128, np.uint8)
    pixels[:, :6], pixels[:, 18:] = 0, 255
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "train" / "a" / "tall.png")
    images = load("image_folder", "train", tmp_path, image_size=4).decode().images
    assert images.shape == (2, 3, 4, 4)
    assert (images == 128).all()


def test_a_size_below_one_pixel(root, one_line_error):
    with one_line_error("--image-size 0"):
        load("image_folder", "train", root, image_size=0)


@pytest.mark.parametrize("kept", [10, 0.5])
def test_a_truncated_image(root, one_line_error, kept):
    path = root / "train" / "cat" / "a.png"
    save(path, 1, size=(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with one_line_error(path, f"{path.stat().st_size} bytes", "do not decode"):
        load("image_folder", "train", root, image_size=4).decode()


@pytest.mark.parametrize(("mode", "shown"), [("RGBA", "RGBA"), ("LA", "LA"), ("I;16", "I;16")])
def test_depth_or_transparency_that_would_be_lost(tmp_path, one_line_error, mode, shown):
    path = tmp_path / "train" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    Image.new(mode, (6, 4)).save(path)
    with one_line_error(path, f"of mode {shown}", "convert"):
        load("image_folder", "train", tmp_path)


def test_a_transparent_palette(tmp_path, one_line_error):
    path = tmp_path / "train" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    Image.new("P", (6, 4)).save(path, transparency=0)
    with one_line_error(path, "transparent"):
        load("image_folder", "train", tmp_path)


def test_files_and_folders_out_of_place(root, one_line_error):
    cases = [
        ("train/notes.txt", "expected only class folders"),
        ("train/cat/notes.txt", "is no image"),
        ("train/cat/nested.png/a.png", "is no image"),
    ]
    for file, message in cases:
        path = root / file
        path.parent.mkdir(exist_ok=True)
        path.touch()
        with one_line_error(root / "train", message):
            load("image_folder", "train", root)
        path.unlink()
        if path.parent.name == "nested.png":
            path.parent.rmdir()


def test_empty_and_missing_folders(root, one_line_error):
    (root / "train" / "dog").mkdir()
    with one_line_error(root / "train" / "dog", "has no images"):
        load("image_folder", "train", root)
    with one_line_error(root / "test" / "cow", "train lacks", "ant, cat"):
        save(root / "test" / "cow" / "0.png", 0)
        load("image_folder", "test", root)
    (root / "test").rename(root / "elsewhere")
    with one_line_error(root, "no folder test or val"):
        load("image_folder", "test", root)
    (root / "val").mkdir()
    with one_line_error(root / "val", "is empty"):
        load("image_folder", "test", root)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustfast.data import image_file
from robustfast.data.image_files import ImageFiles
from robustfast.training.held_out import spread

SIZES = [(6, 4), (9, 12), (7, 7), (30, 5), (16, 16)]


@pytest.fixture(scope="module")
def photographs(photograph, tmp_path_factory) -> list[Path]:
    """Five CIFAR-10 images as JPEG files of the sizes above."""
    folder = tmp_path_factory.mktemp("photographs")
    return [photograph(folder / f"{number}.jpg", number, size) for number, size in enumerate(SIZES)]


def image_files(files: list[Path], **fields) -> ImageFiles:
    labels = torch.arange(len(files)) % 2
    whole = {"name": "toy", "files": tuple(files), "labels": labels, "classes": ("a", "b")}
    return ImageFiles(**(whole | fields))


def test_sizes_come_from_the_headers(photographs):
    toy = image_files(photographs)
    assert toy.sizes.tolist() == [list(size) for size in SIZES]
    assert (len(toy), toy.num_classes, toy.channels, toy.scale, toy.augmentable) == (5, 2, 3, 255, True)


def test_decode_gives_every_file_as_pillow_does(photographs):
    toy = image_files(photographs, image_size=5)
    dataset = toy.decode()
    assert (
        (toy.height, toy.width, toy.decoded_bytes) == (5, 5, 5 * 3 * 25) == (*dataset.images.shape[2:], 375)
    )
    assert torch.equal(dataset.labels, toy.labels)
    assert (dataset.name, dataset.classes) == (toy.name, toy.classes)
    for position, file in enumerate(photographs):
        expected = image_file.decode(file, 3, (5, 5))
        assert np.array_equal(dataset.images[position].numpy(), expected)
        assert np.array_equal(toy.read(position), expected)


def test_headers_wait_for_the_first_question_that_needs_them(photographs, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    toy = image_files([*photographs, tmp_path / "broken.jpg"], image_size=8, given_channels=3)
    assert (toy.channels, toy.height, toy.width) == (3, 8, 8)
    assert toy.take(torch.tensor([2])).decode().images.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"broken\.jpg: 8 bytes that do not decode"):
        _ = toy.sizes


def test_a_part_keeps_the_channels_and_the_size_of_the_whole(photographs, tmp_path):
    Image.new("L", (6, 4), 77).save(tmp_path / "grey.png")
    toy = image_files([tmp_path / "grey.png", photographs[0]])
    part = toy.take(torch.tensor([0]))
    assert (toy.channels, part.channels, part.height, part.width) == (3, 3, 4, 6)
    assert (part.decode().images == 77).all()
    mixed = image_files(photographs)
    with pytest.raises(ValueError, match="differ in size"):
        mixed.take(torch.tensor([0]))


def test_take_follows_the_indices(photographs):
    toy = image_files(photographs, image_size=4)
    chosen = torch.tensor([3, 0, 3])
    for part in (toy.take(chosen), (toy.sizes, toy.take(chosen))[1]):  # before and after the headers are read
        assert part.files == (photographs[3], photographs[0], photographs[3])
        assert torch.equal(part.labels, toy.labels[chosen])
        assert torch.equal(part.sizes, toy.sizes[chosen])
        assert torch.equal(part.decode().images, toy.decode().images[chosen])
    assert torch.equal(toy.decode().take(chosen).images, toy.take(chosen).decode().images)


def test_files_are_spread_as_arrays_are(photographs):
    toy = image_files(photographs, image_size=4)
    assert torch.equal(spread(toy, 2).decode().images, spread(toy.decode(), 2).images)
    assert spread(toy, 2).files == (photographs[0], photographs[2])


def test_a_window_is_cut_and_resampled(tmp_path):
    # Four quarters of one grey level each: a window inside one of them holds that level alone.
    pixels = np.kron(np.array([[10, 60], [120, 240]], np.uint8), np.ones((8, 8), np.uint8))
    Image.fromarray(pixels).save(tmp_path / "quarters.png")
    for window, level in (
        ((0, 0, 8, 4), 10),
        ((9, 0, 16, 8), 60),
        ((0, 8, 3, 16), 120),
        ((8, 8, 16, 16), 240),
    ):
        found = image_file.decode(tmp_path / "quarters.png", 1, (5, 3), window)
        assert found.shape == (1, 3, 5)
        assert (found == level).all()
    whole = image_file.decode(tmp_path / "quarters.png", 1, (16, 16), (0, 0, 16, 16))
    assert np.array_equal(whole[0], pixels)


def test_a_header_longer_than_the_first_read(photographs, tmp_path):
    """A colour profile, which JPEG keeps before the size, may take more bytes than are read at first."""
    profile = bytes(3 * image_file.HEAD)
    Image.open(photographs[1]).save(tmp_path / "long.jpg", icc_profile=profile)
    assert image_file.read_header(tmp_path / "long.jpg") == (SIZES[1], "RGB")


def test_decoding_refuses_what_the_headers_would(tmp_path, one_line_error):
    Image.new("RGBA", (6, 4)).save(tmp_path / "0.png")
    with one_line_error(tmp_path / "0.png", "of mode RGBA", "convert"):
        image_files([tmp_path / "0.png"], image_size=4, given_channels=3).decode()


def test_a_file_that_has_gone(photographs, tmp_path, one_line_error):
    with one_line_error(tmp_path / "gone.jpg", "no file that decodes"):
        image_files([*photographs, tmp_path / "gone.jpg"], image_size=4).decode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": (), "labels": torch.zeros(0, dtype=torch.int64)}, "at least one"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"\[4\], expected torch.int64 \[5\]"),
        ({"labels": torch.zeros(5)}, "torch.float32"),
        ({"labels": torch.tensor([0, 1, 2, 0, 0])}, r"0\.\.2, expected 0\.\.1"),
        ({"given_channels": 4}, "4 channels"),
        ({"image_size": 0}, "--image-size 0"),
    ],
)
def test_wrong_fields_are_refused(photographs, fields, message):
    whole = {"name": "toy", "files": tuple(photographs), "labels": torch.arange(5) % 2, "classes": ("a", "b")}
    with pytest.raises(ValueError, match=message):
        ImageFiles(**(whole | fields))

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robustfast.data import DATASETS, Dataset, load
from robustfast.data.dataset import check_bytes, check_labels, read_bytes


def dataset(**fields) -> Dataset:
    images = torch.zeros(4, 3, 5, 6, dtype=torch.uint8)
    return Dataset(
        **({"name": "toy", "images": images, "labels": torch.arange(4) % 2, "classes": ("a", "b")} | fields)
    )


def test_sizes():
    toy = dataset()
    assert (len(toy), toy.num_classes, toy.channels, toy.height, toy.width) == (4, 2, 3, 5, 6)


def test_a_part_and_what_is_decoded_already():
    toy = dataset(images=torch.arange(360, dtype=torch.uint8).view(4, 3, 5, 6))
    part = toy.take(torch.tensor([3, 0]))
    assert torch.equal(part.images, toy.images[[3, 0]])
    assert part.labels.tolist() == [1, 0]
    assert toy.decode() is toy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": torch.zeros(4, 3, 5, 6)}, "torch.float32"),
        ({"images": torch.zeros(4, 3, 5, dtype=torch.uint8)}, r"\[4, 3, 5\]"),
        ({"images": torch.zeros(4, 5, 6, 3, dtype=torch.uint8).permute(0, 3, 1, 2)}, "contiguous"),
        ({"images": torch.zeros(0, 3, 5, 6, dtype=torch.uint8)}, "at least one"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"\[3\], expected torch.int64 \[4\]"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, "torch.int32"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, r"0\.\.2, expected 0\.\.1"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, r"-1\.\.1"),
        ({"images": torch.full((4, 3, 5, 6), 17, dtype=torch.uint8), "scale": 16.0}, "grey level 17"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataset(**fields)


def test_the_first_label_out_of_range_is_named(tmp_path, one_line_error):
    with one_line_error(tmp_path, "label 11 at position 2", "0..9"):
        check_labels(tmp_path, np.array([0, 9, 11, -1]), 0, 9)
    check_labels(tmp_path, np.array([0, 9]), 0, 9)


def test_byte_counts_are_named(tmp_path, one_line_error):
    with one_line_error(tmp_path, "truncated", "found 3 bytes", "expected 4"):
        check_bytes(tmp_path, 3, 4, "a word")
    with one_line_error(tmp_path, "too long", "found 5 bytes", "expected 4"):
        check_bytes(tmp_path, 5, 4, "a word")


def test_a_file_that_cannot_be_read(tmp_path, one_line_error):
    with one_line_error(f"cannot read {tmp_path}"):
        read_bytes(tmp_path)


def test_unknown_names_and_splits(tmp_path, one_line_error):
    with one_line_error("'cifar11'", "cifar10", *DATASETS):
        load("cifar11", "train", tmp_path)
    for name in DATASETS:
        with one_line_error("'val'", "'train'", "'test'"):
            load(name, "val", tmp_path)


def test_image_size_is_for_image_folders_alone(one_line_error):
    with one_line_error("--image-size 8", "digits"):
        load("digits", "train", image_size=8)


def test_importing_the_package_needs_numpy_and_torch_alone():
    check = "import sys, robustfast.data; print({'sklearn', 'scipy', 'PIL'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (found.stdout, found.stderr) == ("set()\n", "")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("digits", "sklearn.datasets", "scikit-learn"),
        ("svhn", "scipy.io", "scipy"),
        ("image_folder", "PIL", "Pillow"),
        ("tiny_imagenet", "PIL", "Pillow"),
        ("imagenette", "PIL", "Pillow"),
        ("restricted_imagenet", "PIL", "Pillow"),
    ],
)
def test_a_missing_package_is_named_with_its_install_command(
    tmp_path, monkeypatch, one_line_error, name, module, package
):
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    for part in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, part, None)
    with one_line_error(name, f"pip install {package}"):
        load(name, "test", tmp_path)

from __future__ import annotations

import pytest

from robustfast.data import load
from robustfast.data.locate import Layout, locate

LAYOUTS = [
    Layout(("set", "."), {"a[.gz]": ("a", "a.gz"), "b": ("b",)}),
    Layout(("set-bin", "."), {"c": ("c",)}),
]
PAGE = "https://example.org/set"


def test_the_named_folder_goes_before_the_data_folder_itself(tmp_path):
    (tmp_path / "set").mkdir()
    for folder in (tmp_path, tmp_path / "set"):
        (folder / "a.gz").touch()
        (folder / "b").touch()
    layout, files = locate("set", tmp_path, LAYOUTS, PAGE)
    assert layout is LAYOUTS[0]
    assert files == [tmp_path / "set" / "a.gz", tmp_path / "set" / "b"]


def test_a_second_layout_is_taken_where_the_first_is_incomplete(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "c").touch()
    layout, files = locate("set", str(tmp_path), LAYOUTS, PAGE)
    assert layout is LAYOUTS[1]
    assert files == [tmp_path / "c"]


def test_a_missing_set_names_files_every_place_and_the_page(tmp_path, one_line_error):
    places = f"{tmp_path / 'set'}, {tmp_path}, {tmp_path / 'set-bin'};"
    with one_line_error("a[.gz], b or c", places, PAGE, "--data-dir"):
        locate("set", tmp_path, LAYOUTS, PAGE)


def test_a_partly_filled_folder_is_told_what_it_lacks(tmp_path, one_line_error):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b").touch()
    with one_line_error(f"{tmp_path / 'set'} lacks a[.gz]"):
        locate("set", tmp_path, LAYOUTS, PAGE)


def test_a_data_folder_that_is_absent_or_not_given(tmp_path, one_line_error):
    with one_line_error(f"{tmp_path / 'no'} does not exist", "a[.gz]", PAGE):
        locate("set", tmp_path / "no", LAYOUTS, PAGE)
    (tmp_path / "file").touch()
    with one_line_error(f"{tmp_path / 'file'} is no folder", "a[.gz]", PAGE):
        locate("set", tmp_path / "file", LAYOUTS, PAGE)
    with one_line_error("a[.gz]", PAGE, "--data-dir"):
        locate("set", None, LAYOUTS, PAGE)


@pytest.mark.parametrize(
    ("name", "file", "page"),
    [
        ("mnist", "t10k-images-idx3-ubyte[.gz]", "yann.lecun.com/exdb/mnist"),
        ("fashion_mnist", "t10k-labels-idx1-ubyte[.gz]", "github.com/zalandoresearch/fashion-mnist"),
        ("cifar10", "test_batch, batches.meta or test_batch.bin", "www.cs.toronto.edu/~kriz/cifar.html"),
        ("cifar100", "test, meta or test.bin", "www.cs.toronto.edu/~kriz/cifar.html"),
        ("svhn", "test_32x32.mat", "ufldl.stanford.edu/housenumbers"),
        ("image_folder", "train/CLASS/*.jpg", "--data-dir"),
        ("tiny_imagenet", "val/val_annotations.txt", "cs231n.stanford.edu/tiny-imagenet-200.zip"),
        ("imagenette", "imagenette2-320", "github.com/fastai/imagenette"),
        ("restricted_imagenet", "val/WNID/*.JPEG", "image-net.org"),
    ],
)
def test_every_set_that_is_missing_says_what_to_put_where(tmp_path, one_line_error, name, file, page):
    for data_dir in (tmp_path, None):
        with one_line_error(name, file, page):
            load(name, "test", data_dir)

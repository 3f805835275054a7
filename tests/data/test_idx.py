from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfast.data import load
from robustfast.data.idx import read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 9, 3, 3, 1], dtype=np.uint8)
# Counts of the ten digits in the published files.
MNIST_COUNTS = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


@pytest.fixture
def write(tmp_path, idx_bytes):
    def write_set(
        images=IMAGES, labels=LABELS, folder=".", prefix="train", pack=lambda content: content, suffix=""
    ):
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
        (target / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))
        return target

    return write_set


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_mnist(real_mnist, split):
    mnist = load("mnist", split, real_mnist)
    assert mnist.images.shape == (60_000 if split == "train" else 10_000, 1, 28, 28)
    assert mnist.labels.bincount().tolist() == MNIST_COUNTS[split]
    if split == "train":
        # The published mean of the training pixels.
        assert float(mnist.images.float().mean() / 255) == pytest.approx(0.1307, abs=5e-5)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz"), (gzip.compress, "")])
def test_plain_and_gzip_give_the_same(tmp_path, write, name, split, prefix, pack, suffix):
    write(folder=name, prefix=prefix, pack=pack, suffix=suffix)
    loaded = load(name, split, tmp_path)
    assert loaded.name == name
    assert loaded.num_classes == 10
    assert torch.equal(loaded.images, torch.from_numpy(IMAGES[:, None]))
    assert torch.equal(loaded.labels, torch.from_numpy(LABELS).long())


@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw", "raw"])
def test_folders_that_users_have(tmp_path, write, folder):
    write(folder=folder)
    assert len(load("mnist", "train", tmp_path)) == 5


def test_sets_that_share_file_names_are_told_apart_by_folder(tmp_path, write):
    write(labels=np.zeros(5, np.uint8))
    write(folder="fashion_mnist")
    assert load("fashion_mnist", "train", tmp_path).labels.tolist() == LABELS.tolist()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), packed=st.booleans())
def test_a_file_cut_anywhere_names_itself_and_its_bytes(
    tmp_path_factory, idx_bytes, one_line_error, share, packed
):
    whole = idx_bytes(IMAGES)
    content = gzip.compress(whole) if packed else whole
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(content[: int(share * len(content))])
    with one_line_error(path, "truncated", path.stat().st_size, "expected"):
        read_idx(path, rank=3)


def test_the_expected_bytes_of_a_cut_file(tmp_path, write, one_line_error):
    path = write() / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with one_line_error(path, "found 1000 bytes, expected 3936"):  # 16 + 5 * 28 * 28
        load("mnist", "train", tmp_path)


def test_a_gzip_file_without_its_checksum(tmp_path, write, one_line_error):
    path = write(pack=gzip.compress) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-4])
    with one_line_error(path, "truncated", "checksum", "3936"):
        load("mnist", "train", tmp_path)


def test_a_gzip_file_with_one_changed_byte(tmp_path, write, one_line_error):
    path = write(pack=gzip.compress) / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with one_line_error(path, "corrupt gzip", len(content)):
        load("mnist", "train", tmp_path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_bytes_after_the_end(tmp_path, write, one_line_error, pack):
    path = write(pack=pack) / "train-labels-idx1-ubyte"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0\0")
    with one_line_error(path, "too long", f"found {size + 2} bytes, expected {size}"):
        load("mnist", "train", tmp_path)


def test_a_file_of_another_kind(tmp_path, write, one_line_error):
    path = write() / "train-images-idx3-ubyte"
    path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    with one_line_error(path, "0x3c21444f", "0x00000803"):
        load("mnist", "train", tmp_path)


def test_images_of_another_size(tmp_path, write, one_line_error):
    path = write(images=IMAGES[:, :20]) / "train-images-idx3-ubyte"
    with one_line_error(path, "20x28", "28x28"):
        load("mnist", "train", tmp_path)


def test_no_images(tmp_path, write, one_line_error):
    path = write(images=IMAGES[:0], labels=LABELS[:0]) / "train-images-idx3-ubyte"
    with one_line_error(path, "found 0 images"):
        load("mnist", "train", tmp_path)


def test_counts_that_differ(tmp_path, write, one_line_error):
    folder = write(labels=LABELS[:4])
    with one_line_error(folder / "train-labels-idx1-ubyte", "found 4 labels, expected 5"):
        load("mnist", "train", tmp_path)


def test_a_label_out_of_range(tmp_path, write, one_line_error):
    folder = write(labels=np.array([0, 1, 10, 200, 1], np.uint8))
    with one_line_error(folder / "train-labels-idx1-ubyte", "label 10 at position 2", "0..9"):
        load("mnist", "train", tmp_path)

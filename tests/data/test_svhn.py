from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from robustfast.data import load
from robustfast.data.svhn import load as load_svhn
from robustfast.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
LABELS = np.array([[1], [10], [9], [10]], dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    def write_mat(split="test", folder=".", compressed=True, **variables):
        path = tmp_path / folder / f"{split}_32x32.mat"
        path.parent.mkdir(exist_ok=True)
        savemat(path, {"X": PIXELS, "y": LABELS} | variables, do_compression=compressed)
        return path

    return write_mat


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("folder", [".", "svhn", "SVHN"])
@pytest.mark.parametrize("compressed", [True, False])
def test_the_published_format(tmp_path, write, split, folder, compressed):
    write(split, folder, compressed)
    svhn = load("svhn", split, tmp_path)
    assert svhn.images.shape == (4, 3, 32, 32)
    for number in range(4):
        assert torch.equal(svhn.images[number], torch.from_numpy(PIXELS[..., number]).permute(2, 0, 1))
    assert svhn.labels.tolist() == [1, 0, 9, 0]


@pytest.mark.parametrize("compressed", [True, False])
def test_a_truncated_file(tmp_path, write, one_line_error, compressed):
    path = write(compressed=compressed)
    content = path.read_bytes()
    size = 128 + 8 + struct.unpack_from("<I", content, 132)[0]  # where the first variable ends
    path.write_bytes(content[:5000])
    with one_line_error(path, "truncated", f"found 5000 bytes, expected {size}"):
        load("svhn", "test", tmp_path)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), compressed=st.booleans())
def test_a_file_cut_anywhere(tmp_path_factory, share, compressed):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "train_32x32.mat"
    savemat(path, {"X": PIXELS[..., :1], "y": LABELS[:1]}, do_compression=compressed)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError) as caught:
        load_svhn("train", folder)
    assert str(path) in str(caught.value)
    assert str(path.stat().st_size) in str(caught.value)
    assert str(caught.value).isprintable()


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 2**20), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_but_never_a_trace(tmp_path_factory, position, value):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "train_32x32.mat"
    savemat(path, {"X": PIXELS[..., :1], "y": LABELS[:1]}, do_compression=True)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    message = str(path)
    try:
        assert len(load_svhn("train", folder)) == 1
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert message.isprintable()


@pytest.mark.parametrize("label", [0, 11])
def test_a_label_out_of_range(tmp_path, write, one_line_error, label):
    path = write(y=np.array([[1], [10], [label], [3]], np.uint8))
    with one_line_error(path, f"label {label} at position 2", "1..10"):
        load("svhn", "test", tmp_path)


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"X": PIXELS.astype(np.float64)}, ["float64"]),
        ({"X": PIXELS[:, :16]}, ["[32, 16, 3, 4]"]),
        ({"y": LABELS[:3]}, ["3 labels", "expected 4"]),
        ({"y": LABELS / 1}, ["float64"]),
    ],
)
def test_variables_that_are_not_as_published(tmp_path, write, one_line_error, variables, parts):
    path = write(**variables)
    with one_line_error(path, *parts):
        load("svhn", "test", tmp_path)


def test_a_variable_is_missing(tmp_path, one_line_error):
    path = tmp_path / "test_32x32.mat"
    savemat(path, {"X": PIXELS})
    with one_line_error(path, "no variable y"):
        load("svhn", "test", tmp_path)


@pytest.mark.parametrize(
    "content", [b"<html>" * 100, b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF" * 200]
)
def test_a_file_of_another_kind(tmp_path, one_line_error, content):
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(content)
    with one_line_error(path, len(content), "no MAT 5 file"):
        load("svhn", "test", tmp_path)

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import torch
from sklearn.datasets import load_digits

from robustfast.data import digits, load


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_both_splits_together_are_the_real_digits():
    train, test = load("digits", "train"), load("digits", "test")
    assert train.images.shape == (1438, 1, 8, 8)
    assert test.images.shape == (359, 1, 8, 8)
    published = torch.from_numpy(load_digits().images.astype(np.uint8))
    assert sorted(rows(train.images) + rows(test.images)) == sorted(rows(published))
    assert int(train.images.max()) == train.scale == 16
    assert train.classes == tuple("0123456789")


def test_the_held_out_fifth_is_stratified():
    train, test = load("digits", "train"), load("digits", "test")
    held_out = test.labels.bincount()
    total = held_out + train.labels.bincount()
    assert torch.equal(held_out, (total / 5).round().long())


def test_labels_go_with_their_images():
    published = load_digits()
    label_of = {
        image.astype(np.uint8).tobytes(): int(label)
        for image, label in zip(published.images, published.target, strict=True)
    }
    for split in ("train", "test"):
        part = load("digits", split)
        assert [label_of[row] for row in rows(part.images)] == part.labels.tolist()


def test_the_split_reads_no_random_state():
    first = load("digits", "test")
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    assert torch.equal(load("digits", "test").images, first.images)


def test_they_are_read_without_an_import_of_scikit_learn():
    check = "import sys; from robustfast.data import load; load('digits', 'test'); print('sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("False\n", "")


def test_where_the_file_lies_elsewhere_scikit_learn_reads_it(monkeypatch):
    expected = load("digits", "train")
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    found = load("digits", "train")
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)

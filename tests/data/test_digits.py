from __future__ import annotations

import random

import numpy as np
import torch
from sklearn.datasets import load_digits

from robustfast.data import load


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

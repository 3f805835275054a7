from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_feeds import epoch_of, toy

from robustfast.data import Dataset
from robustfast.data.resident import ResidentFeed
from robustfast.reference.philox import philox4x32
from robustfast.seeds import derive


@given(
    samples=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=40, deadline=None)
def test_each_image_comes_once_an_epoch_with_its_own_label(samples, batch_size, epoch, seed):
    dataset = toy(samples)
    feed = ResidentFeed(dataset, batch_size, seed=seed)
    sizes = [len(batch.index) for batch in feed.batches(epoch)]
    assert len(sizes) == len(feed)
    assert set(sizes[:-1]) <= {batch_size}
    x, y, index = epoch_of(feed, epoch)
    assert sorted(index.tolist()) == list(range(samples))
    assert torch.equal(y, dataset.labels[index])
    assert torch.equal(x, (dataset.images[index].double() / 255).float())


@given(sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)), epoch=st.integers(0, 100), last=st.booleans())
@settings(max_examples=40, deadline=None)
def test_order_crops_and_flips_do_not_depend_on_the_batch_size(sizes, epoch, last):
    first, second = (
        epoch_of(ResidentFeed(toy(), size, seed=3, augment=True, channels_last=last), epoch) for size in sizes
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_crops_and_flips_do_not_depend_on_the_order():
    shuffled, _, index = epoch_of(ResidentFeed(toy(), 8, seed=3, augment=True), 5)
    in_order, _, _ = epoch_of(ResidentFeed(toy(), 8, seed=3, augment=True, shuffle=False), 5)
    assert torch.equal(shuffled, in_order[index])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_augmentation_image_by_image(channels, channels_last):
    dataset = toy(channels=channels)
    seed, epoch = 11, 4
    x, _, index = epoch_of(
        ResidentFeed(dataset, 10, seed=seed, augment=True, channels_last=channels_last), epoch
    )
    key = derive(seed, "augment", epoch)
    padded = np.pad(dataset.images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    for image, sample in zip(x, index.tolist(), strict=True):
        counter = tuple(torch.tensor(word) for word in (sample, 0, 0, 0))
        top, left, mirror, _ = (
            int(word) / 2**32 for word in philox4x32(counter, (key % 2**32, key // 2**32))
        )
        top, left = int(top * 9), int(left * 9)
        window = padded[sample, :, top : top + 7, left : left + 9]
        window = window[:, :, ::-1] if mirror >= 0.5 else window
        assert np.array_equal(image.numpy(), window.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("augment", [False, True])
def test_the_same_seed_and_epoch_give_the_same_and_others_do_not(augment):
    feed = ResidentFeed(toy(), 8, seed=0, augment=augment)
    x, _, index = epoch_of(feed, 0)
    again, _, _ = epoch_of(ResidentFeed(toy(), 8, seed=0, augment=augment), 0)
    assert torch.equal(x, again)
    for other, epoch in ((feed, 1), (ResidentFeed(toy(), 8, seed=1, augment=augment), 0)):
        other_x, _, other_index = epoch_of(other, epoch)
        assert not torch.equal(index, other_index)
        if augment:
            assert not torch.equal(x[index.argsort()], other_x[other_index.argsort()])


@given(start=st.integers(0, 8), drop_last=st.booleans())
@settings(deadline=None)
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(start, drop_last):
    feed = ResidentFeed(toy(40), 5, seed=2, augment=True, drop_last=drop_last)
    whole = list(feed.batches(3))
    rest = list(feed.batches(3, start=start))
    assert len(rest) == len(feed) - start
    for one, other in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_skipped_batches_are_not_computed(monkeypatch):
    computed = []
    take = ResidentFeed._take
    monkeypatch.setattr(ResidentFeed, "_take", lambda *args: computed.append(args) or take(*args))
    feed = ResidentFeed(toy(40), 5, seed=2, augment=True)
    assert len(list(feed.batches(0, start=6))) == len(computed) == 2


def test_the_last_partial_batch_is_kept_or_dropped():
    kept, dropped = ResidentFeed(toy(37), 10, seed=0), ResidentFeed(toy(37), 10, seed=0, drop_last=True)
    assert [len(batch.x) for batch in kept.batches(0)] == [10, 10, 10, 7]
    assert [len(batch.x) for batch in dropped.batches(0)] == [10, 10, 10]
    assert (len(kept), len(dropped)) == (4, 3)


def test_without_shuffle_the_order_is_the_data_sets():
    _, _, index = epoch_of(ResidentFeed(toy(), 8, seed=0, shuffle=False), 7)
    assert index.tolist() == list(range(37))


@pytest.mark.parametrize("augment", [False, True])
def test_memory_format_and_dtypes(augment):
    contiguous, last = (
        next(iter(ResidentFeed(toy(), 8, seed=0, augment=augment, channels_last=flag).batches(0)))
        for flag in (False, True)
    )
    assert contiguous.x.is_contiguous()
    assert last.x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(contiguous.x, last.x)
    assert (last.x.dtype, last.y.dtype, last.index.dtype) == (torch.float32, torch.int64, torch.int64)


@pytest.mark.parametrize("scale", [16.0, 255.0])
def test_every_grey_level_is_the_rounded_quotient_and_the_scale_is_one(scale):
    levels = torch.arange(int(scale) + 1)
    dataset = Dataset(
        "toy", levels.to(torch.uint8)[:, None, None, None], torch.zeros_like(levels), ("a",), scale
    )
    x, _, _ = epoch_of(ResidentFeed(dataset, 100, seed=0, shuffle=False), 0)
    assert torch.equal(x.flatten(), (levels.double() / scale).float())
    assert float(x.max()) == 1.0


def test_no_global_generator_is_read_or_set():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002

    before = states()
    first = epoch_of(ResidentFeed(toy(), 8, seed=0, augment=True), 0)
    assert states() == before
    torch.manual_seed(99)
    second = epoch_of(ResidentFeed(toy(), 8, seed=0, augment=True), 0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_data_set_is_left_as_it_was():
    dataset = toy()
    before = dataset.images.clone()
    batch = next(ResidentFeed(dataset, 37, seed=0, shuffle=False).batches(0))
    batch.x.zero_()
    batch.y.fill_(2)
    batch.index.zero_()
    assert torch.equal(dataset.images, before)
    assert torch.equal(dataset.labels, toy().labels)


def test_bad_arguments(one_line_error):
    with one_line_error("batch size is 0"):
        ResidentFeed(toy(), 0, seed=0)
    with one_line_error("batch size of 38", "37 images"):
        ResidentFeed(toy(), 38, seed=0, drop_last=True)
    with one_line_error("toy", "augmentation", "--no-augment"):
        ResidentFeed(toy(augmentable=False), 8, seed=0, augment=True)
    feed = ResidentFeed(toy(), 10, seed=0)
    for start in (-1, 5):
        with pytest.raises(ValueError, match=rf"start is {start}, expected 0\.\.4"):
            feed.batches(0, start=start)
    assert list(feed.batches(0, start=4)) == []
    with pytest.raises(ValueError, match="epoch is -1"):
        feed.batches(-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gpu_gives_the_same_bits(channels_last):
    host, device = (
        epoch_of(ResidentFeed(toy(), 8, seed=0, augment=True, channels_last=channels_last, device=device), 2)
        for device in ("cpu", "cuda")
    )
    assert device[0].is_cuda
    assert all(torch.equal(a, b.cpu()) for a, b in zip(host, device, strict=True))

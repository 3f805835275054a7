"""The three loaders give the same batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_feeds import HAS_PILLOW, LOADERS, assert_same, batches_of, epoch_of, needs_dali, toy

from robustfast.data import feed, load
from robustfast.data.image_files import ImageFiles

SIZES = [
    (40, 40),
    (75, 48),
    (48, 75),
    (33, 41),
    (32, 32),
    (120, 50),
    (64, 64),
    (36, 90),
    (50, 52),
    (31, 47),
    (90, 61),
]


@pytest.fixture(scope="module")
def photographs(photograph, tmp_path_factory) -> tuple[Path, ...]:
    """CIFAR-10 images as JPEG files of many sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    return tuple(photograph(folder / f"{number:02d}.jpg", number, size) for number, size in enumerate(SIZES))


def files_of(photographs: tuple[Path, ...], **fields) -> ImageFiles:
    labels = torch.arange(len(photographs)) % 3
    return ImageFiles("photographs", photographs, labels, ("a", "b", "c"), **({"image_size": 32} | fields))


@needs_dali
def test_cifar10_over_two_epochs(real_cifar10):
    """All 50,000 training images: equal pixels, labels and order, and each image once an epoch."""
    dataset = load("cifar10", "train", real_cifar10)
    feeds = [feed(dataset, 128, loader=name, seed=3, augment=True) for name in ("resident", "dali", "torch")]
    for epoch in range(2):
        seen = []
        for expected, *others in zip(*(each.batches(epoch) for each in feeds), strict=True):
            for other in others:
                assert torch.equal(other.x, expected.x)
                assert torch.equal(other.y, expected.y)
                assert torch.equal(other.index, expected.index)
            assert torch.equal(expected.y, dataset.labels[expected.index])
            seen.append(expected.index)
        assert torch.equal(torch.cat(seen).sort().values, torch.arange(50_000))


@pytest.mark.parametrize("loader", LOADERS)
@given(
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**40),
    channels=st.sampled_from([1, 3]),
    scale=st.sampled_from([16.0, 255.0]),
    augment=st.booleans(),
    channels_last=st.booleans(),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    start=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_each_loader_gives_what_resident_gives(
    loader, samples, batch_size, epoch, channels, scale, start, **options
):
    dataset = toy(samples, channels, scale=scale)
    if options["drop_last"]:
        batch_size = min(batch_size, samples)
    expected = batches_of("resident", dataset, batch_size, epoch=epoch, **options)
    start = min(start, len(expected))
    assert_same(
        batches_of(loader, dataset, batch_size, epoch=epoch, start=start, **options), expected[start:]
    )


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_layout_dtypes_and_the_last_partial_batch(loader, channels_last):
    batches = batches_of(loader, toy(37), 10, seed=0, augment=True, channels_last=channels_last)
    assert [len(batch.x) for batch in batches] == [10, 10, 10, 7]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for batch in batches:
        assert batch.x.is_contiguous(memory_format=layout)
        assert (batch.x.dtype, batch.y.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert batch.share == 1.0


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("samples", [37, 40])
def test_the_processes_share_out_each_batch(loader, world, samples):
    """Their rows are disjoint and, one after the other, those of one process; the shares weigh their means rightly."""
    dataset = toy(samples)
    options = {"seed": 5, "augment": True, "epoch": 2}
    whole = batches_of("resident", dataset, 8, **options)
    shards = [batches_of(loader, dataset, 8, rank=rank, world=world, **options) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(whole)}
    for batch, *parts in zip(whole, *shards, strict=True):
        for name in ("x", "y", "index"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        assert [part.share for part in parts] == [len(part.y) / len(batch.y) for part in parts]
        mean = sum(part.share * part.x.double().mean() for part in parts)
        torch.testing.assert_close(mean, batch.x.double().mean())
    everything = torch.cat([batch.index for shard in shards for batch in shard])
    assert sorted(everything.tolist()) == list(range(samples))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_last_batch_that_gives_a_process_more_images_than_the_others_did(loader):
    # 5 processes: of 8 images the third takes one, of the 7 that are left it takes two.
    options = {"seed": 0, "rank": 2, "world": 5, "augment": True}
    batches = batches_of(loader, toy(15), 8, **options)
    assert [len(batch.y) for batch in batches] == [1, 2]
    assert_same(batches, batches_of("resident", toy(15), 8, **options))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(loader):
    source = feed(toy(40), 6, loader=loader, seed=2, augment=True)
    whole = list(source.batches(3))
    for start in (0, 3, 6, 7):
        assert_same(list(source.batches(3, start=start)), whole[start:])
    other = "torch" if loader != "torch" else "resident"
    assert_same(batches_of(other, toy(40), 6, seed=2, augment=True, epoch=3, start=4), whole[4:])


@pytest.mark.parametrize("loader", LOADERS)
def test_two_epochs_at_once_do_not_disturb_each_other(loader):
    source = feed(toy(20), 4, loader=loader, seed=2, augment=True)
    first, second = source.batches(0), source.batches(1)
    pairs = list(zip(first, second, strict=True))
    assert_same([one for one, _ in pairs], list(source.batches(0)))
    assert_same([other for _, other in pairs], list(source.batches(1)))


@pytest.mark.parametrize("loader", LOADERS)
def test_rand_augment_comes_after_crop_and_flip(loader):
    dataset = toy(20, height=20, width=20)
    options = {"seed": 1, "augment": True, "channels_last": True, "epoch": 1}
    plain = batches_of("resident", dataset, 8, **options)
    distorted = batches_of(loader, dataset, 8, rand_augment=True, **options)
    assert_same(distorted, batches_of("resident", dataset, 8, rand_augment=True, **options))
    for one, other in zip(plain, distorted, strict=True):
        assert torch.equal(one.index, other.index)
        changed = (one.x != other.x).flatten(1).float().mean(dim=1)
        assert (changed > 0.2).all()  # the grey square alone takes a quarter or more of 20 x 20


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3)])
def test_image_files_are_the_same_to_a_few_grey_levels(photographs, loader, augment, rank, world):
    """Pillow rounds to bytes between its two passes, DALI once at the end: both decode JPEG to the same bits."""
    options = {"seed": 4, "augment": augment, "rank": rank, "world": world, "epoch": 2}
    dataset = files_of(photographs)
    expected = batches_of("torch", dataset, 4, **options)
    found = batches_of(loader, dataset, 4, **options)
    assert [len(batch.y) for batch in found] == ([4, 4, 3] if world == 1 else [1, 1, 1])
    assert_near(found, expected, exact=loader != "dali")
    arrays = batches_of("resident", dataset.decode(), 4, **options)
    assert_same(expected, arrays)


@pytest.mark.parametrize("loader", LOADERS[1:])
def test_parts_of_image_files_are_the_same_to_a_few_grey_levels(photographs, loader):
    dataset = files_of(photographs, image_size=16)
    options = {"seed": 4, "augment": True, "crop": "resized"}
    found, expected = (batches_of(name, dataset, 4, epoch=1, **options) for name in (loader, "torch"))
    assert_near(found, expected, exact=loader == "torch")
    # They are parts: other ones in another epoch, and none is the whole image.
    x, _, index = epoch_of(feed(dataset, 4, loader=loader, **options), 1)
    other, _, other_index = epoch_of(feed(dataset, 4, loader=loader, **options), 2)
    distance = (x[index.argsort()] - other[other_index.argsort()]).abs().flatten(1).mean(dim=1)
    assert (distance > 0.01).float().mean() > 0.8


@pytest.mark.parametrize("loader", LOADERS)
def test_files_of_the_images_own_size_are_equal_to_the_bit(photograph, tmp_path, loader):
    paths = tuple(photograph(tmp_path / f"{number}.jpg", number) for number in range(10))
    dataset = files_of(paths, image_size=None)
    options = {"seed": 0, "augment": True, "channels_last": True}
    assert_same(
        batches_of(loader, dataset, 4, **options), batches_of("resident", dataset.decode(), 4, **options)
    )


@pytest.mark.parametrize("loader", LOADERS)
def test_grey_files(photographs, tmp_path, loader):
    from PIL import Image

    paths = []
    for number, path in enumerate(photographs):
        paths.append(tmp_path / f"{number}.png")
        Image.open(path).convert("L").save(paths[-1])
    dataset = files_of(tuple(paths))
    found, expected = (batches_of(name, dataset, 4, seed=0) for name in (loader, "torch"))
    assert found[0].x.shape == (4, 1, 32, 32)
    assert_near(found, expected, exact=loader != "dali")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_resumed_epoch_of_files_is_the_rest_of_the_whole_one(photographs, loader):
    source = feed(files_of(photographs), 4, loader=loader, seed=2, augment=True)
    assert_same(list(source.batches(1, start=2)), list(source.batches(1))[2:])


@pytest.mark.skipif(not HAS_PILLOW, reason="needs Pillow")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_file_is_named(photographs, tmp_path, loader, damage, one_line_error):
    paths = []
    for number, path in enumerate(photographs):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(path.read_bytes())
    dataset = files_of(tuple(paths))
    _ = dataset.sizes
    if damage == "missing":
        paths[7].unlink()
    else:
        paths[7].write_bytes(paths[7].read_bytes()[:-300])
    with one_line_error(paths[7], "replace or remove it"):
        batches_of(loader, dataset, 4, seed=0, augment=True)


def assert_near(found, expected, *, exact: bool) -> None:
    if exact:
        assert_same(found, expected)
        return
    for one, other in zip(found, expected, strict=True):
        assert one.share == other.share
        assert torch.equal(one.y, other.y)
        assert torch.equal(one.index, other.index)
        levels = (one.x - other.x).abs() * 255
        # Seen: 0.2 on average and at most 8, at the border of a part that shrinks a lot; an image that is mirrored or
        # shifted by one pixel differs by 5 and more on average.
        assert float(levels.mean()) < 0.5
        assert float(levels.max()) < 12.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gpu_gives_the_same_bits(loader, channels_last):
    options = {"seed": 0, "augment": True, "channels_last": channels_last, "epoch": 2}
    host = batches_of("resident", toy(), 8, **options)
    device = batches_of(loader, toy(), 8, device="cuda", **options)
    assert all(batch.x.is_cuda and batch.y.is_cuda and batch.index.is_cuda for batch in device)
    assert_same([type(batch)(*(t.cpu() for t in batch[:3]), batch.share) for batch in device], host)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loader", LOADERS)
def test_a_gpu_decodes_the_same_files(photographs, loader):
    """nvJPEG may round its transforms otherwise than the library of the CPU."""
    dataset = files_of(photographs)
    host = batches_of("torch", dataset, 4, seed=0, augment=True)
    for one, other in zip(
        batches_of(loader, dataset, 4, seed=0, augment=True, device="cuda"), host, strict=True
    ):
        assert torch.equal(one.index.cpu(), other.index)
        assert float((one.x.cpu() - other.x).abs().mean()) * 255 < 1.5

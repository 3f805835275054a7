from __future__ import annotations

import math

import pytest
import torch

from robustfast.data import draws
from robustfast.reference.philox import philox4x32
from robustfast.seeds import derive


def deviations(counts: torch.Tensor, samples: int, chance: float) -> float:
    """How many standard deviations the farthest of `counts` lies from what is expected."""
    return float((counts - samples * chance).abs().max()) / (samples * chance * (1 - chance)) ** 0.5


def test_crops_flips_and_order_are_uniform():
    samples = 20_000
    top, left, mirror = draws.crops(torch.arange(samples), seed=0, epoch=0)
    for offsets in (top, left):
        counts = offsets.bincount(minlength=9)
        assert len(counts) == 9
        assert deviations(counts, samples, 1 / 9) < 5
    assert deviations(mirror.sum(), samples, 1 / 2) < 5
    # A sample's place in the order has nothing to do with its number: correlation below 5 / sqrt(samples).
    order = draws.order(samples, seed=0, epoch=0)
    pairs = torch.stack([torch.arange(samples), order]).double()
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5 / samples**0.5


def one_window(width: int, height: int, index: int, seed: int, epoch: int) -> list[int]:
    """A random part of one image, try after try, as the law is told in words."""
    key = derive(seed, "window", epoch)
    for number in range(10):
        counter = tuple(torch.tensor(word) for word in (index, number, 0, 0))
        a, b, c, d = (int(word) for word in philox4x32(counter, (key & 0xFFFFFFFF, key >> 32)))
        area = (0.08 + 0.92 * a / 2**32) * width * height
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * b / 2**32)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = d * (width - w + 1) // 2**32, c * (height - h + 1) // 2**32
            return [left, top, left + w, top + h]
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * 4 / 3)
    left, top = (width - w) // 2, (height - h) // 2
    return [left, top, left + w, top + h]


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (40, 200), (3, 1), (1, 1), (1000, 7)])
def test_windows_follow_the_law_try_after_try(size):
    index = torch.tensor([0, 1, 2, 3, 999_999])
    found = draws.windows(torch.tensor([size]).expand(5, 2), index, seed=2**40, epoch=3)
    assert found.tolist() == [one_window(*size, number, 2**40, 3) for number in index.tolist()]


def test_windows_spread_over_areas_aspects_and_places():
    samples = 20_000
    sizes = torch.tensor([[500, 375]]).expand(samples, 2)
    left, top, right, bottom = draws.windows(sizes, torch.arange(samples), seed=1, epoch=0).double().unbind(1)
    width, height = right - left, bottom - top
    assert min(left.min(), top.min()) == 0
    assert (right.max(), bottom.max()) == (500, 375)
    # Large windows often do not fit at a long aspect, so the law is uniform below half of the area.
    area = width * height / (500 * 375)
    assert area.min() > 0.078
    counts = torch.histc(area[area < 0.48], 8, 0.08, 0.48)
    assert deviations(counts, int(counts.sum()), 1 / 8) < 5
    assert (width / height).log().abs().max() < math.log(4 / 3) + 0.02
    assert (area > 0.9).any()
    # Where there is room, the place is uniform: the mean of its share of the room is 1/2.
    for start, room in ((left, 500 - width), (top, 375 - height)):
        share = (start / room)[room > 20]
        assert abs(float(share.mean()) - 0.5) < 5 * float(share.std()) / len(share) ** 0.5


def test_an_image_that_no_window_fits_gives_its_middle():
    sizes = torch.tensor([[1000, 7], [7, 1000]])
    found = draws.windows(sizes, torch.tensor([0, 1]), seed=0, epoch=0)
    assert found.tolist() == [[495, 0, 504, 7], [0, 495, 7, 504]]


def test_windows_are_functions_of_seed_epoch_and_index():
    sizes = torch.tensor([[64, 48]]).expand(50, 2)
    index = torch.arange(50)
    first = draws.windows(sizes, index, seed=0, epoch=0)
    turned = draws.windows(sizes, index.flip(0), seed=0, epoch=0)
    assert torch.equal(first, turned.flip(0))
    for seed, epoch in ((1, 0), (0, 1)):
        other = draws.windows(sizes, index, seed=seed, epoch=epoch)
        assert (first != other).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        ((6, 4), (5, 5), [1, 0, 5, 4]),
        ((4, 7), (2, 2), [0, 1.5, 4, 5.5]),
        ((8, 8), (3, 3), [0, 0, 8, 8]),
        ((10, 10), (4, 2), [0, 2.5, 10, 7.5]),
    ],
)
def test_centres_have_the_shape_that_is_asked_for(size, shape, expected):
    assert draws.centres(torch.tensor([size]), *shape).tolist() == [expected]


def test_a_cut_is_the_window_of_the_padded_image():
    images = torch.arange(2 * 3 * 5 * 6, dtype=torch.uint8).view(2, 3, 5, 6)
    padded = torch.nn.functional.pad(images, (4,) * 4)
    top, left = torch.tensor([0, 7]), torch.tensor([3, 8])
    found = draws.cut(images, top, left, torch.tensor([False, True]))
    assert torch.equal(found[0], padded[0, :, 0:5, 3:9])
    assert torch.equal(found[1], padded[1, :, 7:12, 8:14].flip(2))

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustfast.ops import augment, backends, use_backend

HERE = [name for name, reason in backends()["augment"].items() if reason is None and name != "cuda"]
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8)
FORMATS = (torch.contiguous_format, torch.channels_last)
SEED = 0x0123456789ABCDEF


def store(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def philox(number: int, seed: int) -> list[int]:
    """The four words of the counter (number, 0, 0, 0), straight from the paper, on Python's integers."""
    counter, key = [number, 0, 0, 0], [seed % 2**32, seed >> 32]
    for _ in range(10):
        even, odd = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            odd >> 32 ^ counter[1] ^ key[0],
            odd % 2**32,
            even >> 32 ^ counter[3] ^ key[1],
            even % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def slow(
    images: Tensor,
    numbers: list[int],
    seed: int,
    pad: int = 4,
    flip: bool = True,
    scale: float = 255.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Image by image in NumPy."""
    _, _, height, width = images.shape
    taken = []
    for number in numbers:
        words = philox(number, seed)
        top, left = (word * (2 * pad + 1) // 2**32 for word in words[:2])
        window = images.numpy()[number, :, top : top + height - 2 * pad, left : left + width - 2 * pad]
        taken.append(window[:, :, ::-1] if flip and words[2] / 2**32 >= 0.5 else window)
    pixels = np.stack(taken)
    if dtype == torch.uint8:
        return torch.from_numpy(pixels)
    exact = np.float64 if dtype == torch.float64 else np.float32
    return torch.from_numpy(pixels.astype(exact) / exact(scale)).to(dtype)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_draws_are_those_of_the_documented_counter(backend: str, dtype: torch.dtype) -> None:
    images, numbers = store(40, 3, 16, 15), list(range(40))
    tops, lefts, mirrored = zip(
        *((w[0] * 9 >> 32, w[1] * 9 >> 32, w[2] >> 31) for w in (philox(i, SEED) for i in numbers)),
        strict=True,
    )
    assert set(tops) == set(lefts) == set(range(9))  # every place that a window has is among them
    assert set(mirrored) == {0, 1}
    expected = slow(images, numbers, SEED, dtype=dtype)
    for last_in in FORMATS:
        for last_out in FORMATS:
            with use_backend(backend):
                got = augment(
                    images.contiguous(memory_format=last_in),
                    seed=SEED,
                    index=torch.tensor(numbers),
                    out_dtype=dtype,
                    memory_format=last_out,
                )
            assert got.dtype == dtype
            assert got.is_contiguous(memory_format=last_out)
            assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", HERE)
@settings(max_examples=30)  # Triton's interpreter takes 20 ms for one
@given(
    channels=st.integers(1, 5),
    height=st.integers(1, 20),
    width=st.integers(1, 40),
    pad=st.integers(0, 5),
    flip=st.booleans(),
    scale=st.sampled_from([255.0, 16.0, 1.0, 3.7]),
    dtype=st.sampled_from(DTYPES),
    last=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_size_is_the_slow_one(
    backend: str,
    channels: int,
    height: int,
    width: int,
    pad: int,
    flip: bool,
    scale: float,
    dtype: torch.dtype,
    last: tuple[bool, bool],
    seed: int,
) -> None:
    images, numbers = store(3, channels, height + 2 * pad, width + 2 * pad), [2, 0, 1, 2]
    with use_backend(backend):
        got = augment(
            images.contiguous(memory_format=FORMATS[last[0]]),
            seed=seed,
            index=torch.tensor(numbers),
            pad=pad,
            flip=flip,
            scale=scale,
            out_dtype=dtype,
            memory_format=FORMATS[last[1]],
        )
    assert torch.equal(got, slow(images, numbers, seed, pad, flip, scale, dtype))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scale", [255.0, 16.0, 1.0, 3.7, 1e-30, 1e30])
def test_every_grey_level_is_the_quotient_rounded_once(backend: str, scale: float) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)

    def scaled(dtype: torch.dtype) -> Tensor:
        with use_backend(backend):
            index = torch.tensor([0])
            return augment(levels, seed=0, index=index, pad=0, flip=False, scale=scale, out_dtype=dtype)

    single = levels.numpy().astype(np.float32) / np.float32(scale)
    assert scaled(torch.float32).numpy().tobytes() == single.tobytes()
    assert scaled(torch.float64).numpy().tobytes() == (levels.numpy().astype(np.float64) / scale).tobytes()
    assert torch.equal(scaled(torch.uint8), levels)
    # To the nearest of the two neighbours with 16 fewer bits, the even one where both are as near.
    bits = single.view(np.uint32).astype(np.uint64)
    down, rest = bits >> 16, bits & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & (down % 2 == 1))
    assert np.array_equal(scaled(torch.bfloat16).view(torch.int16).numpy().view(np.uint16), down + up)


@pytest.mark.parametrize("backend", HERE)
def test_a_sample_does_not_depend_on_its_batch(backend: str) -> None:
    images, index = store(9, 3, 13, 13), torch.tensor([8, 0, 3, 3, 7, 1])
    with use_backend(backend):
        together = augment(images, seed=3, index=index)
        alone = [augment(images, seed=3, index=index[i : i + 1]) for i in range(6)]
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        shuffled = augment(images, seed=3, index=index[order])
        other = augment(images, seed=4, index=index)
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(shuffled, together[order])
    assert torch.equal(together[2], together[3])
    assert not torch.equal(together, other)


@pytest.mark.parametrize("backend", HERE)
def test_stores_of_any_layout(backend: str) -> None:
    images, index = store(5, 3, 14, 13), torch.tensor([4, 0, 2])
    expected = slow(images, index.tolist(), 5)
    turned = images.mT.contiguous().mT
    outermost = images.movedim(0, 3).contiguous().movedim(3, 0)
    every_other = store(10, 6, 28, 26).index_fill_(0, torch.tensor([1]), 0)[::2, ::2, ::2, ::2].copy_(images)
    shared = store(1, 3, 14, 13, seed=1).expand(5, -1, -1, -1)
    numbers = torch.tensor([4, 9, 0, 9, 2, 9])[::2]
    with use_backend(backend):
        for view in (turned, outermost, every_other):
            for memory_format in FORMATS:
                got = augment(view, seed=5, index=numbers, memory_format=memory_format)
                assert torch.equal(got, expected)
        assert torch.equal(augment(shared, seed=5, index=index), slow(shared, index.tolist(), 5))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_of_any_layout_and_nothing_around_it(backend: str, dtype: torch.dtype) -> None:
    images, index = store(5, 3, 14, 13), torch.tensor([4, 0, 2])
    expected = slow(images, index.tolist(), 5, dtype=dtype)
    last = torch.empty_like(expected, memory_format=torch.channels_last)
    turned = torch.empty_like(expected.mT.contiguous()).mT
    with use_backend(backend):
        for out in (last, turned):
            strides = out.stride()
            assert augment(images, seed=5, index=index, out_dtype=dtype, out=out) is out
            assert out.stride() == strides
            assert torch.equal(out, expected)
        # Sentinels on both sides, at every alignment and in both layouts; then every second sample of a wider batch.
        for start in range(5):
            for shape in (expected.shape, expected.permute(0, 2, 3, 1).shape):
                buffer = torch.full((expected.numel() + 8,), 42, dtype=dtype)
                view = buffer[start : start + expected.numel()].view(shape)
                out = view if shape == expected.shape else view.permute(0, 3, 1, 2)
                for store_format in FORMATS:
                    stored = images.contiguous(memory_format=store_format)
                    augment(stored, seed=5, index=index, out_dtype=dtype, out=out)
                    assert torch.equal(out, expected)
                assert (buffer[:start] == 42).all()
                assert (buffer[start + expected.numel() :] == 42).all()
        wide = torch.full((6, *expected.shape[1:]), 42, dtype=dtype)
        augment(images, seed=5, index=index, out_dtype=dtype, out=wide[::2])
    assert torch.equal(wide[::2], expected)
    assert (wide[1::2] == 42).all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("number", [-1, 5, 2**32, -(2**63)])
def test_numbers_that_no_image_has_are_refused_before_anything_is_written(backend: str, number: int) -> None:
    out = torch.full((3, 3, 8, 8), 42.0)
    with use_backend(backend), pytest.raises(IndexError) as error:
        augment(store(5, 3, 16, 16), seed=5, index=torch.tensor([0, number, 4]), out=out)
    assert str(error.value) == f"augment: index holds {number}, expected numbers of the 5 images, 0..4"
    assert (out == 42).all()


def test_several_threads_give_the_same() -> None:
    images, index = store(50, 3, 40, 40), torch.arange(120) % 50
    one = augment(images, seed=5, index=index)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(augment(images, seed=5, index=index), one)
    finally:
        torch.set_num_threads(before)


def test_places_and_flips_are_uniform_and_independent() -> None:
    samples, places = 20_000, 9
    # Each pixel of a border of 4 around one holds its own number: what is taken says where the window was.
    images = torch.arange(places * places, dtype=torch.uint8).reshape(1, 1, places, places)
    taken = augment(
        images.expand(samples, -1, -1, -1), seed=1, index=torch.arange(samples), out_dtype=torch.uint8
    )
    # Five standard deviations of a count of `samples` draws with chance p.
    counts = taken.flatten().long().bincount(minlength=places**2)
    p = 1 / places**2
    assert len(counts) == places**2
    assert (counts - samples * p).abs().max() < 5 * (samples * p * (1 - p)) ** 0.5
    pair = torch.tensor([0, 1], dtype=torch.uint8).expand(samples, 1, 1, 2)
    mirrored = augment(pair, seed=1, index=torch.arange(samples), pad=0, out_dtype=torch.uint8)[:, 0, 0, 0]
    draws = torch.stack([taken.flatten().long() // places, taken.flatten().long() % places, mirrored.long()])
    assert abs(int(mirrored.sum()) - samples / 2) < 5 * (samples / 4) ** 0.5
    assert (torch.corrcoef(draws.double()) - torch.eye(3)).abs().max() < 5 / samples**0.5


def test_the_store_and_the_global_generator_are_left_alone() -> None:
    images, before = store(5, 3, 16, 16), torch.get_rng_state()
    kept = images.clone()
    first = augment(images, seed=5, index=torch.arange(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(augment(images, seed=5, index=torch.arange(5)), first)
    first.zero_()
    assert torch.equal(images, kept)


def test_one_more_graph_serves_every_further_seed() -> None:
    torch._dynamo.reset()
    images, index = store(5, 3, 16, 16), torch.tensor([4, 0])
    compiled = torch.compile(augment, fullgraph=True, backend="aot_eager")
    compiled(images, seed=3, index=index)
    compiled(images, seed=4, index=index)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (0, 1, 2**31, 2**63 - 1):
            assert torch.equal(
                compiled(images, seed=seed, index=index), augment(images, seed=seed, index=index)
            )


BEYOND = """
import sys, torch
from robustfast.ops import augment, use_backend
images = torch.zeros(5, 3, 16, 16, dtype=torch.uint8, device="cuda")
with use_backend(sys.argv[1]):
    augment(images, seed=5, index=torch.tensor([0, int(sys.argv[2])], device="cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.gpu
@pytest.mark.parametrize("number", ["5", "-1"])
@pytest.mark.parametrize("backend", ["reference", "cuda", "triton"])
def test_on_a_gpu_numbers_that_no_image_has_fail_an_assertion(backend: str, number: str) -> None:
    """In a process of its own, whose context is lost."""
    if reason := backends()["augment"][backend]:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-c", BEYOND, backend, number], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "index holds a number that is not in 0.." in done.stderr


WRONG: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "images is list, expected a tensor": (TypeError, {"images": [0]}),
    "images is torch.float32, expected torch.uint8": (TypeError, {"images": torch.zeros(2, 3, 16, 16)}),
    r"images has shape \(2, 16, 16\), expected \[N, C, H, W\]": (
        ValueError,
        {"images": torch.zeros(2, 16, 16, dtype=torch.uint8)},
    ),
    r"images has 4294967297 rows, expected at most 2\*\*32": (
        ValueError,
        {"images": torch.zeros(1, 1, 9, 9, dtype=torch.uint8).expand(2**32 + 1, 1, 9, 9)},
    ),
    r"one of images .* has more than 2\*\*30 elements": (
        ValueError,
        {"images": torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(2, 3, 2**15, 2**15)},
    ),
    r"images of shape \(2, 3, 16, 8\) have nothing inside a border of pad=4 pixels, expected \[N, C, H \+ 8": (
        ValueError,
        {"images": torch.zeros(2, 3, 16, 8, dtype=torch.uint8)},
    ),
    "seed is a bool, expected an int": (TypeError, {"seed": True}),
    "seed is a float, expected an int": (TypeError, {"seed": 1.0}),
    r"seed is -1, expected an int in \[0, 2\*\*63\)": (ValueError, {"seed": -1}),
    r"seed is 9223372036854775808, expected an int in \[0, 2\*\*63\)": (ValueError, {"seed": 2**63}),
    "pad is a float, expected an int": (TypeError, {"pad": 4.0}),
    "pad is -1, expected an int >= 0": (ValueError, {"pad": -1}),
    "flip is a int, expected a bool": (TypeError, {"flip": 1}),
    "scale is a str, expected a number": (TypeError, {"scale": "255"}),
    r"scale is 0, expected a number in \[1e-30, 1e30\]": (ValueError, {"scale": 0}),
    "scale is nan, expected a number in": (ValueError, {"scale": float("nan")}),
    "out_dtype is torch.float16, expected one of torch.float32, torch.bfloat16, torch.float64, torch.uint8": (
        TypeError,
        {"out_dtype": torch.float16},
    ),
    "memory_format is torch.preserve_format, expected torch.contiguous_format or torch.channels_last": (
        ValueError,
        {"memory_format": torch.preserve_format},
    ),
    "index is list, expected a tensor": (TypeError, {"index": [0, 1]}),
    "index is torch.int32, expected torch.int64": (TypeError, {"index": torch.zeros(2, dtype=torch.int32)}),
    r"index has shape \(2, 1\), expected \[B\]": (
        ValueError,
        {"index": torch.zeros(2, 1, dtype=torch.int64)},
    ),
    "index is on meta, expected the device of images, cpu": (
        ValueError,
        {"index": torch.zeros(2, dtype=torch.int64, device="meta")},
    ),
    "out is list, expected a tensor": (TypeError, {"out": [0.0]}),
    r"out has shape \(2, 3, 16, 16\), expected \(2, 3, 8, 8\)": (
        ValueError,
        {"out": torch.zeros(2, 3, 16, 16)},
    ),
    "out is on meta, expected the device of images, cpu": (
        ValueError,
        {"out": torch.zeros(2, 3, 8, 8, device="meta")},
    ),
    "out is torch.float64, expected out_dtype, torch.float32": (
        TypeError,
        {"out": torch.zeros(2, 3, 8, 8, dtype=torch.float64)},
    ),
    r"out of shape \(2, 3, 8, 8\) is expanded": (
        ValueError,
        {"out": torch.zeros(1, 3, 8, 8).expand(2, 3, 8, 8)},
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    kind, wrong = WRONG[message]
    arguments = {
        "images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        "seed": 0,
        "index": torch.tensor([0, 1]),
    }
    with pytest.raises(kind, match=f"augment: {message}"):
        augment(**{**arguments, **wrong})

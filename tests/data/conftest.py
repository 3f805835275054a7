"""What the data tests share: the real sets where they are at hand, and writers of the published formats.

Puts toy_feeds.py, which the tests of the loaders share, where imports find it.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from robustfast.data import load
from robustfast.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))

REAL_DATA = Path(os.environ.get("ROBUSTFAST_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    if not (REAL_DATA / "mnist").is_dir():
        pytest.skip(f"no MNIST in {REAL_DATA}: set ROBUSTFAST_TEST_DATA to the folder that holds mnist/")
    return REAL_DATA


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with CIFAR-10; its JPEG archives take half a minute to unpack, so once in a session."""
    if (REAL_DATA / "cifar-10-batches-py").is_dir():
        return REAL_DATA
    if not (REAL_DATA / "cifar10-jpeg").is_dir():
        pytest.skip(
            f"no CIFAR-10 in {REAL_DATA}: set ROBUSTFAST_TEST_DATA to the folder that holds cifar10-jpeg/"
        )
    target = tmp_path_factory.mktemp("cifar10")
    subprocess.run(
        [sys.executable, REAL_DATA / "unpack.py", target, "cifar10"], check=True, capture_output=True
    )
    return target


@pytest.fixture(scope="session")
def photograph(real_cifar10: Path) -> Callable[..., Path]:
    """Write a CIFAR-10 test image, by its number, as a JPEG file of `size` = (width, height); return its path."""
    image_module = pytest.importorskip("PIL.Image")
    images = load("cifar10", "test", real_cifar10).images

    def write(path: Path, number: int, size: tuple[int, int] = (32, 32)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = image_module.fromarray(images[number].permute(1, 2, 0).contiguous().numpy())
        pixels.resize(size).save(path, "JPEG", quality=95)
        return path

    return write


@pytest.fixture(scope="session")
def one_line_error() -> Callable[..., object]:
    """A context that expects a UserError of one line in which every one of `parts` stands."""

    @contextmanager
    def expect(*parts: object) -> Iterator[None]:
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert message.isprintable()
        for part in parts:
            assert str(part) in message

    return expect


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    def encode(values: np.ndarray) -> bytes:
        return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()

    return encode


@pytest.fixture(scope="session")
def python2_pickle() -> Callable[..., bytes]:
    """Pickle as Python 2's cPickle with NumPy 1 did (protocol 2): how the published CIFAR files are written."""

    def encode(value: object, module: str) -> bytes:
        if isinstance(value, bytes):
            short = len(value) < 256
            return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(encode(entry, module) for entry in value) + b"e"
        if isinstance(value, dict):
            pairs = (encode(key, module) + encode(entry, module) for key, entry in value.items())
            return b"}(" + b"".join(pairs) + b"u"
        assert isinstance(value, np.ndarray)
        reconstruct = f"c{module}\n_reconstruct\ncnumpy\nndarray\n".encode() + b"K\x00\x85U\x01b\x87R"
        dtype = b"cnumpy\ndtype\nU\x02" + value.dtype.str[1:].encode() + b"K\x00K\x01\x87R"
        dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(encode(size, module) for size in value.shape) + b"t"
        return reconstruct + b"(K\x01" + shape + dtype + b"\x89" + encode(value.tobytes(), module) + b"tb"

    def dump(value: object, module: str = "numpy.core.multiarray") -> bytes:
        return b"\x80\x02" + encode(value, module) + b"."

    return dump

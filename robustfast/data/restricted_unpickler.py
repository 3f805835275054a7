"""Read the pickled CIFAR files without running any of the code that a pickle can name.

A pickle is a program: its GLOBAL instructions name functions and its REDUCE instructions call them. The published files
(Python 2, protocol 2) name three, all of them NumPy's, to rebuild one uint8 array. Those names are bound to stand-ins
below, so that nothing outside this file runs, NumPy's own (de)serialisation included; every other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from robustfast.data.dataset import check_bytes, read_bytes
from robustfast.errors import UserError

__all__ = ["load_batch"]


def load_batch(path: Path) -> dict[bytes, object]:
    """Return the dictionary pickled in a CIFAR file, its keys as Python 2 wrote them: bytes; its arrays uint8.

    Raises:
        UserError: the pickle names something that a CIFAR file does not need (nothing of it is run); it is truncated,
            corrupt, followed by further bytes, or no dictionary.
    """
    raw = read_bytes(path)
    stream = _Watched(raw)
    try:
        content = _CifarUnpickler(stream, path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle makes the interpreter raise nearly anything
        if stream.asked > len(raw):
            raise UserError(
                f"{path} is truncated: found {len(raw)} bytes, expected at least {stream.asked}; "
                f"replace it with the published file"
            ) from error
        raise UserError(
            f"{path} is corrupt: its pickle of {len(raw)} bytes breaks off at byte {stream.tell()} "
            f"({error!r}), expected a batch as published; replace it with the published file"
        ) from error
    check_bytes(path, len(raw), stream.tell(), "where its pickle ends")
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a pickled {type(content).__name__}, expected a dictionary as published"
        )
    return {key: value.array if isinstance(value, _Array) else value for key, value in content.items()}


class _Watched(io.BytesIO):
    """Bytes that remember how far reads went: past the end, that is the least a complete file would hold."""

    asked = 0

    def read(self, size: int | None = -1) -> bytes:
        self.asked = max(self.asked, self.tell() + (size or 0))
        return super().read(size)

    def readinto(self, buffer: memoryview) -> int:
        self.asked = max(self.asked, self.tell() + len(buffer))
        return super().readinto(buffer)

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.asked = max(self.asked, self.tell() + (not line.endswith(b"\n")))
        return line


class _CifarUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        # The module moved in NumPy 2: a set written anew under it is as good as the published one.
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return lambda kind, shape, dtype: _Array()
        if module == "numpy" and name == "ndarray":
            return _Array
        if module == "numpy" and name == "dtype":
            return _UInt8
        raise UserError(
            f"{self.path}: refused, its pickle asks for {f'{module}.{name}'!r}, which no CIFAR file needs "
            f"(nothing of it was run); replace it with the published file"
        )


class _UInt8:
    """Stands for numpy.dtype, and admits the one type that the files hold."""

    def __init__(self, code: bytes | str, align: object = False, copy: object = True) -> None:
        if code not in (b"u1", "u1"):
            raise TypeError(f"an array of {code!r}, expected 'u1'")

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment, which bytes have none of


class _Array:
    """Stands for numpy.ndarray: `array` is uint8, once the pickle has set its state."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _UInt8, bool, bytes]) -> None:
        _, shape, dtype, fortran, content = state
        if (
            not isinstance(dtype, _UInt8)
            or not isinstance(content, bytes)
            or math.prod(shape) != len(content)
        ):
            raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")

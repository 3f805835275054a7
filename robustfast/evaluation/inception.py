"""The Inception-v3 whose features the Frechet Inception distance (FID) compares, with weights from a file.

It is the network of TensorFlow's ``classify_image_graph_def.pb`` of 2015-12-05, whose weights are published for PyTorch
as ``pt_inception-2015-12-05-6726825d.pth``. From torchvision's Inception-v3 it differs in this: average pools leave the
padding out of their mean, the last block pools by maximum, there are 1008 logits and no auxiliary classifier, and
images are resized as TensorFlow 1 does, without antialiasing.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models.stored_state import load

__all__ = ["InceptionV3", "load_inception", "resize_like_tensorflow"]

SIZE = 299
FEATURES = 2048
_LOGITS = 1008

Kernel = int | tuple[int, int]
# Name, channels, kernel.
Unit = tuple[str, int, Kernel]
# One after the other; those of an inner sequence see the same maps and are put side by side.
Branch = Sequence[Sequence[Unit]]


def resize_like_tensorflow(x: Tensor, size: int) -> Tensor:
    """Bilinear interpolation as TensorFlow 1's ``resize_bilinear``: pixel i of the result looks at i * (old / new).

    Corners are not aligned and no half pixel is added, which moves the image by part of a pixel; enlarged or shrunk,
    only the nearest pixels count.

    Args:
        x: float [B, C, H, W].
        size: new side.

    Returns:
        [B, C, size, size].
    """
    for dim in (2, 3):
        old = x.shape[dim]
        place = torch.arange(size, device=x.device, dtype=x.dtype) * (old / size)
        below = place.floor().long().clamp(max=old - 1)
        above = (below + 1).clamp(max=old - 1)
        share = (place - below).reshape([-1 if d == dim else 1 for d in range(4)])
        low, high = x.index_select(dim, below), x.index_select(dim, above)
        x = low + (high - low) * share
    return x


class InceptionV3(nn.Module):
    """Images to the features behind the last pool, which the FID compares (Szegedy et al. 2016; Heusel et al. 2017).

    ``forward`` takes images in [0, 1], [B, 3, H, W] or grey ones [B, 1, H, W], of any size, and gives float [B, 2048].
    Pixels are not rounded to 8 bits.

    Attributes:
        num_features: 2048.
        fc: the logits of the published network, which the features do without.
    """

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, padding=0)
        for name, channels, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            self.add_module(f"Mixed_{name}", _Block(channels, _small(), pool="mean", pooled=pooled))
        self.Mixed_6a = _Block(288, _shrink_to_17(), pool="shrink")
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            self.add_module(f"Mixed_{name}", _Block(768, _long(inner), pool="mean", pooled=192))
        self.Mixed_7a = _Block(768, _shrink_to_8(), pool="shrink")
        self.Mixed_7b = _Block(1280, _wide(), pool="mean", pooled=192)
        self.Mixed_7c = _Block(2048, _wide(), pool="max", pooled=192)
        self.fc = nn.Linear(FEATURES, _LOGITS)

    def forward(self, x: Tensor) -> Tensor:
        # The graph takes 8-bit values v to (v - 128) / 128.
        x = (255 * resize_like_tensorflow(x, SIZE) - 128) / 128
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        for name, module in self.named_children():
            if name in ("Conv2d_3b_1x1", "Mixed_5b"):
                x = F.max_pool2d(x, 3, stride=2)
            if name != "fc":
                x = module(x)
        return x.mean((2, 3))


def load_inception(file: Path, device: torch.device | str = "cpu") -> InceptionV3:
    """The network with the weights of a file, in eval mode, without gradients of its own.

    Args:
        file: a state dict with the names and shapes of ``pt_inception-2015-12-05-6726825d.pth``, each one checked.
        device: where the network goes.

    Raises:
        UserError: it is missing, truncated or no such file, its content is not what its name says, or it is that of
            another network.
    """
    state = _read(Path(file))
    with torch.device("meta"):  # no weights to be drawn
        network = InceptionV3()
    expected = network.state_dict()
    reason = _mismatch(state, expected)
    if reason is not None:
        raise UserError(
            f"--inception-weights {file}: {reason}; expected the Inception-v3 of FID "
            f"(pt_inception-2015-12-05-6726825d.pth)"
        )
    # Batches that the norms have seen: of no use here, and older files have none.
    seen = {name: torch.zeros((), dtype=torch.int64) for name in expected if _counts(name)}
    weights = {name: value.float() for name, value in state.items() if not _counts(name)}
    network.load_state_dict({**weights, **seen}, assign=True)
    return network.requires_grad_(False).to(device).eval()


class _Convolution(nn.Module):
    """Convolution, batch norm and ReLU; zeros around the maps keep their size unless told otherwise."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel, *, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = tuple(side // 2 for side in sides) if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, sides, stride=stride, padding=around, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Block(nn.Module):
    """Paths over the same maps, and a pool, side by side.

    Args:
        channels: of the maps.
        paths: their units.
        pool: "mean" or "max" of 3x3 and a 1x1 convolution to `pooled` channels. "shrink": the maximum at every second
            place alone; the last unit of each path then has a stride of 2 and no padding.
        pooled: see `pool`.
    """

    def __init__(
        self,
        channels: int,
        paths: Sequence[Branch],
        *,
        pool: Literal["mean", "max", "shrink"],
        pooled: int = 0,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.paths = [[[name for name, *_ in level] for level in path] for path in paths]
        for path in paths:
            inputs = channels
            for number, level in enumerate(path, 1):
                last = {"stride": 2, "padding": 0} if pool == "shrink" and number == len(path) else {}
                for name, outputs, kernel in level:
                    self.add_module(name, _Convolution(inputs, outputs, kernel, **last))
                inputs = sum(outputs for _, outputs, _ in level)
        if pool != "shrink":
            self.branch_pool = _Convolution(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for path in self.paths:
            maps = x
            for level in path:
                maps = torch.cat([self.get_submodule(name)(maps) for name in level], 1)
            found.append(maps)
        if self.pool == "shrink":
            found.append(F.max_pool2d(x, 3, stride=2))
        elif self.pool == "max":
            found.append(self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            found.append(self.branch_pool(mean))
        return torch.cat(found, 1)


def _chain(*units: Unit) -> Branch:
    return [[unit] for unit in units]


def _small() -> list[Branch]:
    return [
        _chain(("branch1x1", 64, 1)),
        _chain(("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        _chain(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    ]


def _shrink_to_17() -> list[Branch]:
    return [
        _chain(("branch3x3", 384, 3)),
        _chain(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    ]


def _long(inner: int) -> list[Branch]:
    rows, columns = (1, 7), (7, 1)
    return [
        _chain(("branch1x1", 192, 1)),
        _chain(("branch7x7_1", inner, 1), ("branch7x7_2", inner, rows), ("branch7x7_3", 192, columns)),
        _chain(
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, columns),
            ("branch7x7dbl_3", inner, rows),
            ("branch7x7dbl_4", inner, columns),
            ("branch7x7dbl_5", 192, rows),
        ),
    ]


def _shrink_to_8() -> list[Branch]:
    return [
        _chain(("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
        _chain(
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3),
        ),
    ]


def _wide() -> list[Branch]:
    rows, columns = (1, 3), (3, 1)
    return [
        _chain(("branch1x1", 320, 1)),
        [*_chain(("branch3x3_1", 384, 1)), [("branch3x3_2a", 384, rows), ("branch3x3_2b", 384, columns)]],
        [
            *_chain(("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)),
            [("branch3x3dbl_3a", 384, rows), ("branch3x3dbl_3b", 384, columns)],
        ],
    ]


def _read(file: Path) -> dict[str, Any]:
    """What a file of weights holds, in torch's present format or in the one of the published file, which is older."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"--inception-weights {file}: cannot be read ({error.strerror}); name the file of weights"
        ) from error
    # Published files have the beginning of their digest in their name, and the older format has no other checksum.
    named = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    digest = hashlib.sha256(content).hexdigest()
    if named is not None and not digest.startswith(named[1]):
        raise UserError(
            f"--inception-weights {file}: {len(content)} bytes with a SHA-256 of {digest[:8]}..., its name says "
            f"{named[1]}; it is truncated or another file: fetch it again"
        )
    try:
        if content.startswith(b"PK"):
            return load(file)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError as error:
        reason = str(error).removeprefix(f"{file} is ")
    except UnpicklingError:
        # torch's own words advise to execute the file.
        reason = "no file of weights, or one that is truncated or holds more than tensors"
    except (EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        reason = f"no file of weights, or truncated at {len(content)} bytes"
    raise UserError(f"--inception-weights {file}: {reason}; fetch it again") from None


def _mismatch(state: Any, expected: Mapping[str, Tensor]) -> str | None:
    """In what the weights differ from those expected; None where they fit."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        return "it holds no state dict of tensors"
    wanted = {name for name in expected if not _counts(name)}
    given = {name for name in state if not _counts(name)}
    for title, names in (("it lacks", wanted - given), ("it holds", given - wanted)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"{title} {min(names)}{more}"
    for name in sorted(wanted):
        ours, theirs = tuple(expected[name].shape), tuple(state[name].shape)
        if ours != theirs:
            return f"{name} has shape {theirs}, not {ours}"
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            return f"{name} holds other values than finite floats"
    return None


def _counts(name: Any) -> bool:
    return str(name).endswith("num_batches_tracked")

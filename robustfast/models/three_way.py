"""One image, two representations, three predictions: the model that robust features are pulled apart with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models.backbone import backbone as named_backbone
from robustfast.ops import three_way_head

__all__ = ["ENCODERS", "ThreeWay", "Way"]

# The encoders each way looks at. The other half of the head's input is a constant zero, so it is never computed.
ENCODERS = {"s": "rn", "r": "r", "n": "n"}


class ThreeWay(nn.Module):
    """Two encoders and a shared head, read in three ways (AAT, equations 4 and 5).

    With z_r = g_r(x) and z_n = g_n(x), each [B, H], and the head f = Linear(2H, H), ReLU, Linear(H, C):

    - the standard way   h_s = f([z_r, z_n])
    - the robust way     h_r = f([z_r, 0])
    - the non-robust way h_n = f([0, z_n])

    The zeros are constants: h_r neither runs g_n nor sends it a gradient, and h_n the same with g_r.

    Args:
        backbone: a registered name (`robustfast.models.MODELS`) or a function without arguments that builds a
            module [B, ...] -> [B, features] with the int attribute `features`. Called twice: the encoders share
            no weights.
        num_classes: C, 2 or more.
        in_channels: channels of the images; needed with a name, refused with a function (which knows it already).

    Attributes:
        encoder_r, encoder_n: the encoders g_r and g_n.
        head: f, an `nn.Sequential` of Linear, ReLU, Linear.

    Raises:
        UserError: unknown name, or `num_classes` below 2.
        TypeError: a backbone without `features`, or `in_channels` missing or superfluous.
    """

    def __init__(
        self, backbone: str | Callable[[], nn.Module], *, num_classes: int, in_channels: int | None = None
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes {num_classes}: expected 2 or more")
        build = _builder(backbone, in_channels)
        self.encoder_r = build()
        self.encoder_n = build()
        features = getattr(self.encoder_r, "features", None)
        if not isinstance(features, int):
            raise TypeError(
                f"backbone {type(self.encoder_r).__name__} has no int attribute `features` (the width of its output), "
                f"got {features!r}"
            )
        self.head = nn.Sequential(
            nn.Linear(2 * features, features), nn.ReLU(), nn.Linear(features, num_classes)
        )

    def encode(self, x: Tensor, which: str = "rn") -> dict[str, Tensor]:
        """Representations [B, H] of images `x` by the encoders named, "r", "n" or both; each runs once."""
        encoders = {"r": self.encoder_r, "n": self.encoder_n}
        _check_letters("encoders", which, encoders)
        return {name: encoders[name](x) for name in which}

    def decode(self, z: Mapping[str, Tensor], ways: str = "srn") -> dict[str, Tensor]:
        """Logits [B, C] of each way named in `ways` from representations as `encode` returns them.

        Raises:
            ValueError: unknown way, or a way whose representation is not in `z`.
        """
        _check_letters("ways", ways, ENCODERS)
        needed = needed_encoders(ways)
        missing = [name for name in needed if name not in z]
        if missing:
            raise ValueError(f"ways {ways!r} need the representations {needed!r}, got {''.join(z)!r}")
        first, _, last = self.head
        if len(ways) == 3:
            logits = three_way_head(z["r"], z["n"], first.weight, first.bias, last.weight, last.bias)
            by_way = dict(zip("srn", logits, strict=True))
            return {way: by_way[way] for way in ways}
        columns = dict(zip("rn", first.weight.chunk(2, dim=1), strict=True))
        # Half-precision products are added in the bias's float32 and rounded once, as `three_way_head` does.
        half = {name: F.linear(z[name], columns[name]).to(first.bias.dtype) for name in needed}
        if "s" in ways:
            half["s"] = half["r"] + half["n"]
        return {way: last(torch.relu(half[way] + first.bias)) for way in ways}

    def ways(self, x: Tensor, ways: str = "srn") -> dict[str, Tensor]:
        """Logits [B, C] of each way named in `ways`, in that order; every encoder they need runs once."""
        _check_letters("ways", ways, ENCODERS)
        return self.decode(self.encode(x, needed_encoders(ways)), ways)

    def way(self, name: str) -> Way:
        """One way as a callable, for attacks and evaluation: it runs only the encoders that it looks at."""
        _check_letters("ways", name, ENCODERS)
        return Way(self, name)

    def forward(self, x: Tensor) -> Tensor:
        """The standard way: logits [B, C]."""
        return self.ways(x, "s")["s"]


@dataclass(frozen=True)
class Way:
    """One way of a three-way model: images to logits [B, C].

    Attributes:
        model: the `ThreeWay` it reads; its weights and modes are the model's own.
        name: "s", "r" or "n".
    """

    model: ThreeWay
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.ways(x, self.name)[self.name]

    def parameters(self) -> list[nn.Parameter]:
        """The parameters this way depends on: its encoders', then the head's."""
        encoders = [getattr(self.model, f"encoder_{name}") for name in ENCODERS[self.name]]
        return list(chain(*(module.parameters() for module in (*encoders, self.model.head))))


def needed_encoders(ways: str) -> str:
    """The encoders that `ways` look at, "r" before "n"."""
    return "".join(name for name in "rn" if any(name in ENCODERS[way] for way in ways))


def _builder(backbone: str | Callable[[], nn.Module], in_channels: int | None) -> Callable[[], nn.Module]:
    if not isinstance(backbone, str):
        if in_channels is not None:
            raise TypeError(
                f"in_channels={in_channels} goes with a backbone's name; the function {backbone!r} sets it itself"
            )
        return backbone
    if in_channels is None:
        raise TypeError(f"backbone {backbone!r} by name needs in_channels: 1 for grey images, 3 for colour")
    return lambda: named_backbone(backbone, in_channels=in_channels)


def _check_letters(what: str, letters: str, known: Mapping[str, object]) -> None:
    if not letters or len(set(letters)) != len(letters) or not set(letters) <= set(known):
        raise ValueError(f"{what} {letters!r}: expected one or more of {', '.join(known)}, each once")

"""One image, two representations, three predictions: the model that robust features are pulled apart with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models.backbone import builder
from robustfast.models.network import Network, Way, check_letters
from robustfast.ops import three_way_head
from robustfast.streams import branch

__all__ = ["ENCODERS", "ThreeWay", "Way"]

# The encoders each way looks at. The other half of the head's input is a constant zero, so it is never computed.
ENCODERS = {"s": "rn", "r": "r", "n": "n"}


class ThreeWay(Network):
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

    readings = "srn"

    def __init__(
        self, backbone: str | Callable[[], nn.Module], *, num_classes: int, in_channels: int | None = None
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes {num_classes}: expected 2 or more")
        build = builder(backbone, in_channels)
        self.encoder_r = build()
        self.encoder_n = build()
        features: int = self.encoder_r.features  # type: ignore[assignment]
        self.head = nn.Sequential(
            nn.Linear(2 * features, features), nn.ReLU(), nn.Linear(features, num_classes)
        )

    def encode(self, x: Tensor, which: str = "rn") -> dict[str, Tensor]:
        """Representations [B, H] of images `x` by the encoders named, "r", "n" or both; each runs once."""
        check_letters("encoders", which, "rn")
        return self.encode_each(dict.fromkeys(which, x))

    def encode_each(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Representations [B, H] by each encoder named, "r", "n" or both, of its own images [B, ...].

        In a CUDA graph encoder n has a stream of its own, and runs beside r (`robustfast.streams`).
        """
        check_letters("encoders", "".join(images), "rn")
        encoders = {"r": self.encoder_r, "n": self.encoder_n}
        # Forked before r is launched, and for n alone too: its weights' casts and gradients belong to that stream.
        fork = branch(images["n"].device) if "n" in images else None
        if fork is None:
            return {name: encoders[name](x) for name, x in images.items()}
        try:
            return {
                name: fork.run(encoders[name], x) if name == "n" else encoders[name](x)
                for name, x in images.items()
            }
        finally:
            fork.join()

    def decode(self, z: Mapping[str, Tensor], ways: str = "srn") -> dict[str, Tensor]:
        """Logits [B, C] of each way named in `ways` from representations as `encode` returns them.

        Raises:
            ValueError: unknown way, or a way whose representation is not in `z`.
        """
        check_letters("ways", ways, self.readings)
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
        check_letters("ways", ways, self.readings)
        return self.decode(self.encode(x, needed_encoders(ways)), ways)

    def encoders(self, ways: str | None = None) -> dict[str, nn.Module]:
        both = {"r": self.encoder_r, "n": self.encoder_n}
        return {name: both[name] for name in needed_encoders(ways or self.readings)}

    def way_parameters(self, name: str) -> list[nn.Parameter]:
        """Its encoders', then the head's."""
        return list(chain(*(module.parameters() for module in (*self.encoders(name).values(), self.head))))


def needed_encoders(ways: str) -> str:
    """The encoders that `ways` look at, "r" before "n"."""
    return "".join(name for name in "rn" if any(name in ENCODERS[way] for way in ways))

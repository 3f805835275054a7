"""One feature extractor under three encoders: robust, non-robust and domain-specific features of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models.backbone import builder
from robustfast.models.cut import cut
from robustfast.models.network import Network, check_letters

__all__ = ["FEATURES", "Disentangled", "Encoder"]

FEATURES = "rnd"
"""The letters of the features: robust, non-robust, domain-specific."""


class Encoder(nn.Module):
    """The end of a backbone: f to maps [B, C, h, w], which `pool` makes into features [B, H]."""

    def __init__(self, maps: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.maps, self.pool = maps, pool

    def forward(self, f: Tensor) -> Tensor:
        return self.maps(f)


class Disentangled(Network):
    """A backbone cut in two, with three of its second half, and a linear classifier (RFD, section III-B).

    With f = G(x) and z_i = E_i(f), i in {r, nr, ds} (RFD, equations 4 and 5):

    - the robust way     h_r = C(z_r)
    - the non-robust way h_n = C(z_nr), by the same classifier

    The domain-specific features are for a discriminator, which belongs to the objective; no way reads them.

    Args:
        backbone: a registered name (`robustfast.models.MODELS`) or a function without arguments that builds a backbone
            of a class in `robustfast.models.cut.CUTS`. Called three times: the encoders share no weights.
        num_classes: C, 2 or more.
        in_channels: channels of the images; needed with a name, refused with a function (which knows it already).

    Attributes:
        generator: G.
        encoder_r, encoder_n, encoder_d: E_r, E_nr and E_ds, each an `Encoder`.
        classifier: `nn.Linear` [H] -> [C].
        features: H.
        base_channels, map_channels: of f and of each encoder's maps.
        upsampling: kernel, stride and padding of a transposed convolution from the maps' size to f's.

    Raises:
        UserError: an unknown name, a backbone without a cut, or `num_classes` below 2.
        TypeError: a backbone without `features`, or `in_channels` missing or superfluous.
    """

    readings = "rn"

    def __init__(
        self, backbone: str | Callable[[], nn.Module], *, num_classes: int, in_channels: int | None = None
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes {num_classes}: expected 2 or more")
        build = builder(backbone, in_channels)
        whole = build()
        first = cut(whole)
        self.features: int = whole.features  # type: ignore[assignment]
        self.base_channels, self.map_channels = first.base_channels, first.map_channels
        self.upsampling = first.upsampling
        self.generator = first.base
        self.encoder_r = Encoder(first.maps, first.pool)
        # Of the others only the second half stays.
        self.encoder_n, self.encoder_d = (
            Encoder(part.maps, part.pool) for part in (cut(build()), cut(build()))
        )
        self.classifier = nn.Linear(self.features, num_classes)
        # What `encoders` gives, kept so that what is compiled there is what runs. In a dictionary, that torch does not
        # count the parameters twice.
        self._whole = {name: _Whole(self.generator, self._encoder(name)) for name in FEATURES}

    def base(self, x: Tensor) -> Tensor:
        """f [B, base_channels, h', w'] of images x."""
        return self.generator(x)

    def maps(self, f: Tensor, which: str = FEATURES) -> dict[str, Tensor]:
        """Maps [B, map_channels, h, w] of f by the encoders named: "r", "n", "d". Each runs once; f stays as it is."""
        check_letters("encoders", which, FEATURES)
        return {name: self._encoder(name)(f) for name in which}

    def pooled(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features [B, H] from maps as `maps` returns them."""
        return {name: self._encoder(name).pool(value) for name, value in maps.items()}

    def encode(self, x: Tensor, which: str = FEATURES) -> dict[str, Tensor]:
        """Features [B, H] of images x by the encoders named; what they share runs once."""
        check_letters("encoders", which, FEATURES)
        if len(which) == 1:
            return {which: self._whole[which](x)}
        return self.pooled(self.maps(self.base(x), which))

    def ways(self, x: Tensor, ways: str = "rn") -> dict[str, Tensor]:
        check_letters("ways", ways, self.readings)
        return {name: self.classifier(z) for name, z in self.encode(x, ways).items()}

    def encoders(self, ways: str | None = None) -> dict[str, nn.Module]:
        """By way, and without `ways` also "d", images to features [B, H]; the modules hold G and an encoder each."""
        return {name: self._whole[name] for name in ways or FEATURES}

    def way_parameters(self, name: str) -> list[nn.Parameter]:
        """G's, the encoder's, then the classifier's."""
        parts = (self.generator, self._encoder(name), self.classifier)
        return list(chain(*(part.parameters() for part in parts)))

    def _encoder(self, name: str) -> Encoder:
        return {"r": self.encoder_r, "n": self.encoder_n, "d": self.encoder_d}[name]


class _Whole(nn.Module):
    """Images to the features of one encoder."""

    def __init__(self, generator: nn.Module, encoder: Encoder) -> None:
        super().__init__()
        self.generator, self.encoder = generator, encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.pool(self.encoder(self.generator(x)))

"""A classifier behind a network that cleans its images, and the same classifier without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

from robustfast.models.ape_generator import APEGenerator
from robustfast.models.autoencoders import AUTOENCODERS, Kind
from robustfast.models.class_disentangled import Normalisation
from robustfast.models.network import Network, check_letters
from robustfast.models.one_way import OneWay
from robustfast.models.unet_denoiser import UNetDenoiser
from robustfast.registry import lookup

__all__ = ["DENOISERS", "Denoised"]

# Small images leave nothing to see on the published five levels.
_UNETS: Mapping[str, Callable[..., nn.Module]] = {
    "digits": partial(UNetDenoiser, widths=(16, 32, 32)),
    "mnist": partial(UNetDenoiser, widths=(16, 32, 32)),
    "cifar": UNetDenoiser,
    "imagenet": UNetDenoiser,
}
_NORMALISED = {"digits": "digits_vae", "mnist": "mnist_vae", "cifar": "cifar_vae", "imagenet": "vq_vae"}

DENOISERS: dict[str, Kind] = {
    f"{images}_{name}": Kind(build, AUTOENCODERS[like].mean, AUTOENCODERS[like].std)
    for images, like in _NORMALISED.items()
    for name, build in (("unet", _UNETS[images]), ("ape", APEGenerator))
}
"""Denoisers by name, each with the normalisation of the images that it is for: that of the auto-encoders, so that a
classifier can be taken from one of their networks."""


class Denoised(Network):
    """A classifier D-hat of images, and a denoiser before it.

    - the robust way   r = D-hat(denoiser(x))
    - the standard way s = D-hat(x)

    The denoiser maps pixels to pixels; D-hat sees them normalised, as `robustfast.models.ClassDisentangled` has it.

    Args:
        backbone: of the classifier; as of `robustfast.models.OneWay`.
        num_classes: C, 2 or more.
        in_channels: channels of the images; with a backbone that is a function, give 1 or 3 here all the same.
        denoiser: a key of `DENOISERS`.

    Attributes:
        normalisation: `Normalisation`.
        denoiser: images [B, C, H, W] in [0, 1] to images like them.
        classifier_x: `OneWay` on normalised images.

    Raises:
        UserError: an unknown name, or `num_classes` below 2.
    """

    readings = "rs"

    def __init__(
        self, backbone: str | Callable[[], nn.Module], *, num_classes: int, in_channels: int, denoiser: str
    ) -> None:
        super().__init__()
        kind = lookup("denoiser", DENOISERS, denoiser)
        self.normalisation = Normalisation(kind.mean, kind.std)
        self.denoiser = kind.build(in_channels=in_channels)
        own = in_channels if isinstance(backbone, str) else None
        self.classifier_x = OneWay(backbone, num_classes=num_classes, in_channels=own)
        # What compiles the encoders does it in place. In a dictionary they are no children, whose weights would stand
        # in a checkpoint twice.
        self._encoders = {way: _Encoder(self, way) for way in self.readings}

    def cleaned(self, x: Tensor) -> Tensor:
        """What the denoiser makes of images, and the classifier sees: in pixels, like x."""
        return self.denoiser(x)

    def ways(self, x: Tensor, ways: str) -> dict[str, Tensor]:
        check_letters("ways", ways, self.readings)
        return {way: self.classifier_x.classifier(self._encoders[way](x)) for way in ways}

    def encoders(self, ways: str | None = None) -> dict[str, nn.Module]:
        return {way: self._encoders[way] for way in ways or self.readings}

    def way_parameters(self, name: str) -> list[nn.Parameter]:
        """The denoiser's, where the way looks through it, then the classifier's."""
        through = list(self.denoiser.parameters()) if name == "r" else []
        return [*through, *self.classifier_x.parameters()]


class _Encoder(nn.Module):
    """Images to the features of the classifier in one way."""

    def __init__(self, network: Denoised, way: str) -> None:
        super().__init__()
        self.network, self.way = network, way

    def forward(self, x: Tensor) -> Tensor:
        network = self.network
        seen = network.cleaned(x) if self.way == "r" else x
        return network.classifier_x.features(network.normalisation(seen))

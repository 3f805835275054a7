"""An image split into what its class does not need, G(x), and the rest, with classifiers of either and of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustfast.models.autoencoder import Autoencoder
from robustfast.models.autoencoders import AUTOENCODERS
from robustfast.models.network import Network, check_letters
from robustfast.models.one_way import OneWay
from robustfast.registry import lookup

__all__ = ["PARTS", "ClassDisentangled", "Normalisation", "Split"]

PARTS: Mapping[str, str] = {"s": "x", "r": "g", "n": "r"}
"""Way to the part of the image that it looks at: the standard way at x, the robust one at G(x), where attacks leave
little, the non-robust one at R(x), where they leave most."""


class Normalisation(nn.Module):
    """Pixels in [0, 1] to ``(x - mean) / std``, and back.

    Args:
        mean, std: one number for all channels, or one each.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            # No part of a checkpoint: the network's name says what they are.
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised images as pixels, outside [0, 1] where they are."""
        return x * self.std + self.mean


class Split(NamedTuple):
    """The parts of an image, all normalised and [B, C, H, W]: ``g + r`` is ``x`` to rounding.

    Attributes:
        x: the image.
        g: G(x), the class-redundant part.
        r: R(x) = x - G(x), the class-dependent part.
        latent, regulariser: as of `robustfast.models.autoencoder.Coded`.
    """

    x: Tensor
    g: Tensor
    r: Tensor
    latent: Tensor
    regulariser: Tensor


class ClassDisentangled(Network):
    """An auto-encoder G and classifiers of an image's parts (CD-VAE: Yang et al. 2021).

    - the standard way   s = D-hat(x)
    - the robust way     r = D_G(G(x))
    - the non-robust way n = D(x - G(x))

    The classifiers are of one architecture. They and G work on normalised pixels; images come in [0, 1].

    Args:
        backbone: of each classifier; as of `robustfast.models.OneWay`.
        num_classes: C, 2 or more.
        in_channels: channels of the images; with a backbone that is a function, give 1 or 3 here all the same.
        autoencoder: a key of `robustfast.models.autoencoders.AUTOENCODERS`, which also says how to normalise.
        readings: the ways that it has; only their classifiers are built, and without r and n no G either.

    Attributes:
        normalisation: `Normalisation`.
        generator: G, an `Autoencoder`; None where the ways need none.
        classifier_x, classifier_g, classifier_r: `OneWay` on normalised images; those of `readings`.

    Raises:
        UserError: an unknown name, or `num_classes` below 2.
        ValueError: other readings than of s, r, n; from a pass, images of a size that G does not take.
    """

    readings = "rn"

    def __init__(
        self,
        backbone: str | Callable[[], nn.Module],
        *,
        num_classes: int,
        in_channels: int,
        autoencoder: str,
        readings: str = "rn",
    ) -> None:
        super().__init__()
        check_letters("readings", readings, "".join(PARTS))
        self.in_channels = in_channels
        kind = lookup("auto-encoder", AUTOENCODERS, autoencoder)
        self.readings = readings  # type: ignore[misc]
        self.normalisation = Normalisation(kind.mean, kind.std)
        self.generator: Autoencoder | None = None
        if readings != "s":
            self.generator = kind.build(in_channels=in_channels)
        for way in readings:
            own = in_channels if isinstance(backbone, str) else None
            self.add_module(
                f"classifier_{PARTS[way]}", OneWay(backbone, num_classes=num_classes, in_channels=own)
            )
        # What `encoders` gives, kept so that what is compiled there is what runs. In a dictionary, that torch does not
        # count the parameters twice.
        self._encoders = {
            way: _Encoder(
                self.normalisation,
                None if way == "s" else self.generator,
                self.classifier(PARTS[way]).encoder,
                PARTS[way],
            )
            for way in readings
        }

    def classifier(self, part: str) -> OneWay:
        """The classifier of part "x", "g" or "r", which takes normalised images.

        Raises:
            ValueError: this network has none.
        """
        check_letters("parts", part, "".join(PARTS[way] for way in self.readings))
        return self.get_submodule(f"classifier_{part}")  # type: ignore[return-value]

    def split(self, x: Tensor, *, seed: int | None = None, index: Tensor | None = None) -> Split:
        """The parts of images x in [0, 1].

        Args:
            x: [B, C, H, W].
            seed, index: draw G's code by them, index int64 [B]; without them it is the mean of the posterior (see
                `Autoencoder.sample_at_test`).

        Raises:
            ValueError: the network has no G, x are not floating [B, C, H, W] of its channels, or one of seed and index
                comes alone.
        """
        if self.generator is None:
            raise ValueError(
                f"a network of the ways {self.readings} alone has no auto-encoder to split images"
            )
        if x.dim() != 4 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ValueError(
                f"images {tuple(x.shape)} of {x.dtype}: expected floating [B, {self.in_channels}, H, W] in [0, 1]"
            )
        whole = self.normalisation(x)
        coded = self.generator(whole, seed=seed, index=index)
        return Split(whole, coded.image, whole - coded.image, coded.latent, coded.regulariser)

    def part(self, x: Tensor, part: str) -> Tensor:
        """Part "x", "g" or "r" of images in [0, 1], normalised."""
        check_letters("parts", part, "xgr")
        return self.normalisation(x) if part == "x" else getattr(self.split(x), part)

    def ways(self, x: Tensor, ways: str) -> dict[str, Tensor]:
        check_letters("ways", ways, self.readings)
        if len(ways) == 1:
            return {ways: self.classifier(PARTS[ways]).classifier(self._encoders[ways](x))}
        parts = self.split(x)._asdict()
        return {way: self.classifier(PARTS[way])(parts[PARTS[way]]) for way in ways}

    def encoders(self, ways: str | None = None) -> dict[str, nn.Module]:
        """By way, images to the features [B, H] of its classifier; the modules hold G and the classifier's encoder."""
        return {way: self._encoders[way] for way in ways or self.readings}

    def way_parameters(self, name: str) -> list[nn.Parameter]:
        """G's, where the way looks through it, then the classifier's."""
        through = [] if name == "s" or self.generator is None else list(self.generator.parameters())
        return [*through, *self.classifier(PARTS[name]).parameters()]


class _Encoder(nn.Module):
    """Images in [0, 1] to the features of one part's classifier."""

    def __init__(
        self, normalisation: Normalisation, generator: Autoencoder | None, encoder: nn.Module, part: str
    ) -> None:
        super().__init__()
        self.normalisation, self.generator, self.encoder, self.part = normalisation, generator, encoder, part

    def forward(self, x: Tensor) -> Tensor:
        whole = self.normalisation(x)
        if self.generator is None:
            return self.encoder(whole)
        image = self.generator(whole).image
        return self.encoder(image if self.part == "g" else whole - image)

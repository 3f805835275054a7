"""Networks by name: what an objective trains, around the backbone that a run names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from robustfast.models.autoencoders import AUTOENCODERS
from robustfast.models.class_disentangled import ClassDisentangled
from robustfast.models.denoised import DENOISERS, Denoised
from robustfast.models.disentangled import Disentangled
from robustfast.models.network import Network
from robustfast.models.one_way import OneWay
from robustfast.models.three_way import ThreeWay
from robustfast.registry import lookup

__all__ = ["NETWORKS", "network"]

# Called as (backbone, num_classes=..., in_channels=...).
NETWORKS: dict[str, Callable[..., Network]] = {
    "three_way": ThreeWay,
    "one_way": OneWay,
    "unit_norm": partial(OneWay, unit_norm=True),
    "disentangled": Disentangled,
    # digits_vae_n and so on: an auto-encoder, and the ways whose classifiers stand beside it.
    **{
        f"{name}_{ways}": partial(ClassDisentangled, autoencoder=name, readings=ways)
        for name in AUTOENCODERS
        for ways in ("s", "r", "n", "rn")
    },
    # digits_unet and so on: a classifier behind a denoiser.
    **{name: partial(Denoised, denoiser=name) for name in DENOISERS},
}
"""Networks by name."""


def network(name: str, backbone: str, *, num_classes: int, in_channels: int) -> Network:
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: a key of `NETWORKS`.
        backbone: as for `robustfast.models.backbone`.
        num_classes: C, 2 or more.
        in_channels: channels of the images.

    Raises:
        UserError: an unknown name, or `num_classes` below 2.
    """
    return lookup("network", NETWORKS, name)(backbone, num_classes=num_classes, in_channels=in_channels)

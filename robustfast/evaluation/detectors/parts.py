"""Part x, G(x) or x - G(x) of a class-disentangled network as a model or as an input."""

from __future__ import annotations

from torch import Tensor, nn

from robustfast.models import ClassDisentangled

__all__ = ["PartInput", "PartModel", "part_input", "part_model"]


class PartInput(nn.Module):
    """Images in [0, 1] to a part of them, normalised. Attributes: `network`, `part`."""

    def __init__(self, network: ClassDisentangled, part: str) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, x: Tensor) -> Tensor:
        return self.network.part(x, self.part)


class PartModel(PartInput):
    """Images in [0, 1] to the logits [B, C] of the classifier of a part. Attributes: `network`, `part`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network.classifier(self.part)(super().forward(x))


def part_model(network: ClassDisentangled, part: str) -> PartModel:
    """The classifier of a part behind what splits the image: D-hat(x), D_G(G(x)) or D(x - G(x)).

    Args:
        network: images in [0, 1] to ways.
        part: "x", "g" or "r".

    Raises:
        ValueError: the network has no classifier of that part.
    """
    network.classifier(part)
    return PartModel(network, part)


def part_input(network: ClassDisentangled, part: str) -> PartInput:
    """A part of images, normalised: the `input` of a detector whose model is another classifier of that part.

    Raises:
        ValueError: the network has no auto-encoder to split images.
    """
    if part != "x" and network.generator is None:
        raise ValueError(
            f"a network of the ways {network.readings} alone has no auto-encoder to split images"
        )
    return PartInput(network, part)

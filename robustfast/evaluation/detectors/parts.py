"""Part x, G(x) or x - G(x) of a class-disentangled network as a model or as an input."""

from __future__ import annotations

from collections.abc import Callable

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

    def extra_repr(self) -> str:
        return f"part={self.part}"


class PartModel(PartInput):
    """Images in [0, 1] to the logits [B, C] of a classifier of a part. Attributes: `network`, `part`, `classifier`."""

    def __init__(self, network: ClassDisentangled, part: str, classifier: Callable[[Tensor], Tensor]) -> None:
        super().__init__(network, part)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(super().forward(x))


def part_model(
    network: ClassDisentangled, part: str, classifier: Callable[[Tensor], Tensor] | None = None
) -> PartModel:
    """The classifier of a part behind what splits the image: D-hat(x), D_G(G(x)) or D(x - G(x)).

    Its gradients run through G. It leaves the modes of the networks as they are.

    Args:
        network: splits the images.
        part: "x", "g" or "r".
        classifier: of normalised images [B, C, H, W]; the network's own of that part where none is given.

    Raises:
        ValueError: an unknown part, or a network without a classifier of it where none is given.
    """
    return PartModel(network, part, network.classifier(part) if classifier is None else classifier)


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

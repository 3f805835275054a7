"""Foolbox's model: a network with the bounds of its images and what they pass first."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustfast.attacks.compat.foolbox.eager import unwrap
from robustfast.attacks.compat.model import Through

__all__ = ["Bounds", "Model", "PyTorchModel", "accuracy"]


class Bounds(NamedTuple):
    lower: float
    upper: float


class Model:
    """Images -> outputs, with `bounds`."""

    bounds: Bounds

    def __call__(self, inputs: Any) -> Any:
        raise NotImplementedError


class PyTorchModel(Model):
    """``PyTorchModel(net.eval(), bounds=(0, 1), device=None, preprocessing=dict(mean=, std=, axis=-3))``.

    As in Foolbox 3.3: `device` None moves the network to the first GPU where there is one, a network in train mode is
    attacked as it is, with a warning. On purpose different: an attack leaves the running statistics of batch norms
    alone.

    Args:
        model: a module.
        bounds: lowest and highest pixel value of its images, before the preprocessing.
        device: where to move it.
        preprocessing: `flip_axis`, then subtract `mean`, then divide by `std`; with `axis`, a negative number, the two
            are vectors along it.

    Raises:
        ValueError: no module, or an unknown key in `preprocessing`.
    """

    data_format = "channels_first"

    def __init__(
        self, model: Any, bounds: Any, device: Any = None, preprocessing: Mapping[str, Any] | None = None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError("expected model to be a torch.nn.Module instance")
        if model.training:
            warnings.warn(
                "The PyTorch model is in training mode and therefore might not be deterministic. Call the eval() "
                "method to set it in evaluation mode if this is not intended.",
                stacklevel=2,
            )
        if device is None:
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.bounds = Bounds(*bounds)
        self._mean, self._std, self._flip = _steps(dict(preprocessing or {}), self.device)
        self.through = Through(model.to(self.device), self._before)

    def __call__(self, inputs: Any) -> Any:
        """Outputs of images; with a graph where they require a gradient."""
        x, restore = unwrap(inputs)
        with torch.set_grad_enabled(x.requires_grad):
            return restore(self.through(x))

    def transform_bounds(self, bounds: Any, inplace: bool = False, wrapper: bool = False) -> PyTorchModel:
        """The same model for images in other bounds."""
        changed = self if inplace else copy.copy(self)
        (a, b), (c, d) = self.bounds, bounds
        factor = (d - c) / (b - a)
        mean = torch.zeros(1, device=self.device) if self._mean is None else self._mean
        std = torch.ones(1, device=self.device) if self._std is None else self._std
        changed._mean, changed._std = factor * (mean - a) + c, factor * std
        changed.bounds = Bounds(*bounds)
        changed.through = Through(self.through.model, changed._before)
        return changed

    def _before(self, x: Tensor) -> Tensor:
        x = x if self._flip is None else x.flip(self._flip)
        x = x if self._mean is None else x - self._mean.to(x.dtype)
        return x if self._std is None else x / self._std.to(x.dtype)


def _steps(given: dict[str, Any], device: torch.device) -> tuple[Tensor | None, Tensor | None, int | None]:
    """Mean, std and the axis to flip, as the preprocessing dictionary gives them."""
    unknown = given.keys() - {"mean", "std", "axis", "flip_axis"}
    if unknown:
        raise ValueError(f"unknown preprocessing key: {unknown.pop()}")
    axis = given.get("axis")

    def vector(name: str) -> Tensor | None:
        value = unwrap(given.get(name))[0]
        if value is None:
            return None
        value = torch.as_tensor(value).to(device)
        if axis is None:
            return value
        if value.dim() != 1:
            raise ValueError(f"non-None axis requires a 1D tensor, got {value.dim()}D")
        if axis >= 0:
            raise ValueError("expected axis to be None or negative, -1 refers to the last axis")
        return value.reshape(-1, *[1] * (-axis - 1))

    return vector("mean"), vector("std"), given.get("flip_axis")


def accuracy(fmodel: Model, inputs: Any, labels: Any) -> float:
    """Share of `inputs` whose largest output is at `labels`."""
    predictions = fmodel(unwrap(inputs)[0]).argmax(-1)
    return (predictions == unwrap(labels)[0]).float().mean().item()
